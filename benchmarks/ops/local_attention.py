"""Windowed attention beside FlexAttention, SDPA over overlapping chunks, SDPA with a mask, and Inductor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.lib import parity
from benchmarks.lib.ceilings import gigabytes_per_second
from benchmarks.lib.contenders import clustered_depth
from benchmarks.lib.goals import Goal, Measurement
from benchmarks.lib.timing import medians
from tzn import ops, reference

HEADS, WIDTH, WINDOW, CHUNK = 4, 128, 19, 32
RADIUS = WINDOW // 2
SAME = {"rtol": 1e-4, "atol": 1e-5}
MASKED_UP_TO = 2304  # steps; the dense mask grows with the square
Run = Callable[[], Tensor]


def packed(q: Tensor, k: Tensor, v: Tensor, active: Tensor) -> Run:
    """As the variable-depth block calls it: rows of the active queries and of the keys they see, nothing else."""
    queries, halo = reference.active_tokens(active.float(), WINDOW)
    rows = [x[0].transpose(0, 1)[index].contiguous() for x, index in ((q, queries), (k, halo), (v, halo))]
    slot, bias = torch.searchsorted(halo, queries), torch.zeros(HEADS, WINDOW)
    out = torch.empty_like(rows[0])

    def run() -> Tensor:
        torch.ops.tzn_native.packed_local_attention(*rows, WINDOW, slot, halo, bias, out)
        return out

    return run


def flex(q: Tensor, k: Tensor, v: Tensor, active: Tensor) -> Run:
    """A block mask of the window and of the active queries: blocks without any are skipped, their rows are zero."""

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j <= RADIUS) & (j - i <= RADIUS) & active[0, i]

    steps = q.shape[2]
    blocks = create_block_mask(inside, None, None, steps, steps, device="cpu", BLOCK_SIZE=CHUNK)
    run = torch.compile(flex_attention, dynamic=False)
    return lambda: run(q, k, v, block_mask=blocks)  # type: ignore[return-value]


def chunks(q: Tensor, k: Tensor, v: Tensor) -> Run:
    batch, heads, steps, width = q.shape
    number = steps // CHUNK
    span = torch.arange(CHUNK + 2 * RADIUS)
    offset = span - torch.arange(CHUNK)[:, None]
    time = span + CHUNK * torch.arange(number)[:, None] - RADIUS
    allowed = ((offset >= 0) & (offset <= 2 * RADIUS)) & ((time >= 0) & (time < steps))[:, None]

    def spread(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, RADIUS, RADIUS)).unfold(2, CHUNK + 2 * RADIUS, CHUNK).transpose(-1, -2)

    def run() -> Tensor:
        chunked = q.reshape(batch, heads, number, CHUNK, width)
        out = F.scaled_dot_product_attention(chunked, spread(k), spread(v), attn_mask=allowed)
        return out.reshape(batch, heads, steps, width)

    return run


def unfolded(q: Tensor, k: Tensor, v: Tensor) -> Run:
    time = torch.arange(q.shape[2])[:, None] + torch.arange(-RADIUS, RADIUS + 1)
    outside = (time < 0) | (time >= q.shape[2])

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (F.pad(x, (0, 0, RADIUS, RADIUS)).unfold(2, WINDOW, 1) for x in (k, v))
        logits = (q.unsqueeze(-1) * keys).sum(-2) * WIDTH**-0.5
        weights = logits.masked_fill(outside, -torch.inf).softmax(-1)
        return (weights.unsqueeze(-2) * values).sum(-1)

    compiled = torch.compile(formula, dynamic=False)
    return lambda: compiled(q, k, v)  # type: ignore[no-any-return]


def masked(q: Tensor, k: Tensor, v: Tensor) -> Run:
    time = torch.arange(q.shape[2])
    allowed = (time[:, None] - time).abs() <= RADIUS
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def measure(steps: int) -> list[Measurement]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, steps, HEADS, WIDTH).transpose(1, 2) for _ in range(3))
    everything, quarter = torch.ones(1, steps, dtype=torch.bool), clustered_depth(0.25, steps) > 0
    with torch.no_grad():
        runs: dict[str, Run] = {
            "tzn": lambda: ops.local_attention(q, k, v, WINDOW),
            "tzn, 25 % active": lambda: ops.local_attention(q, k, v, WINDOW, query_mask=quarter),
            "tzn, 25 % active, packed": packed(q, k, v, quarter),
            "FlexAttention": flex(q, k, v, everything),
            "FlexAttention, 25 % active": flex(q, k, v, quarter),
            "SDPA, chunks of 32": chunks(q, k, v),
            "unfold, Inductor": unfolded(q, k, v),
        }
        everywhere = runs["tzn"]()
        parity.same("tzn and its definition", everywhere, parity.by_definition(runs["tzn"]), **SAME)

        def wanted(name: str) -> Tensor:
            if "packed" in name:
                return everywhere[0].transpose(0, 1)[quarter[0]]
            return everywhere * quarter[:, None, :, None] if "25" in name else everywhere

        seconds = medians(parity.checked(runs, wanted, **SAME))
        if steps <= MASKED_UP_TO:  # in a rotation of its own: it leaves nothing of the others in the caches
            beside = {"tzn, beside a dense mask": runs["tzn"], "SDPA, dense mask": masked(q, k, v)}
            seconds |= medians(parity.checked(beside, everywhere, **SAME))
    at = {name: found["median"] for name, found in seconds.items()}
    full, part, rows = at["tzn"], at["tzn, 25 % active"], at["tzn, 25 % active, packed"]
    fastest = min(("SDPA, chunks of 32", "unfold, Inductor", "FlexAttention"), key=lambda name: at[name])
    moved, operations = 4 * q.numel() * 4, 4 * steps * WINDOW * HEADS * WIDTH
    ceiling = gigabytes_per_second(moved)
    rate = moved / full / 1e9
    goals = [
        Goal(f"faster than the fastest peer ({fastest})", at[fastest] / full, 1.5, 2.5),
        Goal("faster than FlexAttention", at["FlexAttention"] / full, 5, 10),
        Goal("25 % active, packed: share of the full time", rows / full, 0.32, 0.26, below=True),
        Goal("25 % active, packed: faster than FlexAttention", at["FlexAttention, 25 % active"] / rows, 6, 10),
        Goal("25 % active, zeros for the others: share of the full time", part / full, 0.32, 0.26, below=True),
        Goal("25 % active, zeros for the others: than FlexAttention", at["FlexAttention, 25 % active"] / part, 6, 10),
    ]
    if steps <= MASKED_UP_TO:
        ratio = at["SDPA, dense mask"] / at["tzn, beside a dense mask"]
        goals.insert(2, Goal("faster than SDPA with a dense mask", ratio, 25, 50))
    roofline = (
        f"{rate:.0f} GB/s of {ceiling:.0f} that a copy of as many bytes reaches ({rate / ceiling:.0%}); "
        f"{operations / full / 1e9:.0f} GFLOP/s"
    )
    return [Measurement(f"windowed attention, T = {steps}, 4 heads of 128, window 19", seconds, goals, roofline)]

"""Medians of the ops beside their peers in one run, and against ceilings measured in it.

Ours come first, peers that need a compiler last. Attention: SDPA with the band as a dense mask, FlexAttention compiled with a
block mask (of the window and of the active queries), NATTEN and flash-attention where installed. Blocks: an ordinary block in
overlapping chunks, eager and compiled. Suppression: on the device against the CPU's kernels. Bytes are those of
``tzn/kernels/README.md``. Of CUDA graphs there are two times: among calls of itself, as in inference, and with L2 emptied.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.stage import WIDTH, WINDOW, Case, Stage, clustered_gate, stage
from benchmarks.lib import parity
from benchmarks.peers.dense_block import dense_block
from tzn import ops
from tzn.nn import VariableDepthBlock

RADIUS = WINDOW // 2


def ceilings(s: Stage) -> dict[str, float]:
    """TFLOP/s of a large 16-bit product and TB/s of a large copy, on random data."""
    size, length = s.pick((8192, 2**29), (64, 2**10))
    a, b = (torch.randn(size, size, device=s.device).to(s.low) for _ in range(2))
    product = s.milliseconds(lambda: a @ b)
    source = torch.empty(length, dtype=torch.float32, device=s.device).normal_()
    target = torch.empty_like(source)
    copy = s.milliseconds(lambda: target.copy_(source))
    return {"tflops": 2 * size**3 / product / 1e9, "tb_per_second": 8 * length / copy / 1e9}


def flex(s: Stage, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> Callable[[], Tensor]:
    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j <= RADIUS) & (j - i <= RADIUS) & query[b, i]

    batch, _, steps, _ = q.shape
    blocks = create_block_mask(inside, batch, None, steps, steps, device=str(s.device))
    run = flex_attention if s.dry else torch.compile(flex_attention, dynamic=False)
    return lambda: run(q, k, v, block_mask=blocks)


def sdpa(s: Stage, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> Callable[[], Tensor]:
    time = torch.arange(q.shape[2], device=s.device)
    allowed = (time[:, None] - time).abs() <= RADIUS
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def flash(s: Stage, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> Callable[[], Tensor]:
    from flash_attn import flash_attn_func

    rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return lambda: flash_attn_func(*rows, window_size=(RADIUS, RADIUS)).transpose(1, 2)


def natten(s: Stage, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> Callable[[], Tensor]:
    from natten import na1d

    rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return lambda: na1d(*rows, kernel_size=WINDOW).transpose(1, 2)


PEERS = {"SDPA, band mask": sdpa, "flash-attention": flash, "NATTEN": natten, "FlexAttention": flex}
NEEDS = {"flash-attention": "flash_attn", "NATTEN": "natten"}


class Rows(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    query: Tensor  # [B, T] bool
    chosen: Tensor | None  # the same, None where every query is chosen


def attention_rows(s: Stage, batch: int, steps: int, share: float) -> Rows:
    heads, width = s.pick((4, 128), (2, 16))
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, heads, steps, width, device=s.device).to(s.low) for _ in range(3))
    query = clustered_gate(batch, steps, share, s.device) > 0
    return Rows(q, k, v, query, None if share == 1 else query)


@torch.no_grad()
def attention(s: Stage, batch: int, steps: int, share: float) -> dict[str, float]:
    q, k, v, query, chosen = attention_rows(s, batch, steps, share)

    def ours() -> Tensor:
        return ops.local_attention(q, k, v, WINDOW, query_mask=chosen)

    s.same("attention", ours, lambda: parity.by_definition(ours), rtol=3e-2, atol=3e-2)
    found = s.graphed(ours)
    heads, width = q.shape[1], q.shape[3]
    active, halo = query.sum().item(), F.max_pool1d(query.float(), WINDOW, 1, RADIUS).sum().item()
    moved = (2 * active + 2 * halo) * heads * width * q.element_size()
    rates = {"tb_per_second": moved, "tflops": 4 * active * WINDOW * heads * width}
    return {**found, **{name: amount / found["milliseconds"] / 1e9 for name, amount in rates.items()}}


def attention_training(s: Stage, batch: int, steps: int, share: float) -> dict[str, float]:
    q, k, v, _, chosen = attention_rows(s, batch, steps, share)
    leaves, grad = [x.requires_grad_() for x in (q, k, v)], torch.randn_like(q)

    def step() -> Any:
        return torch.autograd.grad(ops.local_attention(*leaves, WINDOW, query_mask=chosen), leaves, grad)

    return s.graphed(step)


@torch.no_grad()
def attention_peer(s: Stage, batch: int, steps: int, share: float, name: str) -> dict[str, float]:
    q, k, v, query, chosen = attention_rows(s, batch, steps, share)
    run = PEERS[name](s, q, k, v, query)
    # A peer that computes something else is no peer; NATTEN shifts windows at the ends, so look inside.
    seen = query[:, None, :, None].clone()
    seen[:, :, :WINDOW] = seen[:, :, -WINDOW:] = False
    wanted = partial(ops.local_attention, q, k, v, WINDOW, query_mask=chosen)
    s.same(name, lambda: run() * seen, lambda: wanted() * seen, rtol=3e-2, atol=3e-2)
    return s.graphed(run)


def block_inputs(s: Stage, batch: int, steps: int) -> tuple[Tensor, ops.BlockWeights]:
    width = s.pick(WIDTH, 32)
    torch.manual_seed(0)
    module = VariableDepthBlock(width, s.pick(4, 2), WINDOW).to(s.device).to(s.low)
    x = torch.randn(batch, steps, width, device=s.device).to(s.low)
    return x, ops.BlockWeights(*(w.detach() for w in module.weights()))


def products(x: Tensor) -> int:
    """Operations of a block with every token active."""
    width = x.shape[2]
    return 2 * x.shape[0] * x.shape[1] * (4 * width**2 + 8 * width**2 + 2 * WINDOW * width)


@torch.no_grad()
def block(s: Stage, batch: int, steps: int, share: float) -> dict[str, float]:
    x, weights = block_inputs(s, batch, steps)
    gate = clustered_gate(batch, steps, share, s.device)

    def run() -> Tensor:
        return ops.variable_depth_block(x, gate, weights)

    s.same("block", run, lambda: parity.by_definition(run), rtol=5e-2, atol=5e-2)
    found = s.graphed(run)
    return {**found, "tflops": share * products(x) / found["milliseconds"] / 1e9}


def block_training(s: Stage, batch: int, steps: int, share: float) -> dict[str, float]:
    x, weights = block_inputs(s, batch, steps)
    gate = clustered_gate(batch, steps, share, s.device)
    leaves, grad = [x.requires_grad_(), *(w.clone().requires_grad_() for w in weights)], torch.randn_like(x)

    def step() -> Any:
        out = ops.variable_depth_block(leaves[0], gate, ops.BlockWeights(*leaves[1:]))
        return torch.autograd.grad(out, leaves, grad)

    return s.graphed(step)


@torch.no_grad()
def block_peer(s: Stage, batch: int, steps: int, compiled: bool) -> dict[str, float]:
    x, weights = block_inputs(s, batch, steps)
    run = s.compiled(dense_block) if compiled else dense_block
    s.same("block", lambda: run(x, weights), lambda: ops.variable_depth_block(x, None, weights), rtol=5e-2, atol=5e-2)
    found = s.graphed(lambda: run(x, weights))
    return {**found, "tflops": products(x) / found["milliseconds"] / 1e9}


def suppression(s: Stage, number: int, on_cpu: bool) -> dict[str, float]:
    """One recording's candidates of 20 classes; the CPU's time includes the way there, as it would in use."""
    generator = torch.Generator().manual_seed(number)
    start, length, score = torch.rand(3, number, generator=generator)
    home = torch.stack([2304 * start, 2304 * start + 1 + 40 * length], dim=1), score
    given = [x.to(s.device) for x in (*home, torch.randint(20, (number,), generator=generator))]

    def there() -> tuple[Tensor, ...]:
        return ops.batched_nms(*given, 0.1, 0.001, s.pick(200, 5), voting_thresh=0.0)

    def here() -> tuple[Tensor, ...]:
        with parity.backend("auto"):
            return ops.batched_nms(*(x.cpu() for x in given), 0.1, 0.001, s.pick(200, 5), voting_thresh=0.0)

    run = here if on_cpu else there
    s.same("suppression", lambda: [x.cpu() for x in run()], lambda: list(here()), rtol=1e-5, atol=1e-3)
    return {"milliseconds": s.milliseconds(run)}


def shapes(s: Stage) -> list[dict[str, Any]]:
    chosen = s.pick([(1, 2304), (1, 9216), (1, 18432), (8, 2304)], [(1, 128)])
    return [{"batch": batch, "steps": steps} for batch, steps in chosen]


def ceiling_cases(s: Stage) -> list[Case]:
    return [Case({"op": "ceilings"}, lambda: ceilings(s), compiles=False)]


def suppression_cases(s: Stage) -> list[Case]:
    cpu = f"CPU, {'compiled kernels' if ops.backends()['cpp'] == 'available' else 'reference'}"
    return [
        Case(
            {"op": "soft-NMS", "candidates": number, "row": cpu if on_cpu else f"tzn, {s.device.type}"},
            partial(suppression, s, number, on_cpu), compiles=False,
        )
        for number in s.pick((2000, 12000), (25,))
        for on_cpu in (False, True)
    ]  # fmt: skip


def attention_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": "attention", **at, "active": share, "row": row}, partial(run, s, **at, share=share))
        for row, run in (("tzn", attention), ("tzn, forward and backward", attention_training))
        for at in shapes(s)
        for share in (1.0, 0.25)
    ]


def block_cases(s: Stage) -> list[Case]:
    shares = s.pick((1.0, 0.75, 0.5, 0.25, 0.1), (1.0, 0.25))
    rows = (("tzn", block, shares), ("tzn, forward and backward", block_training, shares[::2]))
    return [
        Case({"op": "block", **at, "active": share, "row": row}, partial(run, s, **at, share=share))
        for row, run, wanted in rows
        for at in shapes(s)
        for share in wanted
    ]


def peer_cases(s: Stage, compiled: bool) -> list[Case]:
    """A dense mask grows with the square of the length; a peer that is not installed has no row."""
    found = []
    for at in shapes(s):
        what = {"op": "block", **at, "active": 1.0, "row": f"dense, {'compiled' if compiled else 'eager'}"}
        found.append(Case(what, partial(block_peer, s, **at, compiled=compiled), compiles=False))
        for name in PEERS:
            missing = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
            if missing or (name == "FlexAttention") != compiled or (name.startswith("SDPA") and at["steps"] > 9216):
                continue
            for share in (1.0, 0.25) if compiled else (1.0,):
                what = {"op": "attention", **at, "active": share, "row": name}
                found.append(Case(what, partial(attention_peer, s, **at, share=share, name=name), compiles=False))
    return found


GROUPS = [
    ("ceilings", ceiling_cases),
    ("attention", attention_cases),
    ("blocks", block_cases),
    ("suppression", suppression_cases),
    ("eager peers", partial(peer_cases, compiled=False)),
    ("compiled peers", partial(peer_cases, compiled=True)),
]


def main() -> int:
    return stage("op_times", __doc__).run(GROUPS)


if __name__ == "__main__":
    sys.exit(main())

"""Second stage: medians of the ops beside their peers in one run, and against ceilings measured in it.

Attention: FlexAttention compiled with a block mask (of the window and of the active queries), NATTEN and flash-attention
where installed, SDPA with a dense mask. Blocks: an ordinary block in overlapping chunks, eager and compiled. Suppression: on
the device against the CPU's kernels. Bytes are those of ``tzn/kernels/README.md``; times are CUDA-event medians.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.stage import WIDTH, WINDOW, Stage, clustered_gate, stage
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


PEERS = {"FlexAttention": flex, "SDPA, dense mask": sdpa, "flash-attention": flash, "NATTEN": natten}
NEEDS = {"flash-attention": "flash_attn", "NATTEN": "natten"}


def attention(s: Stage, batch: int, steps: int, share: float) -> None:
    heads, width = s.pick((4, 128), (2, 16))
    q, k, v = (torch.randn(batch, heads, steps, width, device=s.device).to(s.low) for _ in range(3))
    query = clustered_gate(batch, steps, share, s.device) > 0
    chosen = None if share == 1 else query
    what = {"op": "attention", "batch": batch, "steps": steps, "active": share}
    halo = F.max_pool1d(query.float(), WINDOW, 1, RADIUS).sum().item()
    row_bytes = heads * width * q.element_size()
    active = query.sum().item()
    ours = lambda: ops.local_attention(q, k, v, WINDOW, query_mask=chosen)  # noqa: E731

    def forward() -> dict[str, float]:
        found = s.milliseconds(s.graphed(ours))
        moved = (2 * active + 2 * halo) * row_bytes
        work = 4 * active * WINDOW * heads * width
        return {"milliseconds": found, "tb_per_second": moved / found / 1e9, "tflops": work / found / 1e9}

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    grad = torch.randn_like(q)

    def training() -> dict[str, float]:
        def step() -> Any:
            return torch.autograd.grad(ops.local_attention(*leaves, WINDOW, query_mask=chosen), leaves, grad)

        return {"milliseconds": s.milliseconds(step)}

    with torch.no_grad():
        s.guarded({**what, "row": "tzn"}, forward)
        wanted = ours()
        parity.same("attention", wanted, parity.by_definition(ours), rtol=3e-2, atol=3e-2)
        for name, make in PEERS.items():
            missing = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
            too_large = name.startswith("SDPA") and steps > 2304
            if missing or too_large:
                continue

            def peer(make: Callable[..., Any] = make, name: str = name) -> dict[str, float]:
                run = make(s, q, k, v, query)
                # A peer that computes something else is no peer; NATTEN shifts windows at the ends, so look inside.
                seen = query[:, None, :, None].clone()
                seen[:, :, :WINDOW] = seen[:, :, -WINDOW:] = False
                parity.same(name, run() * seen, wanted * seen, rtol=3e-2, atol=3e-2)
                return {"milliseconds": s.milliseconds(s.graphed(run))}

            s.guarded({**what, "row": name}, peer)
    s.guarded({**what, "row": "tzn, forward and backward"}, training)


def blocks(s: Stage, batch: int, steps: int) -> None:
    width = s.pick(WIDTH, 32)
    torch.manual_seed(0)
    module = VariableDepthBlock(width, s.pick(4, 2), WINDOW).to(s.device).to(s.low)
    weights = ops.BlockWeights(*(w.detach() for w in module.weights()))
    x = torch.randn(batch, steps, width, device=s.device).to(s.low)
    products = 2 * batch * steps * (4 * width**2 + 8 * width**2 + 2 * WINDOW * width)
    what = {"op": "block", "batch": batch, "steps": steps}
    for share in s.pick((1.0, 0.75, 0.5, 0.25, 0.1), (1.0, 0.25)):
        gate = clustered_gate(batch, steps, share, s.device)

        def ours(gate: Tensor = gate, share: float = share) -> dict[str, float]:
            def run() -> Tensor:
                return ops.variable_depth_block(x, gate, weights)

            with torch.no_grad():
                parity.same("block", run(), parity.by_definition(run), rtol=5e-2, atol=5e-2)
                found = s.milliseconds(s.graphed(run))
            return {"milliseconds": found, "tflops": share * products / found / 1e9}

        def training(gate: Tensor = gate) -> dict[str, float]:
            leaves = [x.clone().requires_grad_(), *(w.clone().requires_grad_() for w in weights)]
            grad = torch.randn_like(x)

            def step() -> Any:
                out = ops.variable_depth_block(leaves[0], gate, ops.BlockWeights(*leaves[1:]))
                return torch.autograd.grad(out, leaves, grad)

            return {"milliseconds": s.milliseconds(step)}

        s.guarded({**what, "row": "tzn", "active": share}, ours)
        s.guarded({**what, "row": "tzn, forward and backward", "active": share}, training)

    def peer(run: Callable[..., Tensor]) -> dict[str, float]:
        with torch.no_grad():
            parity.same("block", run(x, weights), ops.variable_depth_block(x, None, weights), rtol=5e-2, atol=5e-2)
            found = s.milliseconds(s.graphed(lambda: run(x, weights)))
        return {"milliseconds": found, "tflops": products / found / 1e9}

    s.guarded({**what, "row": "dense, eager", "active": 1.0}, lambda: peer(dense_block))
    s.guarded({**what, "row": "dense, compiled", "active": 1.0}, lambda: peer(s.compiled(dense_block)))


def suppression(s: Stage, number: int) -> None:
    """One recording's candidates of 20 classes; the CPU's time includes the way there, as it would in use."""
    start = 2304 * torch.rand(number)
    given = torch.stack([start, start + 1 + 40 * torch.rand(number)], dim=1), torch.rand(number)
    given = tuple(x.to(s.device) for x in (*given, torch.randint(20, (number,))))
    what = {"op": "soft-NMS", "candidates": number}

    def on_device() -> tuple[Tensor, ...]:
        return ops.batched_nms(*given, 0.1, 0.001, s.pick(200, 5), voting_thresh=0.0)

    def on_cpu() -> tuple[Tensor, ...]:
        with parity.backend("auto"):
            return ops.batched_nms(*(x.cpu() for x in given), 0.1, 0.001, s.pick(200, 5), voting_thresh=0.0)

    def row(run: Callable[[], tuple[Tensor, ...]]) -> dict[str, float]:
        parity.same("suppression", [x.cpu() for x in run()], list(on_cpu()), rtol=1e-5, atol=1e-3)
        return {"milliseconds": s.milliseconds(run)}

    s.guarded({**what, "row": f"tzn, {s.device.type}"}, lambda: row(on_device))
    cpu = ops.backends()["cpp"] == "available"
    s.guarded({**what, "row": f"CPU, {'compiled kernels' if cpu else 'reference'}"}, lambda: row(on_cpu))


def main() -> None:
    s = stage("op_times", __doc__)
    s.guarded({"op": "ceilings"}, lambda: ceilings(s))
    for number in s.pick((2000, 12000), (25,)):
        suppression(s, number)
    for batch, steps in s.pick([(1, 2304), (1, 18432), (8, 2304)], [(1, 128)]):
        for share in (1.0, 0.25):
            attention(s, batch, steps, share)
        blocks(s, batch, steps)


if __name__ == "__main__":
    main()

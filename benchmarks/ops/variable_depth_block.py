"""The variable-depth block: what skipped tokens save, and training against an ordinary dense block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib import parity
from benchmarks.lib.contenders import clustered_depth
from benchmarks.lib.goals import Goal, Measurement
from benchmarks.lib.timing import medians
from benchmarks.peers.dense_block import dense_block
from tzn import ops
from tzn.nn import VariableDepthBlock
from tzn.profiling import count_multiply_adds

HEADS, WIDTH, WINDOW = 4, 512, 19
SHARES = (1.0, 0.75, 0.5, 0.25)


def measure(steps: int, peak: float) -> list[Measurement]:
    torch.manual_seed(0)
    block = VariableDepthBlock(WIDTH, HEADS, WINDOW).eval()
    weights = ops.BlockWeights(*(w.detach() for w in block.weights()))
    x, mask = torch.randn(1, steps, WIDTH), torch.ones(1, steps, dtype=torch.bool)
    gates = {share: clustered_depth(share, steps) for share in SHARES}
    forward: dict[str, Callable[[], Tensor]] = {
        f"tzn, {share:.0%} active": lambda gate=gate: ops.variable_depth_block(x, gate, weights, mask=mask)
        for share, gate in gates.items()
    }
    forward["dense, eager"] = lambda: dense_block(x, weights)
    with torch.no_grad():
        seconds = medians(parity.checked(forward, lambda name: by_definition(forward, name), rtol=1e-4, atol=1e-4))
        work = {share: count_multiply_adds(lambda gate=gate: block(x, mask, gate))[1] for share, gate in gates.items()}
    at = {share: seconds[f"tzn, {share:.0%} active"]["median"] for share in SHARES}
    goals = [
        Goal(
            f"{share:.0%} active: saved time over saved multiply-adds",
            (1 - at[share] / at[1.0]) / (1 - work[share] / work[1.0]), 0.9, 1.0,
        )
        for share in SHARES[1:]
    ]  # fmt: skip
    rate = 2 * work[1.0] / at[1.0] / 1e9
    roofline = f"{rate:.0f} GFLOP/s of {peak:.0f} that a large product reaches ({rate / peak:.0%})"
    name = f"variable-depth block, width 512, T = {steps}"
    return [Measurement(name + ", forward", seconds, goals, roofline), training(name, x, weights, gates)]


def by_definition(runs: dict[str, Callable[[], Any]], name: str) -> Any:
    """What a run is to give; the dense block: what the block gives with every token active."""
    return parity.by_definition(runs[name if name.startswith("tzn") else "tzn, 100% active"])


def training(name: str, x: Tensor, weights: ops.BlockWeights, gates: dict[float, Tensor]) -> Measurement:
    leaves = [part.clone().requires_grad_() for part in (x, *weights)]
    direction = torch.randn_like(x)

    def step(block: Callable[[Tensor, ops.BlockWeights], Tensor]) -> Callable[[], Any]:
        def run() -> Any:
            return torch.autograd.grad(block(leaves[0], ops.BlockWeights(*leaves[1:])), leaves, direction)

        return run

    runs = {
        f"tzn, {share:.0%} active": step(lambda x, w, gate=gate: ops.variable_depth_block(x, gate, w))
        for share, gate in gates.items()
    }
    runs["dense, eager"] = step(dense_block)
    for name_of_run, run in runs.items():
        for ours, wanted in zip(run(), by_definition(runs, name_of_run), strict=True):
            parity.same(name_of_run, ours, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    seconds = medians(runs)
    ratio = seconds["dense, eager"]["median"] / seconds["tzn, 100% active"]["median"]
    return Measurement(
        name + ", forward and backward", seconds, [Goal("100 % active: speed against dense autograd", ratio, 1.0, 1.2)]
    )

"""Last stage: times the candidate tile sizes of every kernel and writes a ``configs.json`` that the package can ship.

``configs.json`` in the output folder is the shipped file with this machine's architecture filled in: copy it over
``tzn/kernels/configs.json``. Before and after are timed in the same run.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.stage import WIDTH, WINDOW, Stage, clustered_gate, stage
from benchmarks.lib import parity
from tzn import ops
from tzn.files import atomic_write
from tzn.kernels import _launch as launch
from tzn.nn import VariableDepthBlock


def attention(s: Stage, dtype: torch.dtype, width: int, steps: int) -> Callable[[], Any]:
    heads = s.pick(max(WIDTH // width, 1), 2)
    leaves = [torch.randn(1, heads, steps, width, device=s.device).to(dtype).requires_grad_() for _ in range(3)]
    grad, query = torch.randn_like(leaves[0]), clustered_gate(1, steps, 0.5, s.device) > 0
    return lambda: torch.autograd.grad(ops.local_attention(*leaves, WINDOW, query_mask=query), leaves, grad)


def block(s: Stage, dtype: torch.dtype, width: int, steps: int) -> Callable[[], Any]:
    heads, channels = s.pick((WIDTH // width, WIDTH), (2, 32))
    module = VariableDepthBlock(channels, heads, WINDOW).to(s.device).to(dtype)
    x = torch.randn(1, steps, channels, device=s.device).to(dtype).requires_grad_()
    leaves, grad, gate = [x, *module.parameters()], torch.randn_like(x), clustered_gate(1, steps, 0.5, s.device)
    mask = gate >= 0
    return lambda: torch.autograd.grad(module(x, mask, gate), leaves, grad)


def merged(shipped: dict[str, Any], tuned: dict[str, launch.Config]) -> dict[str, Any]:
    """The shipped table with what was found: keys "<architecture> <kernel> <bits>/<width>"."""
    table = copy.deepcopy(shipped)
    for key, config in tuned.items():
        arch, kernel, entry = key.split(" ")
        table[arch][kernel][entry] = config
    for kernels in table.values():
        for kernel, entries in kernels.items():
            kernels[kernel] = dict(sorted(entries.items(), key=lambda item: (item[0][:2], int(item[0].split("/")[1]))))
    return table


def text(table: dict[str, Any]) -> str:
    """One configuration per line, as in the package."""
    parts = []
    for arch, kernels in table.items():
        inner = []
        for kernel, entries in kernels.items():
            lines = ",\n".join(f'   "{entry}": {json.dumps(config)}' for entry, config in entries.items())
            inner.append(f'  "{kernel}": {{\n{lines}\n  }}')
        parts.append(f' "{arch}": {{\n' + ",\n".join(inner) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    s = stage("autotune", __doc__)
    shipped = launch._table("configs.json")
    cases = [
        (name, make, dtype, width, steps)
        for steps in s.pick((2304, 18432), (40,))
        for dtype in s.pick((torch.bfloat16, torch.float32), (torch.float32,))
        for name, make in (("block", block), ("attention", attention))
        for width in s.pick((128,) if name == "block" else (64, 128), (16,))
    ]
    for name, make, dtype, width, steps in cases:

        def run(make: Any = make, dtype: torch.dtype = dtype, width: int = width, steps: int = steps) -> dict[str, Any]:
            call = make(s, dtype, width, steps)
            os.environ.pop("TZN_AUTOTUNE", None)
            before = s.milliseconds(call)
            wanted = call()
            os.environ["TZN_AUTOTUNE"] = "1"
            for ours, theirs in zip(call(), wanted, strict=True):
                parity.same("tuned and shipped", ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
            return {"shipped_milliseconds": before, "tuned_milliseconds": s.milliseconds(call)}

        s.guarded({"op": name, "dtype": str(dtype), "width": width, "steps": steps}, run)
        with atomic_write(s.out / "configs.json") as file:
            file.write(text(merged(shipped, launch.TUNED)))


if __name__ == "__main__":
    main()

"""Times the candidate tile sizes of every kernel and writes a ``configs.json`` that the package can ship.

``configs.json`` in the output folder is the shipped file with this machine's architecture filled in: copy it over
``tzn/kernels/configs.json``. Each kernel is tuned by its own name, among calls of itself in a CUDA graph (L2 is warm there
as it is in inference). Before and after are timed in the same run.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.stage import WIDTH, WINDOW, Case, Stage, clustered_gate, stage
from benchmarks.lib.contenders import CLASSES, INPUT_DIM, LAYERS
from tzn import ops
from tzn.files import atomic_write
from tzn.kernels import _launch as launch
from tzn.models import TemporalZoomNet, TemporalZoomNetConfig
from tzn.nn import BoundaryDistanceHead, VariableDepthBlock


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


def network(s: Stage, dtype: torch.dtype, width: int, steps: int) -> Callable[[], Any]:
    """Inference: the layers around the blocks, and blocks of every level's length. Dry: a head alone."""
    mask = torch.ones(1, steps, dtype=torch.bool, device=s.device)
    if s.dry:
        head = BoundaryDistanceHead(width, 2, width, 1).to(dtype)
        rows = torch.randn(1, steps, width).to(dtype)
        return torch.no_grad()(lambda: [x.contiguous() for x in head(rows, mask)])
    config = TemporalZoomNetConfig(
        input_dim=INPUT_DIM, num_classes=CLASSES, refinement_layers=LAYERS, width=WIDTH, num_heads=WIDTH // width
    )
    model = TemporalZoomNet(config).eval().to(s.device).to(dtype)
    features = torch.randn(1, steps, INPUT_DIM, device=s.device).to(dtype)

    def run() -> list[Any]:
        points = model.points(features, mask)
        fields = () if points.fields is None else points.fields()
        return [points.scores, *points.offsets(), *fields]

    return torch.no_grad()(run)


def merged(shipped: dict[str, Any], tuned: dict[str, launch.Config]) -> dict[str, Any]:
    """The shipped table with what was found: keys "<architecture> <kernel> <bits>/<width>"."""
    table = copy.deepcopy(shipped)
    for key, config in tuned.items():
        arch, kernel, entry = key.split(" ")
        own = table[arch].setdefault(kernel, copy.deepcopy(table[arch].get(launch.FAMILIES.get(kernel, ""), {})))
        own[entry] = config
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


def tune(s: Stage, name: str, dtype: torch.dtype, width: int, steps: int) -> dict[str, float]:
    call = MAKERS[name](s, dtype, width, steps)
    os.environ.pop("TZN_AUTOTUNE", None)
    try:
        before = s.graphed(call)["milliseconds"]
        shipped = call()
        os.environ["TZN_AUTOTUNE"] = "1"
        s.same("tuned and shipped", call, lambda: shipped, rtol=2e-2, atol=2e-2)
        after = s.graphed(call)["milliseconds"]
    finally:
        os.environ.pop("TZN_AUTOTUNE", None)
    if not s.compiling:
        with atomic_write(s.out / "configs.json") as file:
            file.write(text(merged(launch._table("configs.json"), launch.TUNED)))
    return {"shipped_milliseconds": before, "tuned_milliseconds": after}


MAKERS = {"block": block, "attention": attention, "network": network}


def cases(s: Stage, steps: int, dry: int) -> list[Case]:
    steps = s.pick(steps, dry)
    return [
        Case({"op": name, "dtype": str(dtype).removeprefix("torch."), "width": width, "steps": steps},
             partial(tune, s, name, dtype, width, steps))
        for dtype in s.pick((torch.bfloat16, torch.float32), (torch.float32,))
        for name in MAKERS
        for width in s.pick((64, 128) if name == "attention" else (128,), (16,))
        if not (name == "attention" and steps > 2304)  # tiles of attention do not depend on the length
    ]  # fmt: skip


GROUPS = [("T = 2304", partial(cases, steps=2304, dry=40)), ("T = 18432", partial(cases, steps=18432, dry=48))]


def main() -> int:
    s = stage("autotune", __doc__)
    return s.run(GROUPS[: s.pick(2, 1)])


if __name__ == "__main__":
    sys.exit(main())

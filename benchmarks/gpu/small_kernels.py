"""Every kernel once at small, awkward shapes, for compute-sanitizer: any access outside a buffer is an error there.

usage: PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
    python -m benchmarks.gpu.small_kernels

Three shapes in 16 bits: a recording of prime length, one token past a tile in recordings of unequal length, and one active
token. Other dtypes take the same addresses.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu.stage import Case, Stage, stage
from tests.oracle import SHAPES, random_masks
from tests.small_model import build
from tzn import ops
from tzn.config import InferenceConfig
from tzn.inference.fixed import detect
from tzn.nn import VariableDepthBlock

CHOSEN = ("prime-length", "one-past-a-tile", "one-active-token")
RAN = {"result": "ran"}


def attention_and_block(
    s: Stage, batch: int, steps: int, window: int, active: float | str, lengths: object
) -> dict[str, str]:
    width, dtype = 6, s.low
    mask, query = (m.to(s.device) for m in random_masks(batch, steps, active, lengths))  # type: ignore[arg-type]
    torch.manual_seed(0)
    leaves = [torch.randn(batch, 2, steps, width, device=s.device).to(dtype).requires_grad_() for _ in range(3)]
    bias = torch.randn(2, window, device=s.device).to(dtype)
    for m, q in ((mask, query), (None, None)):
        ops.local_attention(*leaves, window, mask=m, query_mask=q, bias=bias).sum().backward()
    block = VariableDepthBlock(2 * width, 2, window).to(s.device).to(dtype)
    x = torch.randn(batch, steps, 2 * width, device=s.device).to(dtype).requires_grad_()
    block(x, mask, query.to(dtype)).sum().backward()
    return RAN


def decoding(s: Stage, steps: int, nms: str) -> dict[str, str]:
    model = build().to(s.device)
    features = torch.randn(2, steps, 7, device=s.device)
    mask = torch.ones(2, steps, dtype=torch.bool, device=s.device)
    mask[1, steps // 2 :] = False
    small = s.pick({}, {"pre_nms_topk": 8, "max_segments": 4})
    detect(model, features, mask, InferenceConfig(nms=nms, multiclass=nms != "hard", **small))
    found = ops.boundary_crossings(torch.randn(1, steps, device=s.device), torch.ones(1, steps, device=s.device))
    ops.pair_segments(found, found, torch.rand(steps, 5, device=s.device), max_ends=3, topk=50)
    return RAN


def decoding_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": "detect and pairs", "steps": steps, "nms": nms}, lambda n=steps, m=nms: decoding(s, n, m))
        for steps, nms in s.pick(((61, "soft"), (700, "hard")), ((30, "soft"),))
    ]


def shape_cases(s: Stage) -> list[Case]:
    shapes = {name: rest for name, *rest in SHAPES}
    return [
        Case({"op": "attention and block", "shape": name}, lambda n=name: attention_and_block(s, *shapes[n]))
        for name in s.pick(CHOSEN, CHOSEN[-1:])
    ]


GROUPS = [("decoding", decoding_cases), ("shapes", shape_cases)]


def main() -> int:
    return stage("small_kernels", __doc__).run(GROUPS)


if __name__ == "__main__":
    sys.exit(main())

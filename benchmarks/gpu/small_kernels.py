"""Every kernel once at small, awkward shapes, for compute-sanitizer: any access outside a buffer is an error there.

usage: PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
    python -m benchmarks.gpu.small_kernels
"""

from __future__ import annotations

import torch

from benchmarks.gpu.stage import WINDOW, stage
from tests.oracle import SHAPES, random_masks
from tests.small_model import build
from tzn import ops
from tzn.config import InferenceConfig
from tzn.inference.fixed import detect
from tzn.nn import VariableDepthBlock


def main() -> None:
    s = stage("small_kernels", __doc__)
    for name, batch, steps, window, active, lengths in SHAPES[:: s.pick(1, 4)]:
        mask, query = (m.to(s.device) for m in random_masks(batch, steps, active, lengths))
        for width in s.pick((6, 64), (6,)):
            for dtype in s.pick((torch.float32, torch.bfloat16), (torch.float32,)):
                torch.manual_seed(0)
                leaves = [
                    torch.randn(batch, 2, steps, width, device=s.device).to(dtype).requires_grad_() for _ in range(3)
                ]
                bias = torch.randn(2, window, device=s.device).to(dtype)
                for m, q in ((mask, query), (None, None)):
                    ops.local_attention(*leaves, window, mask=m, query_mask=q, bias=bias).sum().backward()
                block = VariableDepthBlock(2 * width, 2, window).to(s.device).to(dtype)
                x = torch.randn(batch, steps, 2 * width, device=s.device).to(dtype).requires_grad_()
                block(x, mask, query.to(dtype)).sum().backward()
        s.record(shape=name, result="ran")
    model = build().to(s.device)
    for steps, nms in s.pick(((61, "soft"), (700, "linear"), (60, "hard")), ((30, "soft"),)):
        features, mask = (
            torch.randn(2, steps, 7, device=s.device),
            torch.ones(2, steps, dtype=torch.bool, device=s.device),
        )
        mask[1, steps // 2 :] = False
        config = InferenceConfig(
            nms=nms, multiclass=nms != "hard", **s.pick({}, {"pre_nms_topk": 8, "max_segments": 4})
        )
        detect(model, features, mask, config)
        starts = ops.boundary_crossings(torch.randn(1, steps, device=s.device), torch.ones(1, steps, device=s.device))
        ops.pair_segments(starts, starts, torch.rand(steps, 5, device=s.device), max_ends=3, topk=50)
        s.record(shape=f"detect, T = {steps}, window {WINDOW}, {nms}", result="ran")
    if not s.dry:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

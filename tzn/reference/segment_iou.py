"""Definition of the overlap of segments in time."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_iou(a: Tensor, b: Tensor, kind: str = "iou") -> Tensor:
    """Intersection over union of all pairs, ``[N, 2]`` x ``[M, 2]`` -> ``[N, M]``; NaN for 0 / 0.

    "diou" subtracts the squared distance of the centres over the squared length of the hull.
    """
    start, end = a[:, None, 0], a[:, None, 1]
    overlap = (torch.minimum(end, b[None, :, 1]) - torch.maximum(start, b[None, :, 0])).clamp(min=0)
    union = (end - start) + (b[:, 1] - b[:, 0])[None] - overlap
    iou = overlap / union
    if kind == "iou":
        return iou
    hull = torch.maximum(end, b[None, :, 1]) - torch.minimum(start, b[None, :, 0])
    shift = 0.5 * (start + end) - 0.5 * (b[:, 0] + b[:, 1])[None]
    return iou - (shift / hull) ** 2

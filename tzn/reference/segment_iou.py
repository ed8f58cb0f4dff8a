"""Definition of the overlap of segments in time."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_iou(a: Tensor, b: Tensor, kind: str = "iou") -> Tensor:
    """Intersection over union of all pairs, ``[..., N, 2]`` x ``[..., M, 2]`` -> ``[..., N, M]``; NaN for 0 / 0.

    "diou" subtracts the squared distance of the centres over the squared length of the hull.
    """
    start, end = a[..., :, None, 0], a[..., :, None, 1]
    other_start, other_end = b[..., None, :, 0], b[..., None, :, 1]
    overlap = (torch.minimum(end, other_end) - torch.maximum(start, other_start)).clamp(min=0)
    union = (end - start) + (other_end - other_start) - overlap
    iou = overlap / union
    if kind == "iou":
        return iou
    hull = torch.maximum(end, other_end) - torch.minimum(start, other_start)
    shift = 0.5 * (start + end) - 0.5 * (other_start + other_end)
    return iou - (shift / hull) ** 2

"""Suppression on the compiled kernels (``csrc/cpu/nms.cpp``): the picks of ``tzn.reference``, without its passes over all."""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = {"gaussian": 0, "linear": 1, "hard": 2}
REMOVE = 3  # hard suppression: what overlaps is gone, whatever its score


def serves(segments: Tensor, scores: Tensor) -> bool:
    """Whether the kernels compute what the definition does: finite float32 or float64, scores that only fall."""
    if segments.dtype not in (torch.float32, torch.float64) or scores.dtype != segments.dtype:
        return False
    return bool(torch.ops.tzn_native.plain_candidates(segments, scores))


def soft_nms(
    segments: Tensor, scores: Tensor, *, iou_threshold: float, sigma: float, min_score: float, method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    index, score = torch.ops.tzn_native.suppress_segments(
        segments, scores, None, METHODS[method], iou_threshold, sigma, min_score, 0.0, max_seg_num
    )
    return index, score


def nms(segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float, max_seg_num: int) -> Tensor:
    index, _ = torch.ops.tzn_native.suppress_segments(
        segments, scores, None, REMOVE, iou_threshold, 1.0, 0.0, min_score, max_seg_num
    )
    return index  # type: ignore[no-any-return]


def batched_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float, max_seg_num: int, *,
    method: str, multiclass: bool, sigma: float, voting_thresh: float, per_class_voting: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    hard = method == "hard"
    index, score = torch.ops.tzn_native.suppress_segments(
        segments, scores, labels.long() if multiclass else None, REMOVE if hard else METHODS[method], iou_threshold,
        sigma, min_score, min_score if hard else 0.0, max_seg_num,
    )  # fmt: skip
    kept, kept_labels = segments[index], labels[index]
    if voting_thresh > 0 and (per_class_voting or not multiclass):
        classes = (kept_labels.long(), labels.long()) if per_class_voting else (None, None)
        kept = torch.ops.tzn_native.vote_segments(kept, segments, scores, voting_thresh, *classes)
    return kept, score, kept_labels

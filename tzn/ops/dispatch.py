"""Where each op without gradients finds its implementation: compiled kernels or the reference.

Signatures are those of ``tzn.reference``. Attention and the block, which have gradients, choose in their own files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops.backend import choose_backend
from tzn.reference import ActiveTokens, Candidates, Crossings, Segments


def _compiled(x: Tensor) -> bool:
    return choose_backend(x.device) == "cpp"


def active_tokens(gate: Tensor, window: int, mask: Tensor | None = None) -> ActiveTokens:
    if _compiled(gate):
        return ActiveTokens(*torch.ops.tzn_native.active_tokens(gate, window, mask))
    return reference.active_tokens(gate, window, mask)


def boundary_crossings(
    distance: Tensor, scale: Tensor, *, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> Crossings:
    choose_backend(distance.device)
    return reference.boundary_crossings(
        distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
    )


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    choose_backend(scores.device)
    return reference.select_candidates(scores, level, min_score=min_score, topk=topk)


def decode_segments(
    position: Tensor,
    offset: Tensor,
    offset_std: Tensor,
    starts: Crossings | None,
    ends: Crossings | None,
    *,
    snap_sigmas: float,
) -> Segments:
    choose_backend(offset.device)
    return reference.decode_segments(position, offset, offset_std, starts, ends, snap_sigmas=snap_sigmas)


def pair_segments(
    starts: Crossings, ends: Crossings, class_scores: Tensor, *, max_ends: int, topk: int
) -> tuple[Segments, Tensor, Tensor]:
    choose_backend(class_scores.device)
    return reference.pair_segments(starts, ends, class_scores, max_ends=max_ends, topk=topk)


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:
    choose_backend(segments.device)
    return reference.soft_nms(
        segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
        max_seg_num=max_seg_num,
    )  # fmt: skip


def nms(segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float, max_seg_num: int) -> Tensor:
    choose_backend(segments.device)
    return reference.nms(segments, scores, iou_threshold, min_score=min_score, max_seg_num=max_seg_num)


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    *,
    method: str,
    multiclass: bool,
    sigma: float,
    voting_thresh: float,
    per_class_voting: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    choose_backend(segments.device)
    return reference.batched_nms(
        segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
        sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
    )  # fmt: skip

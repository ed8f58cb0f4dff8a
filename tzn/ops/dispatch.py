"""Where each op without gradients finds its implementation: compiled kernels or the reference.

Signatures are those of ``tzn.reference``. Attention and the block, which have gradients, choose in their own files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzn import reference
from tzn.ops import native_cuda, native_nms, triton_decode
from tzn.ops.backend import choose_backend
from tzn.reference import ActiveTokens, Candidates, Crossings, Segments

ESTIMATORS = {"crossing": 0, "vote_mean": 1, "vote_median": 2}  # as csrc/cpu/decode.cpp numbers them


def _compiled(x: Tensor) -> bool:
    return choose_backend(x.device) == "cpp"


def _wants_gradient(*tensors: Tensor) -> bool:
    """Decoding kernels give no gradients; the reference does."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _plain(*tensors: Tensor) -> bool:
    """Whether the compiled kernels serve: one of their dtypes, and no gradient wanted."""
    one = tensors[0].dtype in (torch.float32, torch.float64) and len({x.dtype for x in tensors}) == 1
    return one and not _wants_gradient(*tensors)


def active_tokens(gate: Tensor, window: int, mask: Tensor | None = None) -> ActiveTokens:
    if _compiled(gate):
        return ActiveTokens(*torch.ops.tzn_native.active_tokens(gate, window, mask))
    if triton_decode.serves(gate, double=True):
        return triton_decode.active_tokens(gate, window, mask)
    return reference.active_tokens(gate, window, mask)


def boundary_crossings(
    distance: Tensor, scale: Tensor, *, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> Crossings:
    if _compiled(distance) and _plain(distance, scale):
        table = torch.ops.tzn_native.boundary_crossings(
            distance, scale, mask, ESTIMATORS[estimator], vote_window, min_slope
        )
        return Crossings(*table)
    if triton_decode.serves(distance, double=True) and not _wants_gradient(distance, scale):
        return triton_decode.boundary_crossings(
            distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
        )
    return reference.boundary_crossings(
        distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
    )


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    if _compiled(scores) and _plain(scores):
        return Candidates(*torch.ops.tzn_native.select_candidates(scores, level, min_score, topk))
    if triton_decode.serves(scores):
        return triton_decode.select_candidates(scores, level, min_score=min_score, topk=topk)
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
    if triton_decode.serves(offset, offset_std, double=True):
        return triton_decode.decode_segments(position, offset, offset_std, starts, ends, snap_sigmas=snap_sigmas)
    return reference.decode_segments(position, offset, offset_std, starts, ends, snap_sigmas=snap_sigmas)


def pair_segments(
    starts: Crossings, ends: Crossings, class_scores: Tensor, *, max_ends: int, topk: int
) -> tuple[Segments, Tensor, Tensor]:
    if triton_decode.serves(class_scores, starts.position, double=True):
        return triton_decode.pair_segments(starts, ends, class_scores, max_ends=max_ends, topk=topk)
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
    if native_cuda.serves(segments, scores):
        return native_cuda.soft_nms(
            segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
            max_seg_num=max_seg_num,
        )  # fmt: skip
    if _compiled(segments) and native_nms.serves(segments, scores):
        return native_nms.soft_nms(
            segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
            max_seg_num=max_seg_num,
        )  # fmt: skip
    if triton_decode.serves(segments, scores):
        return triton_decode.soft_nms(
            segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
            max_seg_num=max_seg_num,
        )  # fmt: skip
    return reference.soft_nms(
        segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
        max_seg_num=max_seg_num,
    )  # fmt: skip


def nms(
    segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float, max_seg_num: int, overlap: str
) -> Tensor:
    limits = {"min_score": min_score, "max_seg_num": max_seg_num}
    if native_cuda.serves(segments, scores) and overlap == "iou":
        return native_cuda.nms(segments, scores, iou_threshold, **limits)  # type: ignore[arg-type]
    if _compiled(segments) and native_nms.serves(segments, scores):
        return native_nms.nms(segments, scores, iou_threshold, overlap=overlap, **limits)  # type: ignore[arg-type]
    if triton_decode.serves(segments, scores) and overlap == "iou":
        return triton_decode.nms(segments, scores, iou_threshold, **limits)  # type: ignore[arg-type]
    return reference.nms(segments, scores, iou_threshold, overlap=overlap, **limits)  # type: ignore[arg-type]


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
    return_index: bool = False,
) -> tuple[Tensor, ...]:
    if native_cuda.serves(segments, scores) and method != "diou":
        return native_cuda.batched_nms(
            segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
            sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
            return_index=return_index,
        )  # fmt: skip
    if max_seg_num > 0 and _compiled(segments) and native_nms.serves(segments, scores):
        return native_nms.batched_nms(
            segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
            sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
            return_index=return_index,
        )  # fmt: skip
    if triton_decode.serves(segments, scores) and method != "diou":
        return triton_decode.batched_nms(
            segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
            sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
            return_index=return_index,
        )  # fmt: skip
    return reference.batched_nms(
        segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
        sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
        return_index=return_index,
    )  # fmt: skip


def batched_nms_many(
    segments: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, iou_threshold: float, min_score: float,
    max_seg_num: int, **settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """All recordings in one call on the compiled kernels, one after the other elsewhere; ``counts``: int64 on the CPU."""
    given = segments, scores, labels
    limits = iou_threshold, min_score, max_seg_num
    if max_seg_num > 0 and _compiled(segments) and native_nms.serves(segments, scores):
        return native_nms.batched_nms_many(*given, counts, *limits, **settings)
    parts = zip(*(x.split(counts.tolist()) for x in given), strict=True)
    found = [batched_nms(s, p, c, *limits, **settings) for s, p, c in parts]
    made = torch.tensor([len(part[1]) for part in found], dtype=torch.int64)
    if not found:
        return segments.reshape(0, 2), scores.reshape(0), labels.reshape(0), made
    return torch.cat([p[0] for p in found]), torch.cat([p[1] for p in found]), torch.cat([p[2] for p in found]), made

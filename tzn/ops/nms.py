"""Non-maximum suppression in time: hard, soft, batched over classes, with voting."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops import dispatch, library
from tzn.ops.checks import check_device, check_floating, check_shape, checks_values, fail
from tzn.ops.segment_iou import check_segments

SOFT_METHODS = ("gaussian", "linear")
OVERLAPS = ("iou", "diou")


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.1,
    sigma: float = 0.5,
    min_score: float = 0.001,
    method: str = "gaussian",
    max_seg_num: int = 0,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017) of one list of candidates, with ActionFormer's rules.

    Repeatedly takes the highest score and decays the rest by its overlap o (every length + 1e-6): Gaussian
    ``s * exp(-o^2 / sigma)`` or linear ``s * (1 - o)`` where ``o >= iou_threshold``. A decayed score below ``min_score`` is
    removed; the first pick is never tested.

    Args:
        segments: ``[N, 2]`` floating (start, end), any unit; scores: ``[N]``.
        max_seg_num: stop after so many picks; 0: no cap.

    Returns:
        (indices of the picks ``[M]`` int64, their decayed scores ``[M]``), by falling score.

    Raises:
        ValueError: wrong shape, dtype or device, NaN scores, end < start, sigma <= 0, negative threshold, unknown method.
    """
    _check(segments, scores, iou_threshold, min_score, sigma)
    if method not in SOFT_METHODS:
        fail("method", repr(method), f"one of {', '.join(SOFT_METHODS)}")
    if torch.compiler.is_compiling():
        return library.soft_nms(segments, scores, iou_threshold, sigma, min_score, method, max_seg_num)
    return dispatch.soft_nms(
        segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
        max_seg_num=max_seg_num,
    )  # fmt: skip


def nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    min_score: float = 0.0,
    max_seg_num: int = 0,
    overlap: str = "iou",
) -> Tensor:
    """Hard NMS: by falling score, drop what overlaps a kept segment by ``iou_threshold`` or more.

    Args:
        segments: ``[N, 2]`` floating (start, end); scores: ``[N]``.
        min_score: if positive, only scores above it are considered.
        max_seg_num: keep at most so many; 0: no cap.
        overlap: "iou", or "diou": less (distance of the centres / length of the hull)^2, so that of segments with the same
            IoU those with another centre are kept longer (Zheng et al. 2020). Compiled on the CPU; on a GPU the reference.

    Returns:
        Indices ``[M]`` int64 by falling score.

    Raises:
        ValueError: as :func:`soft_nms`; unknown overlap.
    """
    _check(segments, scores, iou_threshold, min_score, 1.0)
    _check_overlap(overlap)
    if torch.compiler.is_compiling():
        return library.nms(segments, scores, iou_threshold, min_score, max_seg_num, overlap)
    return dispatch.nms(segments, scores, iou_threshold, min_score=min_score, max_seg_num=max_seg_num, overlap=overlap)


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.75,
    *,
    method: str = "gaussian",
    per_class_voting: bool = False,
    overlap: str = "iou",
    return_index: bool = False,
) -> tuple[Tensor, ...]:
    """Suppress the candidates of one recording; a drop-in for ActionFormer's and OpenTAD's ``batched_nms``.

    Multi-class: each class on its own, at most ``max_seg_num`` picks each, no voting unless ``per_class_voting``.
    Class-agnostic: all together, then each kept segment becomes the mean of all candidates that overlap it by at least
    ``voting_thresh``, weighted by score times IoU (0: no voting). At last sorted by falling score and cut.

    Args:
        segments: ``[N, 2]`` floating (start, end), any unit; scores: ``[N]``; labels: ``[N]`` integer.
        iou_threshold: of hard and linear suppression; the Gaussian kind does not use it.
        min_score: soft: decayed scores below are removed; hard: scores up to it are dropped first.
        max_seg_num: number of segments returned at most.
        use_soft_nms: soft (``method`` "gaussian" or "linear") or hard.
        overlap: of hard suppression, "iou" or "diou" (:func:`nms`).
        return_index: return the index of every pick as well; not while tracing.

    Returns:
        (segments ``[M, 2]``, scores ``[M]``, labels ``[M]``), with ``return_index`` also indices ``[M]`` int64.

    Raises:
        ValueError: as :func:`soft_nms`.
    """
    kind = _checked_kind(segments, scores, labels, iou_threshold, min_score, sigma, use_soft_nms, method, overlap)
    if torch.compiler.is_compiling() and not return_index:
        return library.batched_nms(
            segments, scores, labels, iou_threshold, min_score, max_seg_num, kind, multiclass, sigma, voting_thresh,
            per_class_voting,
        )  # fmt: skip
    return dispatch.batched_nms(
        segments, scores, labels, iou_threshold, min_score, max_seg_num, method=kind,
        multiclass=multiclass, sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
        return_index=return_index,
    )  # fmt: skip


def batched_nms_many(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    counts: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.75,
    *,
    method: str = "gaussian",
    per_class_voting: bool = False,
    overlap: str = "iou",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`batched_nms` of many recordings in one call, whose candidates lie one after the other.

    On the CPU recordings run side by side on all threads. Not for tracing: the counts are read.

    Args:
        segments: ``[N, 2]`` of all recordings; scores, labels: ``[N]``; the others as in :func:`batched_nms`.
        counts: ``[R]`` int64, candidates of each recording; their sum is N.

    Returns:
        (segments ``[M, 2]``, scores ``[M]``, labels ``[M]``, counts ``[R]`` int64 on the CPU), recording by recording.

    Raises:
        ValueError: as :func:`batched_nms`; counts that are negative or do not sum to N.
    """
    kind = _checked_kind(segments, scores, labels, iou_threshold, min_score, sigma, use_soft_nms, method, overlap)
    check_shape("counts", counts, "[R]", None)
    if counts.dtype != torch.int64:
        fail("counts", str(counts.dtype), "torch.int64")
    counts = counts.cpu().contiguous()
    if bool((counts < 0).any()) or int(counts.sum()) != scores.shape[0]:
        fail(
            "counts",
            f"{counts.tolist()[:10]} with a sum of {int(counts.sum())}",
            f"none negative, sum {scores.shape[0]}",
        )
    return dispatch.batched_nms_many(
        segments, scores, labels, counts, iou_threshold, min_score, max_seg_num, method=kind,
        multiclass=multiclass, sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
    )  # fmt: skip


def _checked_kind(
    segments: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float, sigma: float,
    use_soft_nms: bool, method: str, overlap: str,
) -> str:  # fmt: skip
    """Arguments checked; which suppression they ask for: a soft method, "hard" or "diou"."""
    _check(segments, scores, iou_threshold, min_score, sigma)
    check_shape("labels", labels, f"[N] = [{scores.shape[0]}]", scores.shape[0])
    check_device("labels", labels, segments.device)
    if labels.is_floating_point() or labels.is_complex():
        fail("labels", str(labels.dtype), "an integer tensor")
    if method not in SOFT_METHODS:
        fail("method", repr(method), f"one of {', '.join(SOFT_METHODS)}")
    _check_overlap(overlap)
    if use_soft_nms and overlap != "iou":
        fail("overlap", repr(overlap), "'iou' for soft suppression; use_soft_nms=False for 'diou'")
    return method if use_soft_nms else "diou" if overlap == "diou" else "hard"


def _check_overlap(overlap: str) -> None:
    if overlap not in OVERLAPS:
        fail("overlap", repr(overlap), f"one of {', '.join(OVERLAPS)}")


def _check(segments: Tensor, scores: Tensor, iou_threshold: float, min_score: float, sigma: float) -> None:
    check_segments("segments", segments)
    check_floating("scores", scores)
    check_shape("scores", scores, f"[N] = [{segments.shape[0]}]", segments.shape[0])
    check_device("scores", scores, segments.device)
    if checks_values(scores) and bool(scores.isnan().any()):
        fail("scores", "NaN", "numbers")
    for name, value in (("iou_threshold", iou_threshold), ("min_score", min_score)):
        if not value >= 0:
            fail(name, value, ">= 0")
    if not sigma >= torch.finfo(segments.dtype).tiny:  # smaller ones round to 0, and 0 / 0 is NaN
        fail("sigma", sigma, f"> 0 in {segments.dtype}")

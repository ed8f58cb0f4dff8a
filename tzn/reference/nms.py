"""Definition of non-maximum suppression in time: hard, soft (linear, Gaussian), multi-class, with voting.

The rules are ActionFormer's (docs/actionformer.md section 13), arithmetic in the dtype of the input and in the same order.
Rows (classes) are suppressed side by side: one vectorised step per pick, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tzn.reference.segment_iou import segment_iou

EPS = 1e-6  # added to every length
LOG2_E = 1.4426950408889634
HARD = ("hard", "diou")  # methods that remove what overlaps
CHECK_EVERY = 16  # picks between looks at whether the overall cap is reached

Decay = Callable[[Tensor, Tensor], Tensor]  # (overlap, score) -> new score, -inf where the candidate is removed


class _Picks(NamedTuple):
    row: Tensor  # [M] which row
    candidate: Tensor  # [M] which of the row
    score: Tensor  # [M] when it was picked


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str = "gaussian",
    max_seg_num: int = 0,
) -> tuple[Tensor, Tensor]:
    """Repeatedly take the highest score and decay the others; returns (indices ``[M]``, decayed scores ``[M]``).

    Gaussian: ``s * exp(-o^2 / sigma)``; linear: ``s * (1 - o)`` where ``o >= iou_threshold``; hard: ``0`` there. What
    falls below ``min_score`` is removed; the first pick is never tested. ``max_seg_num`` <= 0: no cap.
    """
    decay = _decay(method, iou_threshold, sigma, min_score)
    picks = _suppress(segments[None], scores[None], decay, max_seg_num, 0)
    return picks.candidate, picks.score


def nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    min_score: float = 0.0,
    max_seg_num: int = 0,
    overlap: str = "iou",
) -> Tensor:
    """Indices ``[M]`` kept by hard suppression, by falling score; with ``min_score`` > 0 only scores above it count.

    ``overlap`` "diou": the IoU less the squared distance of the centres over the length of the hull (Zheng et al. 2020).
    """
    considered = (scores > min_score).nonzero().squeeze(1) if min_score > 0 else torch.arange(len(scores))
    considered = considered.to(scores.device)
    picks = _suppress(
        segments[considered][None], scores[considered][None], _remove(iou_threshold), max_seg_num, 0, overlap
    )
    return considered[picks.candidate]


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    *,
    method: str = "gaussian",
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.75,
    per_class_voting: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress, vote, sort by falling score, cut to ``max_seg_num``. ``method``: "gaussian", "linear", "hard" or "diou"."""
    if segments.shape[0] == 0:
        return segments.reshape(0, 2), scores.reshape(0), labels.reshape(0)
    rows = _rows(labels if multiclass else torch.zeros_like(labels), scores, min_score if method in HARD else 0.0)
    padded = torch.where(rows >= 0, scores[rows.clamp(min=0)], -torch.inf)
    decay = _remove(iou_threshold) if method in HARD else _decay(method, iou_threshold, sigma, min_score)
    overlap = "diou" if method == "diou" else "iou"
    picks = _suppress(segments[rows.clamp(min=0)], padded, decay, max_seg_num, max_seg_num, overlap)
    kept = rows[picks.row, picks.candidate]
    new_segments, new_scores, new_labels = segments[kept], picks.score, labels[kept]
    if voting_thresh > 0 and (per_class_voting or not multiclass):
        voters = labels if per_class_voting else None
        new_segments = vote_segments(new_segments, segments, scores, voting_thresh, new_labels, voters)
    order = new_scores.argsort(descending=True, stable=True)[: min(max_seg_num, new_scores.shape[0])]
    return new_segments[order], new_scores[order], new_labels[order]


def batched_nms_many(
    segments: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, *settings: float, **more: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`batched_nms` of recordings one after the other, ``counts`` ``[R]`` candidates each; ``[R]`` results each."""
    parts = zip(*(x.split(counts.tolist()) for x in (segments, scores, labels)), strict=True)
    found = [batched_nms(*part, *settings, **more) for part in parts]  # type: ignore[arg-type]
    if not found:
        return segments.reshape(0, 2), scores.reshape(0), labels.reshape(0), counts
    made = torch.tensor([len(part[1]) for part in found], device=counts.device)
    return torch.cat([p[0] for p in found]), torch.cat([p[1] for p in found]), torch.cat([p[2] for p in found]), made


def vote_segments(
    kept: Tensor, segments: Tensor, scores: Tensor, threshold: float, kept_labels: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Each kept segment becomes the mean of all candidates with IoU >= ``threshold``, weighted by score times IoU.

    With ``labels`` only candidates of the same class vote. A kept segment of no length has no IoU: its row is NaN.
    """
    iou = segment_iou(kept, segments)
    weight = (iou >= threshold).to(scores.dtype) * scores[None] * iou
    if labels is not None:
        weight = weight * (kept_labels[:, None] == labels[None])
    return (weight / weight.sum(1, keepdim=True)) @ segments


def _exp(x: Tensor) -> Tensor:
    # With two threads on a busy two-core machine torch.exp now and then took 6 to 9 ms a call, torch.exp2 never did: the
    # golden cases ran in 7.6 s instead of 25.7 s. Alone on one thread this costs about 15 %. Through float64 the result
    # stays as accurate as exp's own.
    return torch.exp2(x.double() * LOG2_E).to(x.dtype)


def _decay(method: str, iou_threshold: float, sigma: float, min_score: float) -> Decay:
    def decay(overlap: Tensor, score: Tensor) -> Tensor:
        if method == "gaussian":
            decayed = score * _exp(-(overlap * overlap) / sigma)
        else:
            weight = 1 - overlap if method == "linear" else torch.zeros_like(overlap)
            decayed = torch.where(overlap >= iou_threshold, score * weight, score)
        return torch.where(decayed < min_score, -torch.inf, decayed)

    return decay


def _remove(iou_threshold: float) -> Decay:
    return lambda overlap, score: torch.where(overlap >= iou_threshold, -torch.inf, score)


def _rows(groups: Tensor, scores: Tensor, min_score: float) -> Tensor:
    """Candidates by group as ``[R, N]`` indices in the order of the input, padded with -1."""
    considered = torch.arange(groups.shape[0], device=groups.device)
    if min_score > 0:
        considered = considered[scores > min_score]
    order = considered[groups[considered].argsort(stable=True)]
    _, row, count = groups[order].unique_consecutive(return_inverse=True, return_counts=True)
    if order.numel() == 0:
        return order.reshape(0, 0)
    column = torch.arange(order.numel(), device=groups.device) - (count.cumsum(0) - count)[row]
    padded = torch.full((count.numel(), int(count.max())), -1, dtype=torch.long, device=groups.device)
    padded[row, column] = order
    return padded


def _suppress(segments: Tensor, scores: Tensor, decay: Decay, cap: int, total: int, measure: str = "iou") -> _Picks:
    """Pick the highest score of every row, decay the rest of the row, repeat.

    Args:
        segments: ``[R, N, 2]``; scores: ``[R, N]``, -inf where there is no candidate.
        decay: how the pick lowers the others.
        cap: most picks per row (<= 0: all).
        total: stop once ``total`` picks over all rows exceed every score that is left (<= 0: never): scores only fall,
            so what follows cannot enter the best ``total``.
        measure: of overlap, "iou" or "diou".
    """
    rows, count = scores.shape
    picked_index: list[Tensor] = []
    picked_score: list[Tensor] = []
    limit = min(cap, count) if cap > 0 else count
    start, end = segments[..., 0], segments[..., 1]
    length = end - start + EPS
    live = scores.clone()
    for step in range(limit if rows else 0):
        best, index = live.max(dim=1, keepdim=True)
        if step % CHECK_EVERY == 0 and _finished(best, picked_score, total):
            break
        picked_index.append(index)
        picked_score.append(best)
        overlap = (torch.minimum(end, end.gather(1, index)) - torch.maximum(start, start.gather(1, index))).clamp(min=0)
        overlap = overlap / (length.gather(1, index) + length - overlap)
        if measure == "diou":
            overlap = overlap - _squared_distance(start, end, start.gather(1, index), end.gather(1, index))
        gone = live == -torch.inf  # stays so, whatever the decay makes of 0 * inf
        live = decay(overlap, live).masked_fill_(gone, -torch.inf).scatter_(1, index, -torch.inf)
    if not picked_index:
        nothing = torch.zeros(0, dtype=torch.long, device=scores.device)
        return _Picks(nothing, nothing, scores.new_zeros(0))
    index, score = torch.cat(picked_index, dim=1), torch.cat(picked_score, dim=1)
    row, column = (score != -torch.inf).nonzero(as_tuple=True)  # NaN, from segments with end < start, stays
    return _Picks(row, index[row, column], score[row, column])


def _squared_distance(start: Tensor, end: Tensor, picked_start: Tensor, picked_end: Tensor) -> Tensor:
    """Squared distance of the centres over the length of the hull."""
    hull = torch.maximum(end, picked_end) - torch.minimum(start, picked_start) + EPS
    apart = ((start + end) - (picked_start + picked_end)) * 0.5 / hull
    return apart * apart


def _finished(best: Tensor, picked: list[Tensor], total: int) -> bool:
    left = best.max()
    if left == -torch.inf:
        return True
    if total <= 0 or len(picked) * best.shape[0] < total:
        return False
    return bool(torch.cat(picked, dim=1).flatten().topk(total).values[-1] > left)

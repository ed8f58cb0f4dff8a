"""Definition of non-maximum suppression in time: hard, soft (linear, Gaussian), multi-class, with voting.

``soft_nms_loop`` is the rule as a reader understands it at once; below it the same in whole-array steps.
The rules are ActionFormer's (docs/actionformer.md), arithmetic in the dtype of the input and in the same order.
Rows (classes) are suppressed side by side: one vectorised step per pick, whatever the number of rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tzn.reference.segment_iou import segment_iou

EPS = 1e-6  # added to every length
LOG2_E = 1.4426950408889634
# Numbered so in csrc/suppression_rule.h. "zero" multiplies what overlaps by 0, "hard" and "diou" remove it whatever its score.
METHODS = ("gaussian", "linear", "zero", "hard", "diou")
HARD = ("hard", "diou")
VOTE_WEIGHTS = ("score_iou", "score")  # numbered so in csrc/cpu/nms.cpp
CHECK_EVERY = 16  # picks between looks at whether the overall cap is reached


class Rule(NamedTuple):
    """How candidates are suppressed and vote: the arguments of ``torch.ops.tzn.nms`` behind the candidates, in their order."""

    method: str  # of METHODS
    multiclass: bool  # each class on its own
    iou_threshold: float
    sigma: float
    min_score: float
    max_seg_num: int  # <= 0: no cap
    voting_thresh: float = 0.0  # 0: no voting
    vote_weight: str = "score_iou"  # of VOTE_WEIGHTS
    per_class_voting: bool = False

    @property
    def votes(self) -> bool:
        return self.voting_thresh > 0 and (self.per_class_voting or not self.multiclass)

    @property
    def of_kernels(self) -> tuple[int, float, float, float, float]:
        """Method, iou_threshold, sigma, min_score, and the score that candidates must exceed, as compiled kernels take them."""
        above = self.min_score if self.method in HARD else 0.0
        return METHODS.index(self.method), self.iou_threshold, self.sigma, self.min_score, above


Decay = Callable[[Tensor, Tensor], Tensor]  # (overlap, score) -> new score, -inf where the candidate is removed


class _Picks(NamedTuple):
    row: Tensor  # [M] which row
    candidate: Tensor  # [M] which of the row
    score: Tensor  # [M] when it was picked


def soft_nms_loop(
    segments: Sequence[tuple[float, float]], scores: Sequence[float], *, iou_threshold: float, sigma: float,
    min_score: float, method: str,
) -> list[tuple[int, float]]:  # fmt: skip
    """The rule, one candidate after the other, in Python's floats: (index, score when it was picked)."""
    left, picks = {i: float(s) for i, s in enumerate(scores)}, []
    while left:
        i = max(left, key=lambda k: (left[k], -k))
        picks.append((i, left.pop(i)))
        (a, b) = segments[i]
        for j in list(left):
            (c, d) = segments[j]
            inter = max(0.0, min(b, d) - max(a, c))
            overlap = inter / ((b - a + EPS) + (d - c + EPS) - inter)
            if method == "gaussian":
                left[j] *= math.exp(-overlap * overlap / sigma)
            elif overlap >= iou_threshold:
                left[j] *= 1 - overlap if method == "linear" else 0.0
            if left[j] < min_score:
                del left[j]
    return picks


def suppress(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_seg_num: int = 0,
) -> tuple[Tensor, Tensor]:
    """Picks of one recording, each class on its own (``labels`` ``[N]``, None: one class), by falling score.

    Repeatedly take the highest score and decay the others. Gaussian: ``s * exp(-o^2 / sigma)``; linear: ``s * (1 - o)`` where
    ``o >= iou_threshold``; zero: ``0`` there. What falls below ``min_score`` is removed; the first pick is never tested.
    "hard" and "diou" remove what overlaps; if ``min_score`` > 0 only scores above it count. ``max_seg_num`` <= 0: no cap.

    Returns:
        indices ``[M]``, scores when picked ``[M]``.
    """
    hard = method in HARD
    groups = torch.zeros_like(scores, dtype=torch.long) if labels is None else labels
    rows = _rows(groups, scores, min_score if hard else 0.0)
    padded = torch.where(rows >= 0, scores[rows.clamp(min=0)], -torch.inf)
    decay = _remove(iou_threshold) if hard else _decay(method, iou_threshold, sigma, min_score)
    picks = _suppress(
        segments[rows.clamp(min=0)], padded, decay, max_seg_num, 0 if labels is None else max_seg_num,
        "diou" if method == "diou" else "iou",
    )  # fmt: skip
    index, score = rows[picks.row, picks.candidate], picks.score
    if labels is not None:
        order = score.argsort(descending=True, stable=True)
        order = order[:max_seg_num] if max_seg_num > 0 else order
        index, score = index[order], score[order]
    return index, score


def soft_nms(segments: Tensor, scores: Tensor, **rule: Any) -> tuple[Tensor, Tensor]:
    """:func:`suppress` of one class; method "gaussian" unless given."""
    return suppress(segments, scores, **{"method": "gaussian", **rule})


def nms(
    segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float = 0.0, max_seg_num: int = 0,
    overlap: str = "iou",
) -> Tensor:  # fmt: skip
    """Indices ``[M]`` kept by hard suppression, by falling score; with ``min_score`` > 0 only scores above it count.

    ``overlap`` "diou": the IoU less the squared distance of the centres over the length of the hull (Zheng et al. 2020).
    """
    return suppress(
        segments, scores, method="diou" if overlap == "diou" else "hard", iou_threshold=iou_threshold, sigma=1.0,
        min_score=min_score, max_seg_num=max_seg_num,
    )[0]  # fmt: skip


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
    vote_weight: str = "score_iou",
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress, vote, sort by falling score, cut to ``max_seg_num``. ``method``: of METHODS."""
    rule = Rule(
        method, multiclass, iou_threshold, sigma, min_score, max_seg_num, voting_thresh, vote_weight, per_class_voting
    )
    index, score, kept = suppress_and_vote(segments, scores, labels, rule)
    return kept[:max_seg_num], score[:max_seg_num], labels[index][:max_seg_num]


def suppress_and_vote(
    segments: Tensor, scores: Tensor, labels: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Picks of one recording by falling score: indices, scores when picked, segments after the votes."""
    groups = labels if rule.multiclass or labels is None else torch.zeros_like(labels)
    index, score = suppress(
        segments, scores, groups, method=rule.method, iou_threshold=rule.iou_threshold, sigma=rule.sigma,
        min_score=rule.min_score, max_seg_num=rule.max_seg_num,
    )  # fmt: skip
    kept = segments[index]
    if rule.votes:
        classes = (labels[index], labels) if rule.per_class_voting and labels is not None else (None, None)
        kept = vote_segments(kept, segments, scores, rule.voting_thresh, *classes, weight=rule.vote_weight)
    return index, score, kept


def suppress_recordings(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of recordings that lie one after the other, ``counts`` ``[R]`` candidates each (None: one recording).

    The last result is the number of picks of each.
    """
    sizes = [scores.shape[0]] if counts is None else counts.tolist()
    if not sizes:
        return (
            torch.zeros_like(scores, dtype=torch.int64),
            scores.clone(),
            segments.clone(),
            torch.zeros(0, dtype=torch.int64),
        )
    classes = [None] * len(sizes) if labels is None else labels.split(sizes)
    parts = zip(segments.split(sizes), scores.split(sizes), classes, strict=True)
    own, score, kept = zip(*(suppress_and_vote(*part, rule) for part in parts), strict=True)
    index = [i + begin for i, begin in zip(own, itertools.accumulate(sizes, initial=0), strict=False)]
    return torch.cat(index), torch.cat(score), torch.cat(kept), torch.tensor([len(i) for i in index])


def best_picks(index: Tensor, score: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The best ``limit`` of tables ``[R, C, K]`` of each recording by falling score, ties by class, then order of picking.

    Returns index (-1: none) and score (-inf: none) ``[R, limit]``, all on the device.
    """
    score, order = score.flatten(1).sort(dim=1, descending=True, stable=True)
    score, order = score[:, :limit], order[:, :limit]
    return index.flatten(1).gather(1, order), score


def vote_segments(
    kept: Tensor, segments: Tensor, scores: Tensor, threshold: float, kept_labels: Tensor | None = None,
    labels: Tensor | None = None, *, weight: str = "score_iou",
) -> Tensor:  # fmt: skip
    """Each kept segment becomes the mean of all candidates with IoU >= ``threshold``, weighted by score (times IoU).

    ``kept`` ``[..., M, 2]``, ``segments`` ``[..., N, 2]``, ``scores`` ``[..., N]``. With labels only candidates of the same
    class vote. A kept segment of no length has no IoU: its row is NaN.
    """
    iou = segment_iou(kept, segments)
    votes = (iou >= threshold).to(scores.dtype) * scores[..., None, :]
    if weight == "score_iou":
        votes = votes * iou
    if labels is not None and kept_labels is not None:
        votes = votes * (kept_labels[..., :, None] == labels[..., None, :])
    return (votes / votes.sum(-1, keepdim=True)) @ segments


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
    left = scores.clone()
    for step in range(limit if rows else 0):
        best, index = left.max(dim=1, keepdim=True)
        if step % CHECK_EVERY == 0 and _finished(best, picked_score, total):
            break
        picked_index.append(index)
        picked_score.append(best)
        overlap = (torch.minimum(end, end.gather(1, index)) - torch.maximum(start, start.gather(1, index))).clamp(min=0)
        overlap = overlap / (length.gather(1, index) + length - overlap)
        if measure == "diou":
            overlap = overlap - _squared_distance(start, end, start.gather(1, index), end.gather(1, index))
        gone = left == -torch.inf  # stays so, whatever the decay makes of 0 * inf
        left = decay(overlap, left).masked_fill_(gone, -torch.inf).scatter_(1, index, -torch.inf)
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

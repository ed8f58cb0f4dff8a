"""Matching detections with ground truth, all recordings, classes and thresholds at once.

The rule of the field is sequential: detections in order of falling score each take the free ground-truth segment of
highest IoU at or above the threshold. All ground-truth segments rank detections alike (by score), so this equals
deferred acceptance (Gale and Shapley 1962): everyone proposes at once to the best segment not yet lost, each segment
keeps its highest-scoring proposer, and the rejected propose to their next. A few vectorised rounds replace the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Overlapping (detection, ground truth) pairs of the same group (recording and class)."""

    detection: np.ndarray  # [M] int64
    truth: np.ndarray  # [M] int64
    iou: np.ndarray  # [M] float64


def segment_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of matching rows of ``a`` and ``b`` ``[M, 2]``; NaN for two segments of no length at one place."""
    overlap = np.maximum(0.0, np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]))
    union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return overlap / union


def overlapping_pairs(
    segments: np.ndarray, group: np.ndarray, truth_segments: np.ndarray, truth_group: np.ndarray, min_iou: float
) -> Pairs:
    """Pairs of equal group with IoU >= ``min_iou`` (0 / 0 counts as a hit, as in the original scorer)."""
    order = np.argsort(truth_group, kind="stable")
    ranked = truth_group[order]
    first, last = np.searchsorted(ranked, group, "left"), np.searchsorted(ranked, group, "right")
    count = last - first
    detection = np.repeat(np.arange(len(segments)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    truth = order[np.repeat(first, count) + within]
    iou = segment_iou(segments[detection], truth_segments[truth])
    keep = ~(iou < min_iou)
    return Pairs(detection[keep], truth[keep], iou[keep])


def match(pairs: Pairs, rank: np.ndarray, num_truth: int, threshold: float) -> np.ndarray:
    """For each detection the ground-truth segment it takes, or -1.

    Args:
        pairs: from :func:`overlapping_pairs`.
        rank: ``[N]`` position of each detection in the order of falling score (all different).
        num_truth: number of ground-truth segments.
        threshold: least IoU.
    """
    good = ~(pairs.iou < threshold)
    detection, truth, iou = pairs.detection[good], pairs.truth[good], pairs.iou[good]
    # Per detection, its wishes by falling IoU.
    order = np.lexsort((truth, -iou, detection))
    detection, truth = detection[order], truth[order]
    proposers, wish = np.unique(detection, return_index=True)
    end = np.append(wish[1:], len(detection))
    holder = np.full(num_truth, -1)
    active = np.arange(len(proposers))
    while active.size:
        wanted = truth[wish[active]]
        candidates = np.concatenate([proposers[active], holder[holder >= 0]])
        target = np.concatenate([wanted, np.flatnonzero(holder >= 0)])
        best = np.lexsort((rank[candidates], target))
        winners = best[np.unique(target[best], return_index=True)[1]]
        holder[target[winners]] = candidates[winners]
        held = np.zeros(len(rank), dtype=bool)
        held[holder[holder >= 0]] = True
        losers = np.flatnonzero(~held[proposers] & (wish < end))
        wish[losers] += 1
        active = losers[wish[losers] < end[losers]]
    taken = np.full(len(rank), -1)
    taken[holder[holder >= 0]] = np.flatnonzero(holder >= 0)
    return taken

"""Matching detections with ground truth, all recordings, classes and thresholds at once.

The rule of the field is sequential: detections in order of falling score each take the free ground-truth segment of
highest IoU at or above the threshold. All ground-truth segments rank detections alike (by score), so this equals
deferred acceptance (Gale and Shapley 1962): everyone proposes at once to the best segment not yet refused, each segment
keeps its highest-scoring proposer, and the refused propose to their next. A few vectorised rounds replace the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_PAIRS = 1 << 21  # pairs compared at a time: bounds memory at about 150 MB whatever the number of detections


@dataclass(frozen=True, eq=False)
class Pairs:
    """Overlapping (detection, ground truth) pairs of one group (recording and class).

    Sorted by detection, then by falling IoU; of equal IoU the later ground truth first.

    Attributes:
        detection, truth: ``[M]`` int64 indices.
        iou: ``[M]`` float64; ``inf`` stands for 0 / 0, which the original scorer counts as a hit for precision.
    """

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


def segment_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU ``[M]`` of matching rows of ``a`` and ``b`` ``[M, 2]``; NaN for 0 / 0."""
    overlap = np.maximum(0.0, np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]))
    union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return overlap / union


def overlapping_pairs(
    segments: np.ndarray, group: np.ndarray, truth_segments: np.ndarray, truth_group: np.ndarray, min_iou: float
) -> Pairs:
    """Pairs of equal group with IoU >= ``min_iou`` or 0 / 0.

    Args:
        segments, truth_segments: ``[N, 2]`` and ``[G, 2]`` seconds, finite.
        group, truth_group: ``[N]`` and ``[G]`` int64.
    """
    order = np.argsort(truth_group, kind="stable")
    sorted_group = truth_group[order]
    first = np.searchsorted(sorted_group, group, "left")
    count = np.searchsorted(sorted_group, group, "right") - first
    parts = []
    for chosen in _chunks(count):
        detection = np.repeat(chosen, count[chosen])
        place = np.arange(len(detection)) - np.repeat(np.cumsum(count[chosen]) - count[chosen], count[chosen])
        truth = order[first[detection] + place]
        iou = segment_iou(segments[detection], truth_segments[truth])
        iou[np.isnan(iou)] = np.inf
        keep = iou >= min_iou
        detection, truth, iou = detection[keep], truth[keep], iou[keep]
        wishes = np.lexsort((-truth, -iou, detection))
        parts.append((detection[wishes], truth[wishes], iou[wishes]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def ordered_as_numpy_does(
    pairs: Pairs, segments: np.ndarray, group: np.ndarray, truth_segments: np.ndarray, truth_group: np.ndarray
) -> Pairs:
    """The same pairs with equal IoUs in the order of ``iou.argsort()[::-1]`` over all ground truth of the group.

    That is an unstable sort; the original scorer uses it.
    """
    truth = pairs.truth.copy()
    tied = np.flatnonzero((pairs.detection[1:] == pairs.detection[:-1]) & (pairs.iou[1:] == pairs.iou[:-1]))
    for detection in np.unique(pairs.detection[tied]):
        first, last = np.searchsorted(pairs.detection, [detection, detection + 1])
        candidates = np.flatnonzero(truth_group == group[detection])
        iou = segment_iou(segments[[detection] * len(candidates)], truth_segments[candidates])
        truth[first:last] = candidates[np.argsort(iou)[::-1][: last - first]]
    return Pairs(pairs.detection, truth, pairs.iou)


def _chunks(count: np.ndarray) -> list[np.ndarray]:
    """Consecutive indices of ``count`` whose sums stay near ``CHUNK_PAIRS``."""
    total = np.cumsum(count)
    steps = np.arange(CHUNK_PAIRS, total[-1] if total.size else 0, CHUNK_PAIRS)
    return np.split(np.arange(len(count)), np.searchsorted(total, steps))


def match(pairs: Pairs, num_detections: int, num_truth: int, thresholds: Sequence[float]) -> np.ndarray:
    """The ground-truth segment that each detection takes.

    Args:
        pairs: from :func:`overlapping_pairs`, with ``min_iou`` no higher than any threshold. Inside a group, detections
            are numbered by falling score.
        thresholds: least IoU of a match.

    Returns:
        ``[len(thresholds), num_detections]`` int64; -1 where a detection takes none (a false positive).
    """
    # Row-major over (threshold, detection): the wishes of a proposer are pairs[wish:end].
    first = np.searchsorted(pairs.detection, np.arange(num_detections))
    enough = [np.bincount(pairs.detection[pairs.iou >= t], minlength=num_detections) for t in thresholds]
    end = (first + np.stack(enough)).ravel()
    wish = np.tile(first, len(thresholds))
    holder = np.full(len(thresholds) * num_truth, num_detections)  # free: after every detection
    active = np.flatnonzero(wish < end)
    while active.size:
        threshold, detection = np.divmod(active, num_detections)
        target = threshold * num_truth + pairs.truth[wish[active]]
        before = holder[target]
        np.minimum.at(holder, target, detection)
        won = holder[target] == detection
        displaced = won & (before < num_detections)
        refused = np.concatenate([active[~won], (threshold * num_detections + before)[displaced]])
        wish[refused] += 1
        active = refused[wish[refused] < end[refused]]
    taken = np.full((len(thresholds), num_detections), -1)
    held = np.flatnonzero(holder < num_detections)
    threshold, truth = np.divmod(held, max(num_truth, 1))
    taken[threshold, holder[held]] = truth
    return taken

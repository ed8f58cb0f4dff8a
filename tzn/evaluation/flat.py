"""Detections and ground truth of all recordings laid out in flat arrays, checked and cleaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tzn.detections import Detections
from tzn.errors import DataError

MIN_LENGTH = 1e-3  # seconds: shorter ground truth is dropped
SAME_ENDS = 1e-3  # seconds: ground truth of one class with both ends this close is a duplicate
TIES = ("first", "numpy")


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth of one recording.

    Attributes:
        segments: ``[N, 2]`` seconds.
        labels: ``[N]`` int64, index into the classes.
    """

    segments: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Flat:
    """N detections sorted by (class, falling score) and G ground-truth segments in file order.

    A group is a (recording, class) pair. Detections of classes without ground truth are not here.

    Attributes:
        segments, scores, labels, group: ``[N, 2]``, ``[N]``, ``[N]``, ``[N]``.
        place: ``[N]`` position in the own group by falling score, from 0.
        std: ``[N, 2]`` seconds, standard errors of start and end, NaN where unknown.
        truth_segments, truth_labels, truth_group: ``[G, 2]``, ``[G]``, ``[G]``.
        num_classes: C.
        ties: order of equal scores and equal IoUs, see :func:`tzn.evaluation.detection_map.score_detections`.
    """

    segments: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    group: np.ndarray
    place: np.ndarray
    std: np.ndarray
    truth_segments: np.ndarray
    truth_labels: np.ndarray
    truth_group: np.ndarray
    num_classes: int
    ties: str

    def among_best(self, k: int) -> np.ndarray:
        """``[N]`` bool: among the ``k * n`` best of its group, where the group has ``n`` ground-truth segments."""
        groups, sizes = np.unique(self.truth_group, return_counts=True)
        if groups.size == 0:
            return np.zeros(len(self.group), dtype=bool)
        at = np.minimum(np.searchsorted(groups, self.group), len(groups) - 1)
        return self.place < k * np.where(groups[at] == self.group, sizes[at], 0)


def flatten(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    num_classes: int,
    ties: str = "first",
) -> Flat:
    """Check everything, drop ground truth under 1 ms and duplicates, and sort the detections.

    Args:
        ground_truth, detections: by recording id.
        ties: order of equal scores and IoUs, see :func:`tzn.evaluation.detection_map.score_detections`.

    Raises:
        DataError: shapes that do not fit, values that are not finite, labels outside ``[0, num_classes)``; names the
            recording.
        ValueError: unknown ``ties``.
    """
    if ties not in TIES:
        raise ValueError(f"ties = {ties!r}: expected one of {TIES}")
    number = {name: i for i, name in enumerate(dict.fromkeys([*ground_truth, *detections]))}
    for name, truth in ground_truth.items():
        _check(f"ground truth of {name!r}", truth.segments, truth.labels, num_classes)
    for name, found in detections.items():
        _check(f"detections of {name!r}", found.segments, found.labels, num_classes)
        _check_scores(f"detections of {name!r}", found)

    truth_segments = _stacked([t.segments for t in ground_truth.values()], (0, 2), np.float64)
    truth_labels = _stacked([t.labels for t in ground_truth.values()], (0,), np.int64)
    truth_group = _group(ground_truth, number, truth_labels, num_classes)
    keep = distinct(truth_segments, truth_group)
    truth_segments, truth_labels, truth_group = truth_segments[keep], truth_labels[keep], truth_group[keep]

    labels = _stacked([d.labels for d in detections.values()], (0,), np.int64)
    scores = _stacked([d.scores for d in detections.values()], (0,), np.float64)
    group = _group(detections, number, labels, num_classes)
    unknown = [np.full((len(d.scores), 2), np.nan) if d.std is None else d.std for d in detections.values()]
    known = np.flatnonzero(np.isin(labels, truth_labels))
    place = np.empty(len(labels), dtype=np.int64)
    place[known] = _place_in_group(group[known], scores[known], ties)
    order = known[_by_falling_score(labels[known], scores[known], ties)]
    return Flat(
        _stacked([d.segments for d in detections.values()], (0, 2), np.float64)[order],
        scores[order], labels[order], group[order], place[order], _stacked(unknown, (0, 2), np.float64)[order],
        truth_segments, truth_labels, truth_group, num_classes, ties,
    )  # fmt: skip


def distinct(segments: np.ndarray, group: np.ndarray) -> np.ndarray:
    """``[G]`` bool: at least 1 ms long, and not within 1 ms (both ends) of an earlier kept segment of its group."""
    keep = segments[:, 1] - segments[:, 0] >= MIN_LENGTH
    # Only runs of starts within 1 ms can hold duplicates: few, so the sequential rule is applied to those alone.
    order = np.flatnonzero(keep)
    order = order[np.lexsort((segments[order, 0], group[order]))]
    near = (np.diff(segments[order, 0]) <= SAME_ENDS) & (np.diff(group[order]) == 0)
    for run in np.split(order, np.flatnonzero(~near) + 1):
        if len(run) > 1:
            _drop_repeats(np.sort(run), segments, keep)
    return keep


def _drop_repeats(run: np.ndarray, segments: np.ndarray, keep: np.ndarray) -> None:
    for position, i in enumerate(run):
        earlier = run[:position][keep[run[:position]]]
        keep[i] = not (np.abs(segments[earlier] - segments[i]) <= SAME_ENDS).all(1).any()


def _by_falling_score(key: np.ndarray, scores: np.ndarray, ties: str) -> np.ndarray:
    """Indices sorted by ``key``, then by falling score."""
    if ties == "first":
        return np.lexsort((-scores, key))
    order = np.argsort(key, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    return np.concatenate([part[np.argsort(scores[part])[::-1]] for part in parts])


def _place_in_group(group: np.ndarray, scores: np.ndarray, ties: str) -> np.ndarray:
    order = _by_falling_score(group, scores, ties)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    return place


def _group(
    items: Mapping[str, GroundTruth] | Mapping[str, Detections],
    number: Mapping[str, int],
    labels: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    recording = np.repeat([number[name] for name in items], [len(item.labels) for item in items.values()])
    return recording.astype(np.int64) * num_classes + labels


def _stacked(arrays: Sequence[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    parts: list[np.ndarray] = [np.asarray(a, dtype=dtype).reshape(-1, *empty[1:]) for a in arrays]
    return np.concatenate(parts or [np.zeros(empty, dtype)])


def _check(what: str, segments: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    count = len(labels)
    if np.shape(segments) != (count, 2) and (count or np.size(segments)):
        raise DataError(f"{what}: segments have shape {np.shape(segments)}, expected [{count}, 2] like the labels")
    if not np.isfinite(segments).all():
        raise DataError(f"{what}: a segment has an end that is not finite")
    if count and not (np.min(labels) >= 0 and np.max(labels) < num_classes):
        raise DataError(f"{what}: label {np.min(labels)} or {np.max(labels)} lies outside [0, {num_classes})")


def _check_scores(what: str, found: Detections) -> None:
    if np.shape(found.scores) != (len(found.labels),):
        raise DataError(f"{what}: scores have shape {np.shape(found.scores)}, expected [{len(found.labels)}]")
    if not np.isfinite(found.scores).all():
        raise DataError(f"{what}: a score is not finite")
    if found.std is not None and np.shape(found.std) != np.shape(found.segments):
        raise DataError(f"{what}: std has shape {np.shape(found.std)}, expected {np.shape(found.segments)}")

"""Mean average precision at tIoU thresholds and Recall@kx, with the semantics of the ActivityNet scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tzn.errors import DataError
from tzn.evaluation.matching import Pairs, match, overlapping_pairs
from tzn.inference.detections import Detections

MIN_LENGTH = 1e-3  # seconds: shorter ground truth is dropped; closer ends of one class are duplicates


class GroundTruth(NamedTuple):
    """Ground truth of one recording."""

    segments: np.ndarray  # [N, 2] seconds
    labels: np.ndarray  # [N] int64


class Score(NamedTuple):
    """Scores of a set of recordings; fractions in [0, 1]."""

    tiou: tuple[float, ...]
    classes: tuple[str, ...]  # those with ground truth, in label order
    ap: np.ndarray  # [tiou, class]
    mAP: np.ndarray  # [tiou]
    average_mAP: float
    top_k: tuple[int, ...]
    recall: np.ndarray  # [tiou, k]


class Flat(NamedTuple):
    """Detections and ground truth of all recordings in flat arrays; a group is a (recording, class) pair."""

    segments: np.ndarray  # [N, 2]
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    group: np.ndarray  # [N]
    rank: np.ndarray  # [N] position by falling score
    std: np.ndarray  # [N, 2] standard errors of the ends, NaN where unknown
    truth_segments: np.ndarray  # [G, 2]
    truth_labels: np.ndarray  # [G]
    truth_group: np.ndarray  # [G]


def score_detections(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    classes: Sequence[str],
    tiou: Sequence[float],
    top_k: Sequence[int] = (1, 5),
) -> Score:
    """Score detections against ground truth (ACTIONFORMER_SPEC section 14).

    Ground truth shorter than 1 ms and exact duplicates are dropped; the mean is over the classes that have ground truth;
    detections in recordings without ground truth are false positives, those of classes without ground truth are left
    out. Average precision interpolates precision at every recall. Recall@kx looks at the ``k * n`` best detections of a
    recording with ``n`` segments of the class.

    Raises:
        DataError: no ground truth at all.
    """
    flat = flatten(ground_truth, detections, len(classes))
    present = np.unique(flat.truth_labels)
    if present.size == 0:
        raise DataError("there is no ground truth to score against")
    pairs = overlapping_pairs(flat.segments, flat.group, flat.truth_segments, flat.truth_group, min(tiou))
    ap = np.stack([average_precision(flat, match(pairs, flat.rank, len(flat.truth_segments), t) >= 0) for t in tiou])
    ap = ap[:, present]
    recall = np.array([[_recall(flat, pairs, t, k, present) for k in top_k] for t in tiou])
    names = tuple(classes[i] for i in present)
    return Score(tuple(tiou), names, ap, ap.mean(1), float(ap.mean()), tuple(top_k), recall)


def flatten(
    ground_truth: Mapping[str, GroundTruth], detections: Mapping[str, Detections], num_classes: int
) -> Flat:
    """Lay everything out in arrays; detections by falling score."""
    names = list(ground_truth) + [n for n in detections if n not in ground_truth]
    video = {name: i for i, name in enumerate(names)}
    cleaned = {name: without_duplicates(truth) for name, truth in ground_truth.items()}
    truth_segments = _stack([t.segments for t in cleaned.values()], (0, 2))
    truth_labels = _stack([t.labels for t in cleaned.values()], (0,)).astype(np.int64)
    truth_video = np.repeat([video[n] for n in cleaned], [len(t.labels) for t in cleaned.values()]).astype(np.int64)
    segments = _stack([d.segments for d in detections.values()], (0, 2))
    scores = _stack([d.scores for d in detections.values()], (0,))
    labels = _stack([d.labels for d in detections.values()], (0,)).astype(np.int64)
    unknown = [np.full((len(d.scores), 2), np.nan) if d.std is None else d.std for d in detections.values()]
    std = _stack(unknown, (0, 2))
    of_video = np.repeat([video[n] for n in detections], [len(d.labels) for d in detections.values()]).astype(np.int64)
    known = np.isin(labels, np.unique(truth_labels))
    # Equal scores: the later detection first, which is what reversing an ascending sort gives in the original.
    order = np.flatnonzero(known)
    order = order[np.argsort(scores[order], kind="stable")[::-1]]
    return Flat(
        segments[order], scores[order], labels[order], of_video[order] * num_classes + labels[order],
        np.arange(len(order)), std[order], truth_segments, truth_labels, truth_video * num_classes + truth_labels,
    )  # fmt: skip


def without_duplicates(truth: GroundTruth) -> GroundTruth:
    """Drop segments under 1 ms and those of the same class with both ends within 1 ms of an earlier kept one."""
    keep: list[int] = []
    for i, (segment, label) in enumerate(zip(truth.segments, truth.labels, strict=True)):
        if segment[1] - segment[0] < MIN_LENGTH:
            continue
        earlier = [j for j in keep if truth.labels[j] == label]
        if not any(np.all(np.abs(truth.segments[j] - segment) <= MIN_LENGTH) for j in earlier):
            keep.append(i)
    return GroundTruth(np.asarray(truth.segments).reshape(-1, 2)[keep], np.asarray(truth.labels)[keep])


def average_precision(flat: Flat, hit: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Interpolated AP of every class ``[C]``; ``hit`` ``[N]`` bool, ``counted`` ``[N]`` False where to be ignored."""
    labels, hits = (flat.labels, hit) if counted is None else (flat.labels[counted], hit[counted])
    classes = int(max(flat.truth_labels.max(initial=-1), labels.max(initial=-1))) + 1
    positives = np.bincount(flat.truth_labels, minlength=classes)
    order = np.argsort(labels, kind="stable")  # by class, by falling score inside
    bounds = np.searchsorted(labels[order], np.arange(classes + 1))
    result = np.zeros(classes)
    for c in range(classes):
        of_class = hits[order[bounds[c] : bounds[c + 1]]]
        if positives[c] and of_class.size:
            result[c] = _interpolated(of_class, positives[c])
    return result


def _interpolated(hits: np.ndarray, positives: int) -> float:
    true = np.cumsum(hits)
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(precision[hits].sum() / positives)


def _recall(flat: Flat, pairs: Pairs, threshold: float, k: int, present: np.ndarray) -> float:
    """Mean over classes of the share of segments that one of the k n best detections of their recording covers."""
    order = np.lexsort((flat.rank, flat.group))
    group = flat.group[order]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(group, group, "left")
    truths = np.sort(flat.truth_group)
    allowed = k * (np.searchsorted(truths, flat.group, "right") - np.searchsorted(truths, flat.group, "left"))
    good = (place < allowed)[pairs.detection] & ~(pairs.iou < threshold)
    found = np.zeros(len(flat.truth_labels), dtype=bool)
    found[pairs.truth[good]] = True
    hits = np.bincount(flat.truth_labels, weights=found, minlength=present[-1] + 1)[present]
    return float((hits / np.bincount(flat.truth_labels, minlength=present[-1] + 1)[present]).mean())


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.asarray(a, dtype=np.float64).reshape(-1, *empty[1:]) for a in arrays] or [np.zeros(empty)])


def precision_recall(
    ground_truth: Mapping[str, GroundTruth], detections: Mapping[str, Detections], classes: Sequence[str], tiou: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Interpolated (recall, precision) curves by class name at one threshold."""
    flat = flatten(ground_truth, detections, len(classes))
    pairs = overlapping_pairs(flat.segments, flat.group, flat.truth_segments, flat.truth_group, tiou)
    hit = match(pairs, flat.rank, len(flat.truth_segments), tiou) >= 0
    curves = {}
    for c in np.unique(flat.truth_labels):
        true = np.cumsum(hit[flat.labels == c])
        precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
        curves[classes[c]] = (true / (flat.truth_labels == c).sum(), precision)
    return curves

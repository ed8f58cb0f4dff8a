"""Mean average precision at tIoU thresholds and Recall@kx, with the semantics of the ActivityNet scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tzn.detections import Detections
from tzn.errors import DataError
from tzn.evaluation.flat import Flat, GroundTruth, flatten
from tzn.evaluation.matching import Pairs, match, ordered_as_numpy_does, overlapping_pairs


@dataclass(frozen=True, eq=False)
class Score:
    """Scores of a set of recordings; fractions in [0, 1].

    Attributes:
        tiou: thresholds.
        ap: ``[tiou, class]`` average precision.
        classes: those with ground truth, in label order.
        mAP: ``[tiou]`` mean of ``ap`` over the classes.
        average_mAP: mean of ``mAP`` over the thresholds.
        recall: ``[tiou, k]`` Recall@kx.
        top_k: the k of Recall@kx.
        counts: ``[class]`` ground-truth segments.
    """

    tiou: tuple[float, ...]
    ap: np.ndarray
    classes: tuple[str, ...]
    mAP: np.ndarray
    average_mAP: float
    recall: np.ndarray
    top_k: tuple[int, ...]
    counts: np.ndarray

    @property
    def standard_error(self) -> float:
        """Of ``average_mAP``, from the numbers of segments alone: those of a class as independent trials, found or not.

        Chances are shrunk towards a half as by one trial of either kind (Agresti and Coull 1998), so that a class of a
        single segment, whose average precision is 0 or 1, does not count as certain.
        """
        if not len(self.counts):
            return 0.0
        chance = (self.counts * self.ap.mean(axis=0) + 1) / (self.counts + 2)
        return float(np.sqrt((chance * (1 - chance) / self.counts).sum()) / len(self.counts))


def score_detections(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    classes: Sequence[str],
    tiou: Sequence[float],
    top_k: Sequence[int] = (1, 5),
    *,
    ties: str = "first",
) -> Score:
    """Score detections as the ActivityNet scorer in ActionFormer does.

    Ground truth shorter than 1 ms and exact duplicates (same class, both ends within 1 ms) are dropped. Per class,
    detections by falling score each take the free ground-truth segment of highest IoU >= threshold in their recording,
    else they are false positives, as are all in recordings without ground truth. A detection with IoU 0 / 0 takes the
    segment. AP sums precision, made monotone from the right, over the steps of recall. A class without detections has
    AP 0. Recall@kx is the share of a class's segments that any of the ``k * n`` best detections of their recording
    reaches, ``n`` being its segments of the class. All means are over the classes with ground truth; detections of
    other classes are ignored (the original lets some of them collide with other classes).

    Args:
        ground_truth, detections: by recording id; ``segments`` in seconds, ``labels`` index ``classes``.
        tiou: thresholds in (0, 1].
        top_k: multiples k of Recall@kx, at least 1.
        ties: order of equal scores and IoUs. "first": of equal scores the earlier detection (recordings and detections
            as they come), of equal IoUs the later ground truth; the same input gives the same numbers everywhere.
            "numpy": as the original, ``values.argsort()[::-1]``, an unstable sort whose order depends on NumPy's
            version and the processor's vector instructions. It matters where scores are rounded: on real THUMOS14
            detections the two differ by up to 0.005 mAP and 0.012 recall.

    Raises:
        DataError: no ground truth at all, or arrays that do not fit together (see :func:`tzn.evaluation.flat.flatten`).
        ValueError: ``tiou`` or ``top_k`` empty or out of range, unknown ``ties``.
    """
    _check_settings(tiou, top_k)
    flat = flatten(ground_truth, detections, len(classes), ties)
    present, counts = np.unique(flat.truth_labels, return_counts=True)
    if present.size == 0:
        raise DataError("no ground truth to score against: no segment of at least 1 ms in any recording")
    pairs, taken = matched(flat, tiou)
    positives = np.bincount(flat.truth_labels, minlength=len(classes))
    ap = np.stack([average_precision(flat.labels, hit, positives) for hit in taken >= 0])[:, present]
    recall = np.stack([_recall(flat, pairs, tiou, k)[:, present].mean(1) for k in top_k], axis=1)
    names = tuple(classes[i] for i in present)
    return Score(tuple(tiou), ap, names, ap.mean(1), float(ap.mean()), recall, tuple(top_k), counts)


def precision_recall(
    ground_truth: Mapping[str, GroundTruth], detections: Mapping[str, Detections], classes: Sequence[str], tiou: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Interpolated (recall, precision) curves ``[N_class]`` by class name at one threshold."""
    flat = flatten(ground_truth, detections, len(classes))
    hit = matched(flat, [tiou])[1][0] >= 0
    curves = {}
    for label, positives in zip(*np.unique(flat.truth_labels, return_counts=True), strict=True):
        of_class = hit[flat.labels == label]
        curves[classes[label]] = np.cumsum(of_class) / positives, _interpolated_precision(of_class)
    return curves


def matched(flat: Flat, tiou: Sequence[float]) -> tuple[Pairs, np.ndarray]:
    """Overlapping pairs, and ``[tiou, N]`` the ground-truth segment that each detection takes or -1."""
    arrays = flat.segments, flat.group, flat.truth_segments, flat.truth_group
    pairs = overlapping_pairs(*arrays, min(tiou))
    if flat.ties == "numpy":
        pairs = ordered_as_numpy_does(pairs, *arrays)
    return pairs, match(pairs, len(flat.segments), len(flat.truth_segments), tiou)


def average_precision(labels: np.ndarray, hit: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """AP ``[C]`` of every class, 0 where it has no detection or no ground truth.

    Args:
        labels: ``[N]`` ascending; inside a class, detections by falling score.
        hit: ``[N]`` bool, true positives.
        positives: ``[C]`` number of ground-truth segments.
    """
    bounds = np.searchsorted(labels, np.arange(len(positives) + 1))
    ap = np.zeros(len(positives))
    for c in np.flatnonzero(positives):
        of_class = hit[bounds[c] : bounds[c + 1]]
        ap[c] = _interpolated_precision(of_class)[of_class].sum() / positives[c]
    return ap


def _interpolated_precision(hit: np.ndarray) -> np.ndarray:
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _recall(flat: Flat, pairs: Pairs, tiou: Sequence[float], k: int) -> np.ndarray:
    """``[tiou, C]`` share of segments that one of the k n best detections of their group reaches."""
    # Unlike for precision, 0 / 0 is no hit here: the original compares with >= in one place and < in the other.
    allowed = flat.among_best(k)[pairs.detection] & np.isfinite(pairs.iou)
    best = np.zeros(len(flat.truth_labels))
    np.maximum.at(best, pairs.truth[allowed], pairs.iou[allowed])
    positives = np.bincount(flat.truth_labels, minlength=flat.num_classes)
    found = [np.bincount(flat.truth_labels[best >= t], minlength=flat.num_classes) for t in tiou]
    return np.stack(found) / np.maximum(positives, 1)


def _check_settings(tiou: Sequence[float], top_k: Sequence[int]) -> None:
    if not tiou or not all(0 < t <= 1 for t in tiou):
        raise ValueError(f"tiou = {list(tiou)}: expected at least one threshold, all in (0, 1]")
    if not top_k or not all(k >= 1 for k in top_k):
        raise ValueError(f"top_k = {list(top_k)}: expected at least one multiple, all >= 1")

"""What keeps mAP down: every false positive gets a reason, and every reason its price.

The reasons are those of DETAD (Alwassel et al. 2018), the prices those of TIDE (Bolya et al. 2020): how much mAP would rise if
errors of one kind, and nothing else, were put right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tzn.detections import Detections
from tzn.evaluation.detection_map import average_precision, matched
from tzn.evaluation.flat import Flat, GroundTruth, flatten
from tzn.evaluation.matching import overlapping_pairs

BACKGROUND_TIOU = 0.1  # below it a detection has nothing to do with a segment
COUNTED_AT = 0.5

REMEDIES = {
    "classification": "the right place under another class: more recordings of the classes mixed up, or richer features",
    "localization": "the right class, too far off: a finer grid, more steps of training, a larger boundary_radius",
    "class and place": "near a segment of another class, too far off: see classification",
    "duplicates": "segments found twice: stronger suppression (inference.sigma lower, or nms=hard)",
    "background": "found where nothing is: more recordings (crops) without the classes, longer training",
    "missed": "not found at all: a finer first stride for short ones, wider network, data.balance for rare classes",
    "missed short": "the shortest are not found: a smaller model.first_stride, less data.pool, a finer grid",
}


class ErrorCost(NamedTuple):
    """One kind of error.

    Attributes:
        name: a key of :data:`REMEDIES`.
        gain: average mAP (fraction) that would be won if these errors alone were put right.
        number: such detections at tIoU 0.5 among the best ones, as many as there are segments; of the missed, segments.
    """

    name: str
    gain: float
    number: int


def error_costs(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    num_classes: int,
    tiou: Sequence[float],
    short: float | None = None,
) -> list[ErrorCost]:
    """Prices of all kinds of errors, the dearest first ("missed short", a part of "missed", at the end).

    A detection that takes no segment is, in this order: a duplicate (it reaches a segment of its class, which another has
    taken), of the wrong class (it reaches one of another class), badly placed (it touches one of its class by 0.1), both
    (one of another class), or background. Put right, the best badly placed detection takes the segment that it touches
    most and the best of a wrong class that one's class, where no other has taken it; all other errors of the kind go. A
    segment is missed where no detection takes it and no badly placed or wrongly classified one could; put right, it is not
    asked for.

    Args:
        ground_truth, detections: by recording id, as for :func:`tzn.evaluation.detection_map.score_detections`.
        tiou: thresholds; prices are means over them.
        short: seconds up to which a missed segment is short; None: not told apart.

    Raises:
        DataError: see :func:`tzn.evaluation.flat.flatten`.
    """
    flat = flatten(ground_truth, detections, num_classes)
    hits = matched(flat, tiou)[1]
    near = _Near(flat)
    present = np.unique(flat.truth_labels)
    positives = np.bincount(flat.truth_labels, minlength=num_classes)
    best = np.zeros(len(flat.scores), dtype=bool)
    best[np.argsort(-flat.scores, kind="stable")[: len(flat.truth_labels)]] = True
    length = flat.truth_segments[:, 1] - flat.truth_segments[:, 0]
    counted = int(np.argmin(np.abs(np.asarray(tiou) - COUNTED_AT)))
    names = [name for name in REMEDIES if short is not None or name != "missed short"]
    gains, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for i, (threshold, taken) in enumerate(zip(tiou, hits, strict=True)):
        kinds = near.kinds(threshold, taken >= 0)
        usual = _mean(flat, flat.labels, taken >= 0, positives, present)
        free = np.ones(len(flat.truth_labels), dtype=bool)
        free[taken[taken >= 0]] = False
        lost = free.copy()
        for name in names[:5]:
            wrong = kinds == name
            labels, hit, kept = flat.labels, taken >= 0, ~wrong
            if name in ("classification", "localization"):
                target = near.other if name == "classification" else near.same
                lost[target[wrong]] = False
                righted = _first_of_each(np.flatnonzero(wrong & free[target]), target, flat.scores)
                labels, hit = labels.copy(), hit.copy()
                labels[righted], hit[righted], kept[righted] = flat.truth_labels[target[righted]], True, True
            gains[name] += _mean(flat, labels, hit, positives, present, kept) - usual
            counts[name] += int((wrong & best).sum()) if i == counted else 0
        for name in names[5:]:
            missing = lost if name == "missed" or short is None else lost & (length <= short)
            left = positives - np.bincount(flat.truth_labels[missing], minlength=num_classes)
            gains[name] += _mean(flat, flat.labels, taken >= 0, left, present) - usual
            counts[name] += int(missing.sum()) if i == counted else 0
    costs = [ErrorCost(name, gains[name] / len(tiou), counts[name]) for name in names]
    return sorted(costs[:6], key=lambda cost: -cost.gain) + costs[6:]


class _Near:
    """For every detection the segment of its own class, and of another class, that it overlaps most."""

    def __init__(self, flat: Flat) -> None:
        recording, truth_recording = flat.group // flat.num_classes, flat.truth_group // flat.num_classes
        pairs = overlapping_pairs(flat.segments, recording, flat.truth_segments, truth_recording, BACKGROUND_TIOU)
        count = len(flat.segments)
        self.same, self.same_iou = np.zeros(count, np.int64), np.zeros(count)
        self.other, self.other_iou = np.zeros(count, np.int64), np.zeros(count)
        own = flat.labels[pairs.detection] == flat.truth_labels[pairs.truth]
        for chosen, truth, iou in ((own, self.same, self.same_iou), (~own, self.other, self.other_iou)):
            # Pairs of a detection come by falling IoU: the first is the best.
            detection, first = np.unique(pairs.detection[chosen], return_index=True)
            truth[detection], iou[detection] = pairs.truth[chosen][first], pairs.iou[chosen][first]

    def kinds(self, threshold: float, hit: np.ndarray) -> np.ndarray:
        """Name of the error of every detection, "" where it is none."""
        found = np.full(len(hit), "background", dtype="U16")
        found[self.other_iou >= BACKGROUND_TIOU] = "class and place"
        found[self.same_iou >= BACKGROUND_TIOU] = "localization"
        found[self.other_iou >= threshold] = "classification"
        found[self.same_iou >= threshold] = "duplicates"
        found[hit] = ""
        return found


def _first_of_each(detections: np.ndarray, target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of these detections the best one for every segment."""
    ordered = detections[np.argsort(-scores[detections], kind="stable")]
    return ordered[np.unique(target[ordered], return_index=True)[1]]


def _mean(
    flat: Flat,
    labels: np.ndarray,
    hit: np.ndarray,
    positives: np.ndarray,
    present: np.ndarray,
    kept: np.ndarray | None = None,
) -> float:
    """Mean AP over the classes ``present``; one of which nothing is asked for any more counts as 1."""
    order = np.lexsort((-flat.scores, labels))
    if kept is not None:
        order = order[kept[order]]
    ap = average_precision(labels[order], hit[order], positives)
    ap[positives == 0] = 1.0
    return float(ap[present].mean())


def costs_table(costs: Sequence[ErrorCost]) -> str:
    """A Markdown table, and what to do about the dearest."""
    lines = ["| what goes wrong | mAP it costs | of the best detections |", "| --- | --- | --- |"]
    lines += [
        f"| {c.name} | {100 * c.gain:.1f} | {c.number}{' segments' if 'missed' in c.name else ''} |" for c in costs
    ]
    dearest = costs[0]
    if dearest.gain > 0:
        lines += ["", f"dearest: {dearest.name} ({100 * dearest.gain:.1f} points): {REMEDIES[dearest.name]}"]
    return "\n".join(lines)

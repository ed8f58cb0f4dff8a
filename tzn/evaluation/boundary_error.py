"""How far detected starts and ends lie from the annotated ones, in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tzn.detections import Detections
from tzn.evaluation.detection_map import matched
from tzn.evaluation.flat import GroundTruth, flatten

SIDES = ("start", "end")


@dataclass(frozen=True, eq=False)
class BoundaryErrors:
    """Errors of M detections matched to ground truth.

    Attributes:
        error: ``[M, 2]`` seconds, detected minus annotated start and end.
        std: ``[M, 2]`` seconds, the detections' own standard errors, NaN where unknown.
        labels: ``[M]`` class of each.
        missed_labels: ``[K]`` class of each ground-truth segment without a match.
    """

    error: np.ndarray
    std: np.ndarray
    labels: np.ndarray
    missed_labels: np.ndarray


def boundary_errors(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    num_classes: int,
    *,
    min_iou: float = 0.5,
    top_k: int = 1,
) -> BoundaryErrors:
    """Errors of the best detections, matched to ground truth as for AP at tIoU ``min_iou`` (each segment once).

    Args:
        ground_truth, detections: by recording id, as for :func:`tzn.evaluation.detection_map.score_detections`.
        min_iou: least IoU of a match, in (0, 1].
        top_k: per recording and class, the ``top_k * n`` best detections take part, ``n`` being its ground-truth
            segments. So many a user would look at; the choice does not depend on how scores are calibrated.

    Raises:
        DataError: see :func:`tzn.evaluation.flat.flatten`.
        ValueError: ``min_iou`` or ``top_k`` out of range.
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou = {min_iou}: expected a threshold in (0, 1]")
    if top_k < 1:
        raise ValueError(f"top_k = {top_k}: expected a multiple >= 1")
    flat = flatten(ground_truth, detections, num_classes)
    # Better detections never give way to worse ones, so dropping matches of the rest equals leaving the rest out.
    taken = np.where(flat.among_best(top_k), matched(flat, [min_iou])[1][0], -1)
    # 0 / 0 counts as IoU only for an inverted detection; such a match has no meaningful error.
    hit = np.flatnonzero((taken >= 0) & (flat.segments[:, 1] >= flat.segments[:, 0]))
    missed = np.ones(len(flat.truth_labels), dtype=bool)
    missed[taken[hit]] = False
    error = flat.segments[hit] - flat.truth_segments[taken[hit]]
    return BoundaryErrors(error, flat.std[hit], flat.labels[hit], flat.truth_labels[missed])


def summarize_errors(errors: BoundaryErrors, classes: Sequence[str]) -> dict[str, Any]:
    """Numbers that tell a reader how good boundaries are; JSON-able.

    Returns:
        ``overall`` and ``per_class`` (by name): ``matched``, ``missed`` and, unless nothing matched, for ``start`` and
        ``end`` the ``bias`` (mean signed error) and the ``median`` and ``p90`` of the absolute error, in seconds.
        ``calibration``, where standard errors are known: their ``count`` (starts and ends together) and the shares of
        errors ``within_1_std`` and ``within_2_std`` (0.68 and 0.95 for a calibrated Gaussian).
    """
    summary: dict[str, Any] = {"overall": _statistics(errors.error, len(errors.missed_labels)), "per_class": {}}
    for c in np.union1d(errors.labels, errors.missed_labels).astype(int):
        missed = int((errors.missed_labels == c).sum())
        summary["per_class"][classes[c]] = _statistics(errors.error[errors.labels == c], missed)
    known = np.isfinite(errors.std)
    if known.any():
        error, std = np.abs(errors.error[known]), errors.std[known]
        summary["calibration"] = {
            "count": int(known.sum()),
            "within_1_std": float((error <= std).mean()),
            "within_2_std": float((error <= 2 * std).mean()),
        }
    return summary


def _statistics(error: np.ndarray, missed: int) -> dict[str, Any]:
    result: dict[str, Any] = {"matched": len(error), "missed": missed}
    for i, side in enumerate(SIDES if len(error) else ()):
        distance = np.abs(error[:, i])
        result[side] = {
            "bias": float(error[:, i].mean()),
            "median": float(np.median(distance)),
            "p90": float(np.quantile(distance, 0.9)),
        }
    return result

"""How far detected starts and ends lie from the annotated ones, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tzn.evaluation.detection_map import GroundTruth, flatten
from tzn.evaluation.matching import match, overlapping_pairs
from tzn.inference.detections import Detections


class BoundaryErrors(NamedTuple):
    """Signed errors (detected - annotated) of matched segments."""

    error: np.ndarray  # [M, 2] seconds, start and end
    std: np.ndarray  # [M, 2] the detections' own standard errors, NaN where unknown
    labels: np.ndarray  # [M]
    missed: int  # ground-truth segments that no detection matches


def boundary_errors(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    num_classes: int,
    *,
    min_iou: float = 0.5,
    min_score: float = 0.1,
) -> BoundaryErrors:
    """Errors of detections with score >= ``min_score`` matched as for mAP at tIoU ``min_iou``."""
    strong = {name: _stronger(d, min_score) for name, d in detections.items()}
    flat = flatten(ground_truth, strong, num_classes)
    pairs = overlapping_pairs(flat.segments, flat.group, flat.truth_segments, flat.truth_group, min_iou)
    taken = match(pairs, flat.rank, len(flat.truth_segments), min_iou)
    hit = np.flatnonzero(taken >= 0)
    truth = flat.truth_segments[taken[hit]]
    error = flat.segments[hit] - truth
    return BoundaryErrors(error, flat.std[hit], flat.labels[hit], len(flat.truth_segments) - len(hit))


def summarize_errors(errors: BoundaryErrors, classes: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Bias, median and 90th percentile of the absolute error per side, overall and per class; coverage of 1 and 2 std."""
    summary = {"matched": len(errors.labels), "missed": errors.missed, "overall": _sides(errors.error)}
    summary["per_class"] = {
        classes[c]: _sides(errors.error[errors.labels == c]) for c in np.unique(errors.labels).tolist()
    }
    known = np.isfinite(errors.std) & (errors.std > 0)
    if known.any():
        ratio = np.abs(errors.error[known]) / errors.std[known]
        summary["coverage"] = {"1_std": float((ratio <= 1).mean()), "2_std": float((ratio <= 2).mean())}
    return summary


def _sides(error: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        side: {
            "bias": float(error[:, i].mean()),
            "median": float(np.median(np.abs(error[:, i]))),
            "p90": float(np.quantile(np.abs(error[:, i]), 0.9)),
        }
        for i, side in enumerate(("start", "end"))
        if len(error)
    }


def _stronger(found: Detections, min_score: float) -> Detections:
    keep = found.scores >= min_score
    std = None if found.std is None else found.std[keep]
    return Detections(found.segments[keep], found.scores[keep], found.labels[keep], std)

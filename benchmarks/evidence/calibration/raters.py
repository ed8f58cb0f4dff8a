"""Two human raters of the same recordings: how far apart their boundaries are, beside what a model says of its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tzn.calibration import Calibration
from tzn.data.annotations import load_annotations
from tzn.detections import Detections
from tzn.evaluation.boundary_error import boundary_errors
from tzn.evaluation.flat import GroundTruth
from tzn.training.calibrate import RIGHT, HeldOut


def compared(data: Path, held: HeldOut, calibration: Calibration, classes: tuple[str, ...]) -> dict[str, Any]:
    """On the recordings of ``held``, read off with calibrated standard errors, that a second rater has annotated too.

    Returns:
        ``recordings``; ``raters`` and ``model``: ``count``, ``median`` and ``p90`` of |second - first rater| and of
        |detection - first rater| over starts and ends, seconds; ``half_width``: median half width of the 90 % intervals;
        ``second_inside``: share of the second rater's boundaries inside the 90 % intervals of the detection of the same
        segment; ``rank_correlation`` of the standard errors with the raters' difference there.
    """
    first = {r.id: r for r in held.recordings}
    second = load_annotations(data / "annotations_second_rater.json", strict=False, classes=classes).recordings
    both = [name for name in second if name in first and len(second[name].labels)]
    truth = {name: GroundTruth(first[name].segments, first[name].labels) for name in both}
    other = {
        name: Detections(second[name].segments, np.ones(len(second[name].labels)), second[name].labels) for name in both
    }
    spread = np.abs(boundary_errors(truth, other, len(classes), min_iou=RIGHT).error).ravel()
    found = {name: held.found[name] for name in both}
    mine = boundary_errors(truth, found, len(classes), min_iou=RIGHT)
    factor = calibration.intervals.factor(0.9)
    theirs = boundary_errors(
        {name: GroundTruth(second[name].segments, second[name].labels) for name in both}, found, len(classes),
        min_iou=RIGHT,
    )  # fmt: skip
    inside = np.abs(theirs.error) <= factor * theirs.std
    far, std = _paired(both, truth, other, found, len(classes))
    return {
        "recordings": len(both),
        "raters": {"count": len(spread), "median": float(np.median(spread)), "p90": float(np.quantile(spread, 0.9))},
        "model": {
            "count": mine.error.size, "median": float(np.median(np.abs(mine.error))),
            "p90": float(np.quantile(np.abs(mine.error), 0.9)),
        },
        "half_width": float(np.median(factor * mine.std)), "second_inside": float(inside.mean()),
        "rank_correlation": float(spearmanr(std, far).statistic),
    }  # fmt: skip


def _paired(both, truth, other, found, classes):  # type: ignore[no-untyped-def]
    """Raters' differences and the model's standard errors at segments that all three have."""
    far, std = [], []
    for name in both:
        segments = truth[name].segments
        sides = []
        for one in (other[name], found[name]):
            part = []
            for i, (segment, label) in enumerate(zip(segments, truth[name].labels, strict=True)):
                alike = np.flatnonzero(one.labels == label)
                overlap = np.minimum(one.segments[alike, 1], segment[1]) - np.maximum(
                    one.segments[alike, 0], segment[0]
                )
                union = one.segments[alike, 1] - one.segments[alike, 0] + segment[1] - segment[0] - overlap
                iou = np.where(union > 0, overlap / np.maximum(union, 1e-9), 0.0)
                good = alike[iou >= RIGHT]
                part.append((i, int(good[np.argmax(one.scores[good])])) if len(good) else (i, -1))
            sides.append(part)
        for (i, second), (_, mine) in zip(*sides, strict=True):
            if second >= 0 and mine >= 0:
                far.append(np.abs(other[name].segments[second] - segments[i]))
                std.append(found[name].std[mine])
    return np.concatenate(far), np.concatenate(std)

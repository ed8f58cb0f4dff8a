"""Boundary errors in seconds, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tzn.detections import Detections
from tzn.evaluation.boundary_error import boundary_errors, summarize_errors
from tzn.evaluation.flat import GroundTruth

CLASSES = ("walk", "sit")


def truth(segments, labels=None):
    return GroundTruth(np.array(segments, float).reshape(-1, 2), np.array(labels or [0] * len(segments), int))


def found(segments, scores, labels=None, std=None):
    labels = np.array(labels or [0] * len(scores), int)
    std = None if std is None else np.array(std, float)
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), labels, std)


def test_errors_are_detected_minus_annotated_per_side():
    errors = boundary_errors({"a": truth([[10, 20]])}, {"a": found([[9.5, 20.25]], [0.9])}, 2)
    np.testing.assert_allclose(errors.error, [[-0.5, 0.25]])
    assert errors.missed_labels.tolist() == []


def test_bias_median_and_90th_percentile_by_hand():
    # Start errors -1, 0, 1, 2, ..., 8: bias 3.5, absolute 0 1 1 2 3 4 5 6 7 8 -> median 3.5, 90 % at 7.1.
    starts = np.arange(10) * 1000.0
    segments = np.stack([starts, starts + 100], 1)
    shifted = segments + np.stack([np.arange(-1, 9), np.zeros(10)], 1)
    errors = boundary_errors({"a": truth(segments)}, {"a": found(shifted, np.linspace(1, 0.5, 10))}, 2)
    overall = summarize_errors(errors, CLASSES)["overall"]
    assert overall["start"] == pytest.approx({"bias": 3.5, "median": 3.5, "p90": 7.1})
    assert overall["end"] == {"bias": 0.0, "median": 0.0, "p90": 0.0}
    assert (overall["matched"], overall["missed"]) == (10, 0)


def test_every_segment_is_matched_once_by_the_highest_score():
    real = {"a": truth([[0, 10], [50, 60]])}
    errors = boundary_errors(real, {"a": found([[0.1, 10], [0, 10], [0.3, 10]], [0.8, 0.9, 0.7])}, 2)
    np.testing.assert_allclose(errors.error, [[0, 0]])
    assert errors.missed_labels.tolist() == [0]


def test_only_the_best_detections_take_part():
    # One segment: of the two detections only the stronger, which misses, is looked at, unless twice as many are.
    real, detections = {"a": truth([[0, 10]])}, {"a": found([[50, 60], [1, 10]], [0.9, 0.8])}
    assert len(boundary_errors(real, detections, 2).error) == 0
    np.testing.assert_allclose(boundary_errors(real, detections, 2, top_k=2).error, [[1, 0]])


def test_matches_need_the_class_and_the_overlap():
    real = {"a": truth([[0, 10], [50, 60]], [0, 1])}
    detections = {"a": found([[0, 10], [50, 56]], [0.9, 0.8], [1, 1])}
    assert boundary_errors(real, detections, 2, min_iou=0.6, top_k=2).labels.tolist() == [1]
    assert boundary_errors(real, detections, 2, min_iou=0.7, top_k=2).labels.tolist() == []


def test_an_inverted_detection_is_no_match():
    errors = boundary_errors({"a": truth([[0, 10]])}, {"a": found([[10, 0]], [0.9])}, 2)
    assert (len(errors.error), errors.missed_labels.tolist()) == (0, [0])


def test_classes_are_told_apart_and_missed_ones_are_listed():
    real = {"a": truth([[0, 10], [50, 60]], [0, 1])}
    summary = summarize_errors(boundary_errors(real, {"a": found([[1, 10]], [0.9])}, 2), CLASSES)
    assert summary["per_class"]["walk"]["start"]["bias"] == 1
    assert summary["per_class"]["sit"] == {"matched": 0, "missed": 1}
    assert "calibration" not in summary


def test_calibration_counts_errors_within_one_and_two_standard_errors():
    # |error| / std: 0.5 and 1.5; unknown; 3 and exactly 1.
    real = {"a": truth([[0, 100], [1000, 1100], [2000, 2100]])}
    detections = {
        "a": found([[0.5, 101.5], [1000, 1100], [2003, 2101]], [0.9, 0.8, 0.7], std=[[1, 1], [np.nan, np.nan], [1, 1]])
    }
    calibration = summarize_errors(boundary_errors(real, detections, 2), CLASSES)["calibration"]
    assert calibration == {"count": 4, "within_1_std": 0.5, "within_2_std": 0.75}


def test_calibrated_gaussian_errors_come_out_near_68_and_95_percent():
    rng = np.random.default_rng(0)
    starts = np.arange(200) * 100.0
    segments = np.stack([starts, starts + 50], 1)
    real, detections = {}, {}
    for name in map(str, range(20)):
        std = rng.uniform(0.1, 1.0, segments.shape)
        real[name] = truth(segments)
        detections[name] = found(segments + std * rng.standard_normal(segments.shape), rng.random(200), std=std)
    calibration = summarize_errors(boundary_errors(real, detections, 2), CLASSES)["calibration"]
    assert calibration["within_1_std"] == pytest.approx(0.683, abs=0.02)
    assert calibration["within_2_std"] == pytest.approx(0.954, abs=0.01)


def test_nothing_matched_is_still_a_summary():
    summary = summarize_errors(boundary_errors({"a": truth([[0, 1]])}, {}, 2), CLASSES)
    assert summary["overall"] == {"matched": 0, "missed": 1}
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"min_iou": 0.0}, "min_iou"), ({"min_iou": 1.5}, "min_iou"), ({"top_k": 0}, "top_k")],
    ids=["iou-0", "iou-above-1", "no-detections-looked-at"],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        boundary_errors({"a": truth([[0, 1]])}, {}, 2, **arguments)

"""Prices of errors, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.detections import Detections
from tzn.evaluation.error_costs import error_costs
from tzn.evaluation.flat import GroundTruth


def truth(segments, labels):
    return GroundTruth(np.array(segments, float).reshape(-1, 2), np.array(labels, int))


def found(segments, scores, labels):
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), np.array(labels, int))


REAL = {"a": truth([[0, 10], [20, 30]], [0, 1])}  # of two classes, one segment each


def costs_of(detections, real=REAL, classes=2, tiou=(0.5,), short=None):
    costs = error_costs(real, {"a": detections}, classes, tiou, short)
    return {c.name: (round(c.gain, 6), c.number) for c in costs if c.gain or c.number}


def test_nothing_is_wrong_with_what_is_right():
    assert costs_of(found([[0, 10], [20, 30]], [0.9, 0.8], [0, 1])) == {}


def test_a_wrong_class_is_worth_what_the_right_one_would_be():
    # Class 1: nothing right, AP 0; relabelled, AP 1. Class 0: a false positive below its hit costs nothing.
    assert costs_of(found([[0, 10], [20, 30]], [0.9, 0.8], [0, 0])) == {"classification": (0.5, 1)}


def test_a_badly_placed_detection_takes_the_segment_it_touches():
    assert costs_of(found([[0, 10], [20, 24]], [0.9, 0.8], [0, 1])) == {"localization": (0.5, 1)}


def test_a_duplicate_costs_only_above_a_later_hit():
    real = {"a": truth([[0, 10], [20, 30]], [0, 0])}
    # Hit, duplicate, hit: precision 1, 1/2, 2/3 -> AP 1/2 + 1/2 * 2/3 = 5/6.
    costs = costs_of(found([[0, 10], [0, 9], [20, 30]], [0.9, 0.8, 0.7], [0, 0, 0]), real, 1)
    assert costs == {"duplicates": (pytest.approx(1 / 6, abs=1e-6), 1)}


def test_background_and_both_at_once_are_told_apart():
    real = {"a": truth([[0, 10], [20, 30], [40, 50]], [0, 1, 1])}
    segments, scores, labels = [[60, 70], [12, 22], [0, 10]], [0.9, 0.8, 0.7], [0, 0, 0]
    costs = costs_of(found(segments, scores, labels), real)
    # Class 0: two false positives, then the hit -> AP 1/3; without either one 1/2. Class 1: both segments are missed.
    assert costs["background"] == (pytest.approx((1 / 2 - 1 / 3) / 2, abs=1e-6), 1)
    assert costs["class and place"] == (pytest.approx((1 / 2 - 1 / 3) / 2, abs=1e-6), 1)
    assert costs["missed"] == (0.5, 2)


def test_short_missed_segments_are_a_part_of_the_missed():
    real = {"a": truth([[0, 1], [20, 40], [50, 60]], [0, 0, 0])}
    costs = costs_of(found([[50, 60]], [0.9], [0]), real, 1, short=2.0)
    assert costs == {"missed": (pytest.approx(2 / 3, abs=1e-6), 2), "missed short": (pytest.approx(1 / 6, abs=1e-6), 1)}


def test_the_best_of_several_takes_a_segment_and_the_others_go():
    # Three places near one segment: the first would take it, the two others would be wrong; all right with one hit.
    detections = found([[0, 4], [0, 4.5], [0, 3]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert costs_of(detections, {"a": truth([[0, 10]], [0])}, 1) == {"localization": (1.0, 1)}


def test_the_dearest_comes_first_and_prices_are_means_over_thresholds():
    detections = found([[0, 8], [70, 80], [20, 30]], [0.9, 0.8, 0.7], [0, 1, 1])  # IoU 0.8 with the first
    costs = error_costs(REAL, {"a": detections}, 2, (0.5, 0.6, 0.9))
    assert [c.name for c in costs[:2]] == ["background", "localization"]
    assert costs[0].gain == pytest.approx(0.25)  # 1/2 of class 1, at all
    assert costs[1].gain == pytest.approx(0.5 / 3)  # all of class 0, at one of three

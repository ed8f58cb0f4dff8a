"""Cleaning, checking and sorting before scoring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzn.detections import Detections
from tzn.errors import DataError
from tzn.evaluation.flat import GroundTruth, distinct, flatten


def truth(segments, labels=None):
    return GroundTruth(np.array(segments, float).reshape(-1, 2), np.array(labels or [0] * len(segments), int))


def found(segments, scores, labels=None, std=None):
    labels = np.array(labels or [0] * len(scores), int)
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), labels, std)


def sequentially_distinct(segments, group):
    keep = []
    for i, (start, end) in enumerate(segments):
        repeats = any(
            group[j] == group[i] and abs(segments[j][0] - start) <= 1e-3 and abs(segments[j][1] - end) <= 1e-3
            for j in keep
        )
        if end - start >= 1e-3 and not repeats:
            keep.append(i)
    return keep


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 5), st.integers(0, 1)), max_size=12))
def test_distinct_equals_the_sequential_rule_in_chains_of_near_duplicates(rows):
    # Steps of 0.6 ms: neighbours are duplicates, but a chain is broken where its middle was dropped.
    segments = np.array([(a * 6e-4, a * 6e-4 + b * 6e-4) for a, b, _ in rows]).reshape(-1, 2)
    group = np.array([g for _, _, g in rows], dtype=np.int64)
    assert np.flatnonzero(distinct(segments, group)).tolist() == sequentially_distinct(segments, group)


def test_a_repeat_of_another_class_or_recording_is_kept():
    flat = flatten({"a": truth([[1, 2], [1, 2], [1, 2]], [0, 1, 0]), "b": truth([[1, 2]])}, {}, 2)
    assert flat.truth_labels.tolist() == [0, 1, 0]
    assert len(set(flat.truth_group.tolist())) == 3


def test_detections_are_sorted_by_class_then_score_and_equal_scores_keep_their_order():
    detections = {
        "b": found([[0, 1], [0, 2], [0, 3]], [0.5, 0.9, 0.5], [1, 0, 1]),
        "a": found([[0, 4], [0, 5]], [0.5, 0.7], [1, 1]),
    }
    flat = flatten({"a": truth([[0, 1], [0, 1]], [0, 1])}, detections, 2)
    assert flat.segments[:, 1].tolist() == [2, 5, 1, 3, 4]
    assert flat.place.tolist() == [0, 0, 0, 1, 1]


def test_detections_of_classes_without_ground_truth_are_left_out():
    flat = flatten({"a": truth([[0, 1]], [2])}, {"a": found([[0, 1], [0, 1]], [0.9, 0.8], [1, 2])}, 3)
    assert flat.scores.tolist() == [0.8]


def test_among_best_counts_segments_of_the_own_recording_and_class():
    flat = flatten(
        {"a": truth([[0, 1], [5, 6]]), "b": truth([[0, 1]])},
        {"a": found([[0, 1]] * 5, [0.9, 0.8, 0.7, 0.6, 0.5]), "z": found([[0, 1]], [0.95])},
        1,
    )
    assert flat.scores[flat.among_best(1)].tolist() == [0.9, 0.8]
    assert flat.scores[flat.among_best(2)].tolist() == [0.9, 0.8, 0.7, 0.6]


def test_unknown_standard_errors_are_nan_beside_known_ones():
    flat = flatten(
        {"a": truth([[0, 1]])},
        {"a": found([[0, 1]], [0.9], std=np.array([[0.1, 0.2]])), "b": found([[0, 1]], [0.8])},
        1,
    )
    np.testing.assert_array_equal(flat.std, [[0.1, 0.2], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        pytest.param(found([[0, np.nan]], [0.5]), "a segment has an end that is not finite", id="NaN-segment"),
        pytest.param(found([[0, 1]], [np.nan]), "a score is not finite", id="NaN-score"),
        pytest.param(found([[0, 1]], [0.5], [7]), r"label 7 or 7 lies outside \[0, 2\)", id="label-out-of-range"),
        pytest.param(
            Detections(np.zeros((1, 2)), np.zeros(2), np.zeros(1, int)), "scores have shape", id="too-many-scores"
        ),
        pytest.param(Detections(np.zeros((1, 3)), np.zeros(1), np.zeros(1, int)), "segments have shape", id="triples"),
        pytest.param(found([[0, 1]], [0.5], std=np.zeros(2)), "std has shape", id="std-of-another-shape"),
    ],
)
def test_arrays_that_do_not_fit_are_named(detections, message):
    with pytest.raises(DataError, match=f"detections of 'clip': {message}"):
        flatten({"clip": truth([[0, 1]])}, {"clip": detections}, 2)


def test_ground_truth_outside_the_classes_is_named():
    with pytest.raises(DataError, match="ground truth of 'clip': label 0 or 3"):
        flatten({"clip": truth([[0, 1], [2, 3]], [0, 3])}, {}, 2)

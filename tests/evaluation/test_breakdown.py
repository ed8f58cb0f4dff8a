"""mAP of length buckets and of groups of classes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.detections import Detections
from tzn.evaluation.breakdown import bucket_mAP, group_mAP
from tzn.evaluation.detection_map import score_detections
from tzn.evaluation.flat import GroundTruth


def truth(segments, labels=None):
    return GroundTruth(np.array(segments, float).reshape(-1, 2), np.array(labels or [0] * len(segments), int))


def found(segments, scores, labels=None):
    labels = np.array(labels or [0] * len(scores), int)
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), labels)


REAL = {"a": truth([[0, 1], [10, 11], [20, 40]])}  # two of 1 s, one of 20 s


def buckets_of(detections, edges=(2.0,), real=REAL, classes=1):
    result = bucket_mAP(real, detections, classes, (0.5,), edges)
    return {name: (b.segments, pytest.approx(float(b.mAP[0]))) for name, b in result.items()}


def test_a_detection_matched_to_another_bucket_is_neither_right_nor_wrong():
    # Short bucket: only the second detection counts, a hit -> 1/2. Long bucket: only the first -> 1.
    detections = {"a": found([[20, 40], [0, 1]], [0.9, 0.8])}
    assert buckets_of(detections) == {"<= 2 s": (2, 0.5), "> 2 s": (1, 1.0)}


def test_an_unmatched_detection_is_wrong_only_in_the_bucket_of_its_own_length():
    # Short: miss, hit -> precision 1/2 at recall 1/2 -> 1/4. Long: the 1 s miss is left out -> 1.
    detections = {"a": found([[50, 51], [0, 1], [20, 40]], [0.9, 0.8, 0.7])}
    assert buckets_of(detections) == {"<= 2 s": (2, 0.25), "> 2 s": (1, 1.0)}


def test_a_match_counts_where_its_segment_lies_whatever_its_own_length():
    # A detection of 2.5 s on a segment of 1.9 s.
    assert buckets_of({"a": found([[0, 2.5]], [0.9])}, real={"a": truth([[0, 1.9]])}) == {"<= 2 s": (1, 1.0)}


def test_a_length_on_an_edge_belongs_below_it_and_names_tell_the_ranges():
    real = {"a": truth([[0, 2], [10, 13], [20, 24], [30, 35]])}
    assert {n: b[0] for n, b in buckets_of({}, edges=(2.0, 4.0), real=real).items()} == {
        "<= 2 s": 1, "2 - 4 s": 2, "> 4 s": 1,
    }  # fmt: skip


def test_the_mean_of_a_bucket_is_over_its_own_classes():
    # Class 1 has no short segment: the short bucket is class 0 alone, where class 1 would have added 0.
    real = {"a": truth([[0, 1], [20, 40]], [0, 1])}
    assert buckets_of({"a": found([[0, 1]], [0.9])}, real=real, classes=2) == {"<= 2 s": (1, 1.0), "> 2 s": (1, 0.0)}


def test_one_bucket_around_everything_is_the_plain_mAP():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 200, 40)
    segments = np.stack([starts, starts + rng.uniform(1, 9, 40)], 1)
    labels = rng.integers(0, 3, 40).tolist()
    real = {"a": truth(segments, labels)}
    detections = {"a": found(segments + rng.normal(0, 1, (40, 2)), rng.random(40).tolist(), labels)}
    tiou = (0.3, 0.5, 0.7)
    score = score_detections(real, detections, ("x", "y", "z"), tiou)
    (bucket,) = bucket_mAP(real, detections, 3, tiou, (1000.0,)).values()
    np.testing.assert_allclose(bucket.mAP, score.mAP, atol=1e-12)
    assert 0.1 < score.average_mAP < 0.9


def test_no_edges_give_no_buckets():
    assert bucket_mAP(REAL, {}, 1, (0.5,), ()) == {}


def test_edges_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match=r"edges = \[4.0, 2.0\]: expected ascending"):
        bucket_mAP(REAL, {}, 1, (0.5,), (4.0, 2.0))


def test_a_group_of_classes_is_the_mean_of_those_with_ground_truth():
    real = {"a": truth([[0, 1], [10, 11]], [0, 2])}
    score = score_detections(real, {"a": found([[0, 1]], [0.9])}, ("walk", "sit", "stand"), (0.5, 0.7))
    assert group_mAP(score, ["walk"]).tolist() == [1.0, 1.0]
    assert group_mAP(score, ["walk", "stand", "sit"]).tolist() == [0.5, 0.5]
    assert group_mAP(score, ["sit"]) is None

"""The vectorised matching equals the sequential rule that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzn.evaluation import matching
from tzn.evaluation.matching import match, overlapping_pairs, segment_iou

THRESHOLDS = (0.1, 1 / 3, 0.5, 0.75, 1.0)


def sequential(segments, group, truth_segments, truth_group, threshold):
    """Each detection in turn takes the free ground truth of its group with the highest IoU >= threshold.

    0 / 0 counts as infinite; of equal IoUs the later ground truth wins.
    """
    free = [True] * len(truth_segments)
    taken = []
    for (start, end), own in zip(segments, group, strict=True):
        best, best_iou = -1, -1.0
        for g, (s, e) in enumerate(truth_segments):
            if truth_group[g] != own or not free[g]:
                continue
            overlap = max(0.0, min(end, e) - max(start, s))
            union = (end - start) + (e - s) - overlap
            iou = overlap / union if union else float("inf")
            if iou >= threshold and iou >= best_iou:
                best, best_iou = g, iou
        if best >= 0:
            free[best] = False
        taken.append(best)
    return taken


# A coarse grid makes equal IoUs and exact threshold hits common; detections may be inverted or of no length.
detection = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 2))
truth = st.tuples(st.integers(0, 7), st.integers(1, 4), st.integers(0, 2)).map(lambda t: (t[0], t[0] + t[1], t[2]))


@settings(max_examples=300, deadline=None)
@given(st.lists(detection, max_size=14), st.lists(truth, max_size=8))
def test_deferred_acceptance_equals_the_sequential_rule_at_every_threshold(detections, truths):
    found = np.array(detections, dtype=np.float64).reshape(-1, 3)
    real = np.array(truths, dtype=np.float64).reshape(-1, 3)
    group, real_group = found[:, 2].astype(np.int64), real[:, 2].astype(np.int64)
    pairs = overlapping_pairs(found[:, :2], group, real[:, :2], real_group, min(THRESHOLDS))
    taken = match(pairs, len(found), len(real), THRESHOLDS)
    for row, threshold in zip(taken, THRESHOLDS, strict=True):
        assert row.tolist() == sequential(found[:, :2], group, real[:, :2], real_group, threshold)


def test_a_chain_of_refusals_is_resolved_in_score_order():
    # Everyone prefers the first segment; each refusal passes one detection on to the next segment.
    truths = np.array([[0.0, 10.0], [0.0, 9.0], [0.0, 8.0]])
    detections = np.array([[0.0, 10.0], [0.0, 10.0], [0.0, 10.0], [0.0, 10.0]])
    pairs = overlapping_pairs(detections, np.zeros(4, int), truths, np.zeros(3, int), 0.5)
    assert match(pairs, 4, 3, [0.5]).tolist() == [[0, 1, 2, -1]]
    assert match(pairs, 4, 3, [0.85]).tolist() == [[0, 1, -1, -1]]


def test_a_better_detection_displaces_a_worse_one_that_asked_earlier():
    # Detection 1 likes only segment 0; detection 0 likes segment 1 best; detection 2 must give both up.
    truths = np.array([[0.0, 10.0], [20.0, 30.0]])
    detections = np.array([[20.0, 30.0], [0.0, 9.0], [0.0, 10.0]])
    pairs = overlapping_pairs(detections, np.zeros(3, int), truths, np.zeros(2, int), 0.5)
    assert match(pairs, 3, 2, [0.5]).tolist() == [[1, 0, -1]]


def test_pairs_compared_in_chunks_are_the_same_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    starts, truth_starts = rng.uniform(0, 50, 200), rng.uniform(0, 50, 40)
    arguments = (
        np.stack([starts, starts + rng.uniform(1, 5, 200)], 1), rng.integers(0, 4, 200),
        np.stack([truth_starts, truth_starts + 3], 1), rng.integers(0, 4, 40), 0.2,
    )  # fmt: skip
    whole = overlapping_pairs(*arguments)
    monkeypatch.setattr(matching, "CHUNK_PAIRS", 7)
    parts = overlapping_pairs(*arguments)
    assert len(whole.iou) > 20
    for name in ("detection", "truth", "iou"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_no_detections_and_no_ground_truth_match_nothing():
    nothing, group = np.zeros((0, 2)), np.zeros(0, int)
    segment, one = np.array([[0.0, 1.0]]), np.zeros(1, int)
    assert match(overlapping_pairs(nothing, group, segment, one, 0.5), 0, 1, [0.5, 0.7]).shape == (2, 0)
    assert match(overlapping_pairs(segment, one, nothing, group, 0.5), 1, 0, [0.5]).tolist() == [[-1]]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 10], [0, 10], 1.0, id="identical"),
        pytest.param([0, 10], [5, 15], 1 / 3, id="half-shifted"),
        pytest.param([0, 10], [10, 20], 0.0, id="touching"),
        pytest.param([4, 4], [0, 10], 0.0, id="no-length-inside"),
        pytest.param([4, 4], [4, 4], np.nan, id="both-of-no-length"),
        pytest.param([10, 0], [0, 10], np.nan, id="inverted-of-the-same-length"),
    ],
)
def test_iou_by_hand(a, b, expected):
    np.testing.assert_allclose(segment_iou(np.array([a], float), np.array([b], float)), [expected])

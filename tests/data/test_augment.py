"""Crops and stretch: bounds, kept segments, distribution limits."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.data.augment import clip_segments, random_crop, stretch_length

NOTHING = np.zeros((0, 2))


def test_segments_are_clipped_to_what_the_window_shows():
    segments = np.array([[2.0, 8.0], [9.0, 12.0], [0.0, 40.0], [19.0, 29.0], [30.0, 31.0]])
    clipped, kept = clip_segments(segments, 10, 20, reach=0.5, trunc_thresh=0.25)
    # [2, 8] and [30, 31] are outside; [19, 29] shows 1.5 of 10 (15 %); [0, 40] shows 11 of 40 (27.5 %).
    assert kept.tolist() == [1, 2]
    np.testing.assert_array_equal(clipped, [[9.5, 12.0], [9.5, 20.5]])


def test_share_equal_to_the_threshold_is_kept():
    segments = np.array([[5.0, 15.0]])
    assert clip_segments(segments, 0, 10, 0.0, 0.5)[1].tolist() == [0]
    assert clip_segments(segments, 0, 10, 0.0, 0.51)[1].tolist() == []


def test_threshold_zero_still_drops_what_is_outside():
    assert clip_segments(np.array([[11.0, 12.0]]), 0, 10, 0.5, 0.0)[1].tolist() == []


@pytest.mark.parametrize(
    ("length", "max_length", "ratio", "sizes"),
    [
        pytest.param(100, 200, None, {100}, id="short-without-ratio-stays-whole"),
        pytest.param(100, 200, (1.0, 1.0), {100}, id="ratio-1-stays-whole"),
        pytest.param(10, 200, (0.75, 0.95), {8, 9, 10}, id="ratio-of-a-short-one"),  # round(7.5) = 8, round(9.5) = 10
        pytest.param(1, 200, (0.1, 0.2), {1}, id="one-step"),
        pytest.param(100, 100, (0.98, 1.0), {98, 99, 100}, id="exactly-the-maximum-uses-the-ratio"),
        pytest.param(101, 100, (0.1, 0.2), {100}, id="longer-is-cut-to-the-maximum"),
    ],
)
def test_crop_sizes(length, max_length, ratio, sizes):
    rng = np.random.default_rng(0)
    crops = [random_crop(NOTHING, length, max_length, ratio, 0.5, 0.5, rng) for _ in range(200)]
    assert {stop - start for start, stop in crops} == sizes
    assert min(start for start, _ in crops) >= 0 and max(stop for _, stop in crops) <= length


def test_every_start_occurs():
    rng = np.random.default_rng(0)
    starts = {random_crop(NOTHING, 14, 10, None, 0.5, 0.5, rng)[0] for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_crop_finds_the_only_segment():
    segments = np.array([[700.0, 703.0]])
    for seed in range(50):
        start, stop = random_crop(segments, 1000, 100, None, 0.5, 0.5, np.random.default_rng(seed))
        assert len(clip_segments(segments, start, stop, 0.5, 0.5)[1]) == 1


def test_crop_gives_up_after_200_tries():
    class Counting:
        calls = 0

        def integers(self, low, high):
            self.calls += 1
            return low

    rng = Counting()
    assert random_crop(np.array([[900.0, 990.0]]), 1000, 10, None, 0.9, 0.5, rng) == (0, 10)
    assert rng.calls == 200


def test_stretch_stays_in_its_range_and_reaches_both_ends():
    rng = np.random.default_rng(0)
    lengths = [stretch_length(1000, 0.25, rng) for _ in range(5000)]
    assert 800 <= min(lengths) < 805 and 1245 < max(lengths) <= 1250
    assert abs(np.median(lengths) - 1000) < 20  # as often longer as shorter
    assert stretch_length(1, 0.25, rng) == 1

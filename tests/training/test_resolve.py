from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_run

from tzn.data.annotations import Annotations, Recording, load_annotations
from tzn.data.dataset import RecordingDataset
from tzn.detections import Detections
from tzn.training.resolve import (
    LEAST_STEPS,
    SEGMENTS_MARGIN,
    best_f1_threshold,
    densest_span,
    fingerprint,
    resolve_config,
)


def _recording(name: str, starts: np.ndarray, *, fps: float | None = 10.0, duration: float | None = None) -> Recording:
    segments = np.stack([starts, starts + 0.5], 1)
    return Recording(name, "training", duration, fps, segments, np.zeros(len(starts), np.int64))


def _dataset(tmp_path, recordings, *overrides: str) -> RecordingDataset:
    config = small_run.small_config("data.fps=null", *overrides)
    for r in recordings:
        np.save(tmp_path / f"{r.id}.npy", np.zeros((10, 6), np.float32))
    annotations = Annotations(("a", "b", "c"), {r.id: r for r in recordings})
    return RecordingDataset(annotations, recordings, tmp_path, config.data, 6, training=True)


def test_the_densest_stretch_of_a_long_recording_counts(tmp_path):
    # 10 steps a second: 16,384 steps are 1,638.4 s. 300 segments in 300 s, then one every 100 s.
    starts = np.concatenate([np.arange(300.0), np.arange(400.0, 6000.0, 100.0)])
    dataset = _dataset(tmp_path, [_recording("long", starts, duration=6100.0)])
    assert densest_span(dataset) == 300 + 13  # those that begin before 1,638.4 s
    resolved = resolve_config(small_run.small_config("data.fps=null"), dataset)
    assert resolved.inference.max_segments == SEGMENTS_MARGIN * 313


def test_a_short_recording_counts_as_if_it_went_on(tmp_path):
    short = _recording("short", np.arange(0.0, 204.8, 5.0), duration=204.8)  # 2,048 steps, an eighth of the span
    assert densest_span(_dataset(tmp_path, [short])) == pytest.approx(8 * 41)
    tiny = _recording("tiny", np.array([0.0]), duration=1.0)
    assert densest_span(_dataset(tmp_path, [tiny])) == pytest.approx(16384 / LEAST_STEPS)
    assert densest_span(_dataset(tmp_path, [short], "data.fixed_length=192")) == 41


def test_a_number_that_was_asked_for_stays_and_sparse_data_get_the_usual_one(tmp_path):
    sparse = _dataset(tmp_path, [_recording("a", np.array([1.0, 50.0]), duration=3000.0)])
    config = small_run.small_config("data.fps=null")
    assert config.inference.max_segments is None and config.inference.segment_limit == 200
    assert resolve_config(config, sparse).inference.max_segments == 200
    asked = small_run.small_config("data.fps=null", "inference.max_segments=70")
    assert resolve_config(asked, sparse).inference.max_segments == 70


def test_the_rate_is_stored_where_all_recordings_share_it(tmp_path):
    one = [_recording(name, np.array([1.0])) for name in "ab"]
    config = small_run.small_config("data.fps=null")
    assert resolve_config(config, _dataset(tmp_path, one)).data.usual_fps == 10.0
    mixed = [one[0], dataclasses.replace(one[1], fps=12.0)]
    assert resolve_config(config, _dataset(tmp_path, mixed)).data.usual_fps is None
    # A recording without a rate of its own is read at the stored one, another keeps its own.
    stored = _dataset(tmp_path, [dataclasses.replace(one[0], fps=None), mixed[1]], "data.usual_fps=10")
    assert [stored.frame_rate(i) for i in range(2)] == [10.0, 12.0]


def test_the_threshold_is_the_one_of_the_best_f1():
    truth = [_recording("a", np.array([0.0, 10.0, 20.0]))]
    starts = np.array([0.0, 10.0, 40.0, 20.0, 50.0, 60.0])  # right, right, wrong, right, wrong, wrong
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1])
    found = Detections(np.stack([starts, starts + 0.5], 1), scores, np.zeros(6, np.int64), None)
    # F1 from 0.9 on: 2/4; 0.8: 4/5; 0.7: 4/6; 0.6, which two share: 6/8; 0.1: 6/9.
    assert best_f1_threshold(truth, {"a": found}, 1) == 0.8
    assert best_f1_threshold(truth, {"a": dataclasses.replace(found, segments=found.segments + 100)}, 1) is None
    assert best_f1_threshold(truth, {}, 1) is None


def test_fingerprints_tell_recordings_apart(shared):
    recordings = load_annotations(shared / "data/hapt/annotations.json").subset("training")
    whole = fingerprint(("a",), recordings)
    assert whole == fingerprint(("a",), recordings[::-1]) and whole["recordings"] == len(recordings)
    assert whole != fingerprint(("a",), recordings[1:]) and whole != fingerprint(("b",), recordings)
    moved = dataclasses.replace(recordings[0], segments=recordings[0].segments + 0.01)
    assert whole != fingerprint(("a",), [moved, *recordings[1:]])

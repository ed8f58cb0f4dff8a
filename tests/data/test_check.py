"""``tzn data check`` on a folder whose every count is known, and the suggestions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tzn.config import DataConfig
from tzn.data.check import check_dataset
from tzn.data.suggest import suggest
from tzn.errors import DataError

FRAMES = DataConfig(feat_stride=5, num_frames=5)  # at 50 fps: 10 steps a second


def entry(subset, *segments, duration=20.0, fps=50.0):
    annotations = [{"segment": [a, b], "label": label} for a, b, label in segments]
    return {"subset": subset, "duration": duration, "fps": fps, "annotations": annotations}


@pytest.fixture
def folder(tmp_path):
    database = {
        # Gaps to what ended before: 0 (touches), 0.1 (one step: touches), 0.11 (does not), -0.5 (overlaps).
        "one": entry("training", (0, 2, "a"), (2, 4, "b"), (4.1, 6, "a"), (6.11, 8, "b"), (7.5, 9, "a")),
        # A long segment that two short ones lie in: both overlap it.
        "two": entry("training", (12, 13, "a"), (0, 16, "b"), (3, 4, "a")),
        "three": entry("test", (1, 5, "a"), (5, 4, "a"), (18, 25, "b")),
        "four": entry("test"),
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    (tmp_path / "features").mkdir()
    for name in ("one", "two", "three", "unknown"):
        np.save(tmp_path / "features" / f"{name}.npy", np.zeros((200, 6), np.float16))
    return tmp_path


def test_counts_of_a_known_folder(folder):
    report = check_dataset(folder, FRAMES, input_dim=6)
    assert report.touching == 2 and report.overlapping == 3
    training, test = report.subsets["training"], report.subsets["test"]
    assert (training.recordings, training.segments) == (2, 8) and training.hours == pytest.approx(40 / 3600)
    assert (test.recordings, test.segments) == (2, 2)
    assert report.classes == {"a": {"training": 5, "test": 1}, "b": {"training": 3, "test": 1}}
    assert report.problems == {"end before start": 1, "ends after the recording": 1}
    assert "recording 'three', segment 1: [5, 4]: end before start" in report.listed
    # Lengths: 1, 1 | 1.5, 1.89, 1.9 | 2, 2, 2 (18 to 20 after clipping) | 4 | 16.
    assert [(low, n) for low, _, n in report.histogram] == [(1, 5), (2, 3), (4, 1), (8, 0), (16, 1)]
    assert report.percentiles[0] == 1 and report.percentiles[100] == 16
    assert report.percentile_steps[100] == pytest.approx(160)


def test_features_of_a_known_folder(folder):
    np.save(folder / "features" / "two.npy", np.zeros((100, 7), np.float32))
    features = check_dataset(folder, FRAMES, input_dim=6).features
    assert (features.found, features.missing, features.extra) == (3, {"test": 1}, 1)
    assert features.widths == {6: 2, 7: 1} and features.dtypes == {"float16": 2, "float32": 1}
    assert features.values_checked
    problems = "\n".join(features.problems)
    assert "two.npy: 7 wide, expected 6" in problems
    assert "two: 100 steps cover 10.00 s, but its duration is 20.00 s" in problems
    assert len(features.problems) == 2


def test_damaged_and_non_finite_features_are_listed_not_raised(folder):
    np.save(folder / "features" / "one.npy", np.full((200, 6), np.nan, np.float32))
    (folder / "features" / "two.npy").write_bytes(b"rubbish")
    problems = "\n".join(check_dataset(folder, FRAMES).features.problems)
    assert "one.npy: feature value nan at step 0, channel 0" in problems
    assert "two.npy: not a NumPy file" in problems


def test_wrong_stride_is_explained(folder):
    features = check_dataset(folder, DataConfig(feat_stride=10, num_frames=10)).features
    assert "features cover 2 times the durations (median): check data.feat_stride" in features.problems[0]


def test_text_shows_what_matters(folder):
    text = check_dataset(folder, FRAMES, input_dim=6).text()
    for expected in (
        "training           2   0.01         8",
        "2 segments (20 %) start within one step after another ends, 3 (30 %) before it ends",
        "3 recordings have a file, 1 files belong to no recording",
        "missing in subset 'test': 1",
        "bad segments: 1 end before start, 1 ends after the recording",
        "first_stride: 2",
    ):
        assert expected in text, text
    assert not any(line != line.rstrip() for line in text.split("\n"))


def test_json_form_is_plain_data(folder):
    plain = json.loads(json.dumps(check_dataset(folder, FRAMES).to_dict()))
    assert plain["touching"] == 2 and plain["features"]["extra"] == 1
    assert plain["suggestions"]["model"]["first_stride"] == 2


def test_annotation_file_alone(folder):
    alone = folder.parent / "alone.json"
    alone.write_text((folder / "annotations.json").read_text())
    report = check_dataset(alone, FRAMES)
    assert report.features is None and report.touching == 2
    assert "no folder, only the annotations were checked" in report.text()


def test_without_frame_rate_there_are_seconds_only(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"database": {"a": entry("training", (0, 2, "x"), (2, 4, "x"), fps=None)}}))
    report = check_dataset(tmp_path, FRAMES)
    assert report.percentile_steps == {} and report.suggestions is None and report.touching == 1
    assert "suggested" not in report.text()


def test_no_segments_at_all(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"a": entry("test")}}))
    report = check_dataset(tmp_path, FRAMES)
    assert report.segments == 0 and report.histogram == [] and "no segments" in report.text()


def test_fixed_length_measures_in_resized_steps(folder):
    config = DataConfig(feat_stride=5, num_frames=5, fixed_length=100)  # 20 s in 100 steps
    report = check_dataset(folder, config)
    assert report.percentile_steps[100] == pytest.approx(80)
    assert report.suggestions.max_length == 112  # 100, rounded up to the coarsest stride 16


def test_missing_annotations_raise(tmp_path):
    with pytest.raises(DataError, match=r"annotations\.json: no such file"):
        check_dataset(tmp_path, FRAMES)


@pytest.mark.parametrize(
    ("lengths", "stride", "ranges"),
    [
        pytest.param(
            [22.8] * 5 + [301.0] * 95, 4, [[0, 16], [16, 32], [32, 64], [64, 128], [128, 10000]], id="hapt-like"
        ),
        pytest.param([4.5] * 100, 1, [[0, 10000]], id="all-short"),
        pytest.param([0.5] * 50 + [30.0] * 50, 1, [[0, 4], [4, 8], [8, 10000]], id="shorter-than-a-step"),
        pytest.param([1000.0] * 100, 8, [[0, 32], [32, 64], [64, 128], [128, 256], [256, 10000]], id="all-long"),
    ],
)
def test_suggested_pyramid(lengths, stride, ranges):
    found = suggest(np.array(lengths), np.array([5000.0])).to_dict()
    assert found["model"]["first_stride"] == stride
    assert found["model"]["regression_ranges"] == ranges and found["model"]["num_levels"] == len(ranges)
    assert bool(found["notes"]) == (min(lengths) < 2)
    shortest = np.percentile(lengths, 2)
    assert stride == 1 or shortest / stride >= 2  # points inside a segment, whatever its position


def test_suggested_crop_holds_most_recordings_but_not_huge_ones():
    lengths = np.full(10, 40.0)
    assert suggest(lengths, np.full(20, 500.0)).max_length == 504
    assert suggest(lengths, np.full(20, 1e6)).max_length == 2304
    # Four segments of 2,000, rounded up to the coarsest stride 256.
    assert suggest(np.full(10, 2000.0), np.full(20, 1e6)).max_length == 8192


def test_real_data_sets(shared):
    hapt = check_dataset(shared / "data/hapt", FRAMES, input_dim=30)
    assert hapt.problems == {} and hapt.features.problems == [] and hapt.features.missing == {}
    assert hapt.features.widths == {30: 61} and hapt.features.dtypes == {"float16": 61}
    assert hapt.suggestions.first_stride == 4 and hapt.suggestions.num_levels == 5
    thumos = check_dataset(shared / "data/thumos14", DataConfig(feat_stride=4, num_frames=16))
    assert thumos.features is None and thumos.problems == {"outside the recording": 30}
    ludb = check_dataset(shared / "data/ludb", DataConfig(fps=250), input_dim=12)
    assert ludb.problems == {} and ludb.features.problems == [] and ludb.touching == 0

"""The synthetic generator: determinism, geometry, and boundaries where the annotations say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tzn.data.annotations import load_annotations
from tzn.data.features import load_features
from tzn.data.synthetic import RISE, _Action, _envelope, generate_synthetic


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_synthetic(tmp_path_factory.mktemp("synthetic"))


def test_same_seed_same_files(tmp_path):
    one = generate_synthetic(tmp_path / "one", num_recordings=4, seed=3)
    two = generate_synthetic(tmp_path / "two", num_recordings=4, seed=3)
    other = generate_synthetic(tmp_path / "other", num_recordings=4, seed=4)
    assert content(one) == content(two)
    assert set(content(one)) == {"annotations.json", *(f"features/synthetic_{i:03d}.npy" for i in range(4))}
    assert all(content(one)[name] != content(other)[name] for name in content(one))


def test_more_recordings_do_not_change_the_first(tmp_path):
    few = content(generate_synthetic(tmp_path / "few", num_recordings=2))
    many = content(generate_synthetic(tmp_path / "many", num_recordings=5))
    assert few["features/synthetic_001.npy"] == many["features/synthetic_001.npy"]


def test_recordings_are_as_asked_for(folder):
    annotations = load_annotations(folder / "annotations.json")
    assert annotations.classes == tuple(f"class_{k}" for k in range(5))
    assert len(annotations.subset("training")) == 16 and len(annotations.subset("test")) == 8
    for recording in annotations.recordings.values():
        features = load_features(folder / "features" / f"{recording.id}.npy", 16)
        assert 300 <= len(features) <= 600 and recording.duration == pytest.approx(len(features) / 10)
        assert np.load(folder / "features" / f"{recording.id}.npy").dtype == np.float32
    labels = np.concatenate([r.labels for r in annotations.recordings.values()])
    assert np.bincount(labels, minlength=5).min() >= 10


def test_segments_vary_from_short_to_long_and_some_touch_or_overlap(folder):
    annotations = load_annotations(folder / "annotations.json")
    segments = [r.segments for r in annotations.recordings.values()]
    lengths = np.concatenate([s[:, 1] - s[:, 0] for s in segments])
    assert lengths.min() >= 0.799 and lengths.max() <= 15.001
    assert np.percentile(lengths, 10) < 2 and np.percentile(lengths, 90) > 7
    gaps = np.concatenate([s[1:, 0] - s[:-1, 1] for s in segments])
    assert (np.abs(gaps) < 0.01).sum() >= 10 and (gaps < -0.05).sum() >= 5 and (gaps > 0.5).sum() >= 40


def test_fades_span_the_range_asked_for(tmp_path):
    folder = generate_synthetic(tmp_path, num_recordings=12, sharpness=(2.0, 10.0))
    database = json.loads((folder / "annotations.json").read_text())["database"]
    fades = np.array([a["fade"] for r in database.values() for a in r["annotations"]]) * 10
    assert fades.min() >= 1.99 and fades.max() <= 10.01
    assert fades.min() < 2.5 and fades.max() > 8


@pytest.mark.parametrize("fade", [0.1, 0.5, 1.5])
def test_envelope_is_half_at_the_boundaries_and_rises_within_the_fade(fade):
    action = _Action(10.0, 30.0, 0, (fade, fade))
    time = np.array([10.0, 30.0, 10 - fade / 2, 10 + fade / 2, 20.0, 0.0, 100.0])
    np.testing.assert_allclose(_envelope(time, action), [0.5, 0.5, 0.1, 0.9, 1, 0, 0], atol=1e-5)
    assert pytest.approx(4.394, abs=1e-3) == RISE


def test_actions_stand_out_of_the_background(tmp_path):
    folder = generate_synthetic(tmp_path, num_recordings=20, sharpness=(1.0, 2.0))
    inside, outside = [], []
    for recording in load_annotations(folder / "annotations.json").recordings.values():
        features = load_features(folder / "features" / f"{recording.id}.npy")
        time = (np.arange(len(features)) + 0.5) / 10
        active = np.zeros(len(features), bool)
        for start, end in recording.segments:
            active |= (time > start) & (time < end)
        energy = np.square(features).mean(1)
        inside.append(energy[active].mean())
        outside.append(energy[~active].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_recordings", 0),
        ("length", (10, 20)),
        ("length", (400, 300)),
        ("num_classes", 0),
        ("channels", 1),
        ("sharpness", (0.0, 3.0)),
        ("test_share", 1.0),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, argument, value):
    with pytest.raises(ValueError, match=argument):
        generate_synthetic(tmp_path / "out", **{argument: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_classes", [1, 2, 9])
def test_other_class_counts_and_two_channels(tmp_path, num_classes):
    folder = generate_synthetic(tmp_path, num_recordings=3, num_classes=num_classes, channels=2, test_share=0)
    annotations = load_annotations(folder / "annotations.json")
    assert len(annotations.subset("training")) == 3 and len(annotations.classes) <= num_classes

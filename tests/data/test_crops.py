"""Training crops in proportion to length, balanced by class, stretched after they are cut; and pooled steps."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tzn.config import DataConfig
from tzn.data.annotations import load_annotations
from tzn.data.augment import CropSampler, focused_crop
from tzn.data.dataset import RecordingDataset, recording_grid
from tzn.data.pooling import pooled
from tzn.errors import ConfigError, DataError

RATE = 10.0
# Ends lie between steps, also of pools of two and four. The rare class has one segment, in the long recording.
OFTEN = [(t, t + 8, "often") for t in range(50, 650, 30)]
SEGMENTS = {"short": [(2, 6, "often")], "long": [*OFTEN, (700, 708, "rare")]}
STEPS = {"short": 100, "long": 10_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Channel 0 is 1 inside segments, channel 1 counts steps, channel 2 is a flag."""
    made = tmp_path_factory.mktemp("data")
    (made / "features").mkdir()
    database = {}
    for name, segments in SEGMENTS.items():
        x = np.zeros((STEPS[name], 3), np.float32)
        x[:, 1], x[::7, 2] = np.arange(STEPS[name]), 1
        centre = (np.arange(STEPS[name]) + 0.5) / RATE
        for start, end, _ in segments:
            x[(centre > start) & (centre < end), 0] = 1
        np.save(made / "features" / f"{name}.npy", x)
        database[name] = {
            "subset": "training", "duration": STEPS[name] / RATE, "fps": RATE,
            "annotations": [{"segment": [s, e], "label": label} for s, e, label in segments],
        }  # fmt: skip
    (made / "annotations.json").write_text(json.dumps({"database": database}))
    return made


def dataset(folder, **settings):
    config = DataConfig(max_length=200, crop_ratio=None, **settings)
    annotations = load_annotations(folder / "annotations.json")
    recordings = annotations.subset("training")
    return RecordingDataset(annotations, recordings, folder / "features", config, 3, training=True)


def test_crops_are_spread_by_length(folder):
    data = dataset(folder, crops_per_epoch=51)
    counts = np.zeros(2)
    for epoch in range(20):
        data.set_epoch(epoch)
        ids = [data._sampler.draw(epoch, i, np.random.default_rng(i))[0] for i in range(len(data))]
        counts += np.bincount(ids, minlength=2)
        # 50 crops of 200 steps fit into the long recording, one into the short.
        assert np.bincount(ids, minlength=2) == pytest.approx([1, 50], abs=1)
    assert counts / counts.sum() == pytest.approx([1 / 51, 50 / 51], abs=0.005)


def test_items_depend_on_nothing_but_seed_epoch_and_place(folder):
    data, again = (dataset(folder, crops_per_epoch=8, stretch=0.2, noise=0.1, balance=0.5) for _ in range(2))
    for epoch in (0, 3):
        data.set_epoch(epoch), again.set_epoch(epoch)
        for i in (5, 2):
            assert torch.equal(data[i].features, again[i].features)
    again.set_epoch(4)
    assert not torch.equal(data[2].features[:50], again[2].features[:50])


def test_balance_shows_rare_classes(folder):
    seen = {}
    for balance in (0.0, 1.0):
        data = dataset(folder, crops_per_epoch=60, balance=balance)
        seen[balance] = sum(int((data[i].labels == data.classes.index("rare")).any()) for i in range(60))
    assert seen[0.0] < 60 / 4
    assert 60 / 4 < seen[1.0] < 60 * 3 / 4


@pytest.mark.parametrize(
    "settings", [{}, {"stretch": 0.3}, {"pool": 2}, {"pool": 4, "pool_kind": "flatten", "stretch": 0.3}]
)
def test_segments_stay_where_the_features_say(folder, settings):
    data = dataset(folder, crops_per_epoch=40, balance=1.0, **settings)
    errors = []
    for i in range(40):
        example = data[i]
        inside = example.features[:, 0].numpy() > 0.5
        for start, end in example.segments.numpy():
            if start > 2 and end < len(inside) - 3:
                steps = np.flatnonzero(inside)
                steps = steps[(steps > start - 3) & (steps < end + 3)]
                errors.append([steps[0] - 0.5 - start, steps[-1] + 0.5 - end])
    assert len(errors) > 5
    # Interpolation puts a crossing of one half up to half a step of either grid beside its place.
    assert np.abs(errors).max() < (1.2 if "stretch" in settings else 1e-3)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.3


def test_a_focus_is_shown_and_all_its_windows_are_possible():
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(400):
        start, stop = focused_crop(np.zeros((0, 2)), 100, 20, None, 0.5, 0.5, rng, 50.0)
        assert start <= 50 < stop and stop - start == 20
        starts.add(start)
    assert starts == set(range(31, 51))
    for focus in (0.0, 99.4):
        start, stop = focused_crop(np.zeros((0, 2)), 100, 20, None, 0.5, 0.5, rng, focus)
        assert start <= focus < stop


def test_gain_and_noise_leave_exact_channels_alone(folder):
    data = dataset(folder, crops_per_epoch=4, gain=0.5, noise=0.5, exact_channels=(2,), pool=3, pool_kind="flatten")
    flags = data[0].features[:, [2, 5, 8]]
    assert set(np.unique(flags)) <= {0.0, 1.0}
    assert len(np.unique(data[0].features[:, 0])) > 10
    with pytest.raises(DataError, match="exact_channels"):
        dataset(folder, crops_per_epoch=4, gain=0.5, exact_channels=(3,))[0]


def test_pooled_steps_and_their_grid():
    rows = torch.arange(14.0).reshape(7, 2)
    mean, flat = (
        DataConfig(pool=3, pool_kind=kind, fps=10, feat_stride=2, num_frames=4) for kind in ("mean", "flatten")
    )
    assert pooled(rows, mean).tolist() == [[2, 3], [8, 9]]
    assert pooled(rows, flat).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert pooled(rows[:2], mean).shape == (1, 2)
    grid = recording_grid(7, mean, 10.0)
    # Steps 0 to 2 see frames 0 to 8: the middle is frame 4. The next three begin 6 frames later.
    assert (grid.to_seconds(0), grid.to_seconds(1)) == pytest.approx((0.4, 1.0))
    with pytest.raises(ConfigError, match="pool"):
        DataConfig(pool=2, fixed_length=100)
    with pytest.raises(ConfigError, match="balance"):
        DataConfig(balance=0.5)


def test_large_values_are_tamed_in_their_own_channels(folder):
    rows = torch.tensor([[0.1, 5.0], [-1000.0, 5.0]])
    config = DataConfig(log_channels=(0,), log_scales=(2.0,))
    assert torch.allclose(
        pooled(rows, config), torch.tensor([[np.arcsinh(0.05), 5.0], [-np.arcsinh(500.0), 5.0]]).float()
    )
    data = dataset(folder, log_channels=(1,), log_scales=(100.0,), pool=2)
    # Before they are averaged, and the same for a recording that is predicted.
    whole = data.raw(0)[0]
    assert float(whole[0, 1]) == pytest.approx((np.arcsinh(0) + np.arcsinh(0.01)) / 2)
    for bad in ({"log_channels": (0,)}, {"log_channels": (0,), "log_scales": (0.0,)}):
        with pytest.raises(ConfigError, match="log_scales"):
            DataConfig(**bad)
    with pytest.raises(DataError, match="log_channels"):
        pooled(rows, DataConfig(log_channels=(2,), log_scales=(1.0,)))


def test_segments_without_labels_are_no_class_to_draw(folder):
    config = DataConfig(max_length=200, crops_per_epoch=4, balance=1.0)
    recordings = load_annotations(folder / "annotations.json").subset("training")
    empty = [dataclasses.replace(r, segments=np.zeros((0, 2)), labels=np.zeros(0, np.int64)) for r in recordings]
    sampler = CropSampler(empty, np.array([100, 10_000]), config, 0)
    assert sampler.draw(0, 0, np.random.default_rng(0))[1] is None

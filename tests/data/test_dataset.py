"""Examples and batches: features and segments must tell the same time, whatever was cut or stretched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tzn.config import DataConfig
from tzn.data import dataset as dataset_module
from tzn.data.annotations import Annotations, Recording, load_annotations
from tzn.data.dataset import RecordingDataset, class_names, collate, fit_standardisation, resize, select_recordings
from tzn.data.grid import TimeGrid
from tzn.data.stores import Store
from tzn.errors import DataError

FPS, STRIDE, FRAMES = 50.0, 5.0, 5.0
SEGMENTS = np.array([[1.0, 3.0], [3.0, 4.5], [10.0, 18.0], [19.0, 19.8]])


def recording(name, subset="training", segments=SEGMENTS, duration=20.0, fps=FPS):
    return Recording(name, subset, duration, fps, np.asarray(segments, float), np.arange(len(segments)) % 2)


def annotations_of(*recordings):
    return Annotations(("walk", "run"), {r.id: r for r in recordings})


def clock_features(steps=200, stride=STRIDE, frames=FRAMES, fps=FPS):
    """Channel 0 is the time of the step's centre in seconds, channel 1 its square."""
    time = (np.arange(steps) * stride + 0.5 * frames) / fps
    return np.stack([time, time**2], 1).astype(np.float32)


@pytest.fixture
def make(tmp_path):
    def _make(*, training=True, recordings=None, features=None, seed=0, **config):
        recordings = recordings or [recording("a"), recording("b"), recording("c")]
        for r in recordings:
            np.save(tmp_path / f"{r.id}.npy", clock_features() if features is None else features)
        config = DataConfig(**{"feat_stride": STRIDE, "num_frames": FRAMES, **config})
        return RecordingDataset(
            annotations_of(*recordings), recordings, tmp_path, config, None, training=training, seed=seed
        )

    return _make


def test_test_example_is_the_whole_recording_in_grid_steps(make):
    example = make(training=False)[1]
    assert example.id == "b" and example.duration == 20.0
    assert example.features.shape == (200, 2) and example.features.dtype == torch.float32
    assert example.segments.dtype == torch.float32 and example.labels.dtype == torch.int64
    # 10 steps a second, step 0 centred at 0.05 s: second 3 is step 29.5.
    np.testing.assert_allclose(example.segments, [[9.5, 29.5], [29.5, 44.5], [99.5, 179.5], [189.5, 197.5]], rtol=1e-6)
    assert example.labels.tolist() == [0, 1, 0, 1]
    assert example.grid == TimeGrid(0.1, 0.05)


AUGMENTATIONS = [
    pytest.param({"max_length": 60}, id="cropped-to-the-maximum"),
    pytest.param({"crop_ratio": (0.5, 0.8)}, id="cropped-to-a-share"),
    pytest.param({"stretch": 0.5, "crop_ratio": None}, id="stretched"),
    pytest.param({"stretch": 0.5, "max_length": 50}, id="stretched-and-cropped"),
    pytest.param({"fixed_length": 64, "max_length": 64}, id="resized-and-cropped"),
    pytest.param({"fixed_length": 64, "max_length": 40, "stretch": 0.3}, id="resized-stretched-and-cropped"),
]


@pytest.mark.parametrize("settings", AUGMENTATIONS)
def test_training_examples_keep_features_and_segments_in_time(make, settings):
    data = make(**settings)
    lengths, seen = set(), 0
    for epoch in range(15):
        data.set_epoch(epoch)
        for example in (data[i] for i in range(3)):
            steps = example.features.shape[0]
            lengths.add(steps)
            assert steps <= data.config.max_length
            clock = example.grid.to_seconds(np.arange(steps))
            # Linear interpolation keeps a clock exact, but for the outermost steps, which repeat the edge.
            inner = (clock > 0.5) & (clock < 19.5)
            np.testing.assert_allclose(example.features[inner, 0], clock[inner], atol=1e-4)
            seconds = example.grid.to_seconds(example.segments.double().numpy())
            for segment, label in zip(seconds, example.labels.tolist(), strict=True):
                whole = [s for s, k in zip(SEGMENTS, [0, 1, 0, 1], strict=True) if k == label]
                best = max(whole, key=lambda s: min(s[1], segment[1]) - max(s[0], segment[0]))
                assert best[0] - 1e-4 <= segment[0] < segment[1] <= best[1] + 1e-4
                assert segment[1] - segment[0] >= 0.5 * (best[1] - best[0]) - 1e-4
                seen += 1
            assert len(example.segments) > 0
            assert example.segments.min() >= -0.5 - 1e-4 and example.segments.max() <= steps + 0.5 + 1e-4
    assert seen > 45 and (len(lengths) > 3 or data.config.max_length in (40, 50, 60))


def test_items_depend_on_seed_epoch_and_index_only(make):
    settings = {"max_length": 60, "noise": 0.1, "gain": 0.2, "stretch": 0.2}
    first, second = make(**settings), make(**settings)

    def item(data, epoch, index):
        data.set_epoch(epoch)
        return data[index].features

    forwards = {(e, i): item(first, e, i) for e in range(3) for i in range(3)}
    for (e, i), expected in reversed(forwards.items()):  # another order, another object
        assert torch.equal(item(second, e, i), expected)
    different = [forwards[0, 0], forwards[1, 0], forwards[0, 1], item(make(seed=1, **settings), 0, 0)]
    clocks = {tuple(x[:3, 0].tolist()) for x in different}
    assert len(clocks) == 4


def test_loader_processes_see_the_same_data(make):
    data = make(max_length=60, noise=0.1)
    data.channel_stats = fit_standardisation(data)
    data.set_epoch(4)
    loaded = list(DataLoader(data, 1, num_workers=2, collate_fn=collate, multiprocessing_context="fork"))
    for i, batch in enumerate(loaded):
        assert torch.equal(batch.features[0], data[i].features)


def test_a_gain_does_not_move_a_channel_that_lies_far_from_zero(make):
    """Counts of a converter, a pressure: scaled as one whose mean is five standard deviations from zero."""
    features = np.stack([np.linspace(-10, 10, 4000), np.linspace(-1, 1, 4000)], 1).astype(np.float32)
    settings = {"gain": 0.3, "crop_ratio": None, "max_length": 5000}

    def items(offset):
        data = make(features=features + np.float32([0, offset]), **settings)
        for epoch in range(5):
            data.set_epoch(epoch)
            yield data[0].features

    plain, moved = list(items(5 * features[:, 1].std())), list(items(1000))
    offset = 1000 - 5 * features[:, 1].std()
    for one, other in zip(plain, moved, strict=True):
        assert not torch.allclose(one[:, 1], torch.from_numpy(features[:, 1]), atol=0.01)
        torch.testing.assert_close(other[:, 0], one[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(other[:, 1] - offset, one[:, 1], rtol=0, atol=1e-3)


def test_noise_and_gain_are_in_their_units(make):
    features = np.stack([np.linspace(-10, 10, 4000), np.linspace(-1, 1, 4000)], 1).astype(np.float32)
    noisy = make(features=features, noise=0.5, crop_ratio=None, max_length=5000)
    difference = noisy[0].features.numpy() - features
    np.testing.assert_allclose(difference.std(0) / features.std(0), 0.5, rtol=0.05)
    loud = make(features=features, gain=0.3, crop_ratio=None, max_length=5000)
    gains = []
    for epoch in range(200):
        loud.set_epoch(epoch)
        ratio = loud[0].features.numpy()[0] / features[0]
        gains.append(np.log(ratio))
    assert np.std(gains) == pytest.approx(0.3, rel=0.1)
    assert np.corrcoef(np.array(gains).T)[0, 1] < 0.3  # a gain of its own per channel
    # The cached features were not touched.
    np.testing.assert_array_equal(loud.raw(0)[0], features)


@pytest.mark.parametrize("steps", [37, 192, 500])
def test_fixed_length_follows_the_activitynet_rule(make, steps):
    features = np.random.default_rng(0).standard_normal((steps, 2)).astype(np.float32)
    data = make(training=False, features=features, fixed_length=192, feat_stride=16, num_frames=16, fps=15)
    example = data[0]
    assert example.features.shape == (192, 2)
    stride = ((steps - 1) * 16 + 16) / 192
    expected = SEGMENTS * 15 / stride - 0.5
    np.testing.assert_allclose(example.segments, expected, rtol=1e-5, atol=1e-5)
    position = np.clip((np.arange(192) + 0.5) * steps / 192 - 0.5, 0, steps - 1)
    for c in range(2):
        np.testing.assert_allclose(
            example.features[:, c], np.interp(position, np.arange(steps), features[:, c]), atol=1e-4
        )


def test_resize_of_one_step_repeats_it():
    assert torch.equal(resize(torch.tensor([[2.0, 3.0]]), 4), torch.tensor([[2.0, 3.0]]).expand(4, 2))


def test_training_drops_what_the_features_do_not_show_and_testing_keeps_it(make):
    segments = [[1, 2], [15, 25], [30, 32], [19.0, 31.0]]  # features end at 20 s
    recordings = [recording("a", segments=segments, duration=40.0)]
    shown = make(recordings=recordings, crop_ratio=None)[0]
    np.testing.assert_allclose(shown.grid.to_seconds(shown.segments.double()), [[1, 2], [15, 20.1]], atol=1e-4)
    assert shown.labels.tolist() == [0, 1]
    assert len(make(recordings=recordings, training=False)[0].segments) == 4


def test_recording_without_segments(make):
    recordings = [recording("a", segments=np.zeros((0, 2)))]
    example = make(recordings=recordings, max_length=50)[0]
    assert example.features.shape == (50, 2)
    assert example.segments.shape == (0, 2) and example.labels.shape == (0,)


def test_duration_falls_back_to_what_the_features_cover(make):
    # 200 steps of 5 frames at 50 fps.
    assert make(training=False, recordings=[recording("a", duration=None)])[0].duration == pytest.approx(20.0)


def test_collate_pads_with_zeros_and_masks(make):
    data = make(crop_ratio=(0.3, 0.9))
    examples = [data[i] for i in range(3)]
    lengths = [len(e.features) for e in examples]
    assert len(set(lengths)) > 1
    batch = collate(examples)
    assert batch.ids == ["a", "b", "c"] and batch.features.shape == (3, max(lengths), 2)
    assert batch.mask.dtype == torch.bool and batch.mask.sum(1).tolist() == lengths
    for i, example in enumerate(examples):
        assert torch.equal(batch.features[i, batch.mask[i]], example.features)
        assert (batch.features[i, ~batch.mask[i]] == 0).all()
        assert torch.equal(batch.segments[i], example.segments) and batch.grids[i] == example.grid
    moved = batch.to("meta")
    assert {moved.features.device.type, moved.mask.device.type, moved.segments[0].device.type} == {"meta"}
    assert moved.labels[2].device.type == "meta" and moved.ids == batch.ids


def test_standardisation_equals_numpy(make, tmp_path):
    rng = np.random.default_rng(0)
    data = make(training=True, max_length=20)  # crops must not matter
    parts = []
    for i, name in enumerate("abc"):
        x = rng.standard_normal((50 + 70 * i, 3)) * [1, 1e-3, 0] + [5 * i, 1e3, 7]
        parts.append(x.astype(np.float32))
        np.save(tmp_path / f"{name}.npy", parts[-1])
    data = RecordingDataset(data_annotations(data), data.recordings, tmp_path, data.config, 3, training=True)
    mean, std = fit_standardisation(data)
    everything = np.concatenate(parts).astype(np.float64)
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[:2], everything.std(0)[:2], rtol=1e-5)
    assert std[2] == 1  # constant channel


def data_annotations(data):
    return annotations_of(*data.recordings)


def test_features_are_read_once_until_the_cap(make, monkeypatch):
    reads = []
    original = Store.load
    monkeypatch.setattr(Store, "load", lambda self, name, *a: reads.append(f"{name}.npy") or original(self, name, *a))
    data = make(training=False)
    for _ in range(3):
        for i in range(3):
            data[i]
    assert sorted(reads) == ["a.npy", "b.npy", "c.npy"]
    monkeypatch.setattr(dataset_module, "CACHE_BYTES", 2 * 200 * 2 * 4)  # room for two recordings
    reads.clear()
    data = make(training=False)
    for _ in range(3):
        for i in range(3):
            data[i]
    assert sorted(reads) == ["a.npy", "b.npy", "c.npy", "c.npy", "c.npy"]


def test_missing_files_are_all_found_at_once(make, tmp_path):
    data = make()
    for name in "ac":
        (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(DataError, match=r"2 of 3 recordings have no feature file: a\.npy, c\.npy$"):
        RecordingDataset(data_annotations(data), data.recordings, tmp_path, data.config, 2, training=True)
    with pytest.raises(DataError, match=r"nowhere: no such folder of features \(data\.features\)"):
        RecordingDataset(data_annotations(data), data.recordings, tmp_path / "nowhere", data.config, 2, training=True)


def test_wrong_width_unknown_rate_and_no_recordings(make, tmp_path):
    data = make()
    wrong = RecordingDataset(data_annotations(data), data.recordings, tmp_path, data.config, 7, training=True)
    with pytest.raises(DataError, match=r"a\.npy: features are 2 wide, expected model\.input_dim = 7"):
        wrong[0]
    with pytest.raises(DataError, match=r"recording 'a' has no fps in the annotations; set data\.fps"):
        make(recordings=[recording("a", fps=None)])
    with pytest.raises(DataError, match="no recordings"):
        RecordingDataset(data_annotations(data), [], tmp_path, data.config, 2, training=True)


def test_configured_frame_rate_wins(make):
    assert make(training=False, fps=25)[0].grid.step == pytest.approx(0.2)


def names(recordings):
    return [r.id for r in recordings]


def test_validation_patterns_split_the_training_subset():
    annotations = annotations_of(*(recording(n) for n in ("u1_a", "u1_b", "u2_a", "u3_a")), recording("u1_t", "TEST"))
    config = DataConfig(validation=("u1_*", "u3_a"))
    assert names(select_recordings(annotations, config, "train")) == ["u2_a"]
    assert names(select_recordings(annotations, config, "validation")) == ["u1_a", "u1_b", "u3_a"]
    assert names(select_recordings(annotations, config, "test")) == ["u1_t"]


@pytest.mark.parametrize(
    ("patterns", "split", "message"),
    [
        pytest.param(
            ("u9*",), "train", "'u9*' matches no recording of subset 'training' (such as 'u1')", id="no-match"
        ),
        pytest.param(("u*",), "train", "holds out every training recording", id="all-held-out"),
        pytest.param((), "validation", "nothing to validate on", id="no-patterns"),
    ],
)
def test_bad_validation_patterns(patterns, split, message):
    annotations = annotations_of(recording("u1"), recording("u2"))
    with pytest.raises(DataError) as error:
        select_recordings(annotations, DataConfig(validation=patterns), split)
    assert message in str(error.value)


def test_single_class_makes_all_labels_one_action(make):
    config = DataConfig(single_class=True)
    annotations = annotations_of(recording("a"))
    (chosen,) = select_recordings(annotations, config, "train")
    assert chosen.labels.tolist() == [0, 0, 0, 0] and class_names(annotations, config) == ("action",)
    assert annotations.recordings["a"].labels.tolist() == [0, 1, 0, 1]
    data = make(single_class=True, training=False)
    assert data.classes == ("action",) and data[0].labels.tolist() == [0, 0, 0, 0]


def test_real_hapt_recordings(shared):
    folder = shared / "data/hapt"
    annotations = load_annotations(folder / "annotations.json")
    config = DataConfig(feat_stride=5, num_frames=5)
    chosen = select_recordings(annotations, config, "train")[:2]
    data = RecordingDataset(annotations, chosen, folder / "features", config, 30, training=False)
    example = data[0]
    assert example.features.shape[1] == 30
    assert abs(example.features.shape[0] * 0.1 - example.duration) < 0.2
    np.testing.assert_allclose(example.grid.to_seconds(example.segments.double()), chosen[0].segments, atol=1e-3)

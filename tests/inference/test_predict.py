"""``tzn predict``: right times, only good outputs, and nothing lost when it is stopped."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import small_model
import torch

from tzn.cli import main
from tzn.config import DataConfig, ExperimentConfig
from tzn.config_loading import config_from_dict, config_to_dict
from tzn.data.dataset import recording_grid
from tzn.detections import Detections
from tzn.errors import DataError
from tzn.inference.localize import localize
from tzn.inference.part_file import PartFile
from tzn.inference.predict import output_format, predict_files, recording_ids
from tzn.models.checkpoint import load_checkpoint, save_checkpoint

CLASSES = ("a", "b", "c", "d")
STEPS = {"r0": 60, "r1": 41, "r2": 73, "r3": 55, "r4": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``fixed.ckpt`` with a frame rate, ``free.ckpt`` without, and five recordings in ``features``."""
    folder = tmp_path_factory.mktemp("predict")
    for name, fps in (("fixed", 10.0), ("free", None)):
        config = ExperimentConfig(model=small_model.CONFIG, data=DataConfig(fps=fps))
        save_checkpoint(folder / f"{name}.ckpt", small_model.build(), config_to_dict(config), CLASSES)
    (folder / "features").mkdir()
    for i, (name, steps) in enumerate(STEPS.items()):
        np.save(folder / "features" / f"{name}.npy", small_model.features(steps, i).numpy())
    return folder


def _predict(*arguments: object) -> int:
    try:
        return main(["predict", *map(str, arguments)])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def _fails(capsys, *arguments: object) -> str:
    """The one line of a prediction that stops with exit code 2."""
    assert _predict(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("tzn predict: "), lines
    return lines[0]


def _results(path: Path) -> dict:
    return json.loads(path.read_text())["results"]


# --- times


def test_every_recording_has_the_rate_and_the_duration_of_the_annotations(folder, tmp_path, capsys):
    rates = {"r0": 24.0, "r1": 25.0, "r2": 29.97, "r3": 30.0, "r4": 10.0}
    # r0 ends before its features do, r1 after.
    durations = {name: STEPS[name] / fps * (0.6 if name == "r0" else 1.5) for name, fps in rates.items()}
    entries = {n: {"subset": "test", "fps": rates[n], "duration": durations[n]} for n in rates}
    (tmp_path / "a.json").write_text(json.dumps({"database": entries}))
    out = tmp_path / "p.json"
    assert _predict(folder / "free.ckpt", folder / "features", "--annotations", tmp_path / "a.json", "--out", out) == 0
    checkpoint = load_checkpoint(folder / "free.ckpt")
    config = config_from_dict(checkpoint.config)
    found = _results(out)
    assert list(found) == list(STEPS)
    for i, (name, steps) in enumerate(STEPS.items()):
        grid = recording_grid(steps, config.data, rates[name])
        x = small_model.features(steps, i)
        wanted, _ = localize(checkpoint.model, x, grid, durations[name], config.inference)
        np.testing.assert_allclose([row["segment"] for row in found[name]], wanted.segments, atol=1e-4)
        assert wanted.segments.max() <= durations[name]
    assert max(row["segment"][1] for row in found["r0"]) == durations["r0"], "clipped to the recording"
    assert max(row["segment"][1] for row in found["r1"]) > STEPS["r1"] / 25.0, "not to what the features cover"


def test_without_a_rate_both_ways_to_give_it_are_named(folder, tmp_path, capsys):
    line = _fails(capsys, folder / "free.ckpt", folder / "features", "--out", tmp_path / "p.json")
    assert "--annotations FILE" in line and "--fps" in line
    (tmp_path / "a.json").write_text(json.dumps({"database": {"r0": {"subset": "test", "fps": 24.0}}}))
    given = [folder / "free.ckpt", folder / "features", "--annotations", tmp_path / "a.json"]
    assert "r1.npy" in _fails(capsys, *given, "--out", tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists() and not (tmp_path / "p.json.part").exists()


def test_the_checkpoints_own_rate_stands_and_a_difference_is_said(folder, tmp_path, capsys):
    entries = {name: {"subset": "test", "fps": 50.0, "duration": 90.0} for name in STEPS}
    (tmp_path / "a.json").write_text(json.dumps({"database": entries}))
    both = {}
    for name, extra in (("plain", []), ("known", ["--annotations", tmp_path / "a.json"])):
        assert _predict(folder / "fixed.ckpt", folder / "features", *extra, "--out", tmp_path / f"{name}.json") == 0
        both[name] = _results(tmp_path / f"{name}.json")
    said = capsys.readouterr().err
    assert "5 recordings have another fps (such as 50) than data.fps of the checkpoint, which is used" in said
    # Same features, same rate; only what was clipped at the end of the features may differ.
    for name, rows in both["known"].items():
        starts = [row["segment"][0] for row in rows]
        np.testing.assert_allclose(starts, [row["segment"][0] for row in both["plain"][name]], atol=1e-4)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--fps", "inf"], "--fps inf"),
        (["--fps", "nan"], "--fps nan"),
        (["--fps", "0"], "--fps 0"),
        (["--budget", "0"], "--budget 0"),
        (["--budget", "nan"], "--budget nan"),
        (["--min-score", "1.5"], "--min-score 1.5"),
        (["--top", "0"], "--top 0"),
        (["--device", "cuda"], "--device cuda"),
        (["--device", "banana"], "--device banana"),
        (["--format", "csv"], "--format says csv"),
        (["--annotations", "no.json"], "no.json"),
        (["--resume", "--fps", "-1"], "--fps -1"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_impossible_options_are_one_line(folder, tmp_path, capsys, extra, words):
    if "cuda" in extra and torch.cuda.is_available():
        extra = ["--device", words := "cuda:99"]
    line = _fails(capsys, folder / "fixed.ckpt", folder / "features", "--out", tmp_path / "new/p.json", *extra)
    assert words in line
    assert not (tmp_path / "new").exists()


def test_an_unknown_back_end_is_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TZN_BACKEND", "banana")
    assert "'banana'" in _fails(capsys, folder / "fixed.ckpt", folder / "features", "--out", tmp_path / "p.json")


# --- outputs


@pytest.mark.parametrize(
    ("name", "fmt", "result"),
    [
        ("p.json", None, "json"),
        ("p.json.gz", "json", "json"),
        ("P.CSV", "csv", "csv"),
        ("p.srt", None, "srt"),
        ("folder", "srt", "srt"),
        ("folder", None, None),
        ("folder", "json", None),
        ("p.json", "csv", None),
        ("p.csv", "srt", None),
        ("p.txt", "json", None),
    ],
)
def test_the_name_says_the_format(name, fmt, result):
    if result:
        assert output_format(Path(name), fmt) == result
    else:
        with pytest.raises(DataError, match=name):
            output_format(Path(name), fmt)


def test_outputs_that_cannot_be_written_are_found_before_inference(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tzn.inference.predict.localize_many", lambda *a: pytest.fail("inference has begun"))
    (tmp_path / "file").write_text("")
    (tmp_path / "d.json").mkdir()
    given = [folder / "fixed.ckpt", folder / "features", "--out"]
    assert "cannot be written" in _fails(capsys, *given, tmp_path / "file/p.json")
    assert "a folder" in _fails(capsys, *given, tmp_path / "d.json")
    assert "cannot be written" in _fails(capsys, *given, tmp_path / ("x" * 250 + ".json"))
    assert "cannot be written" in _fails(capsys, *given, tmp_path / "p.json", "--traces", tmp_path / "file")
    assert "cannot be written" in _fails(capsys, *given, tmp_path / "file", "--format", "srt")
    assert "one recording" in _fails(capsys, *given, tmp_path / "p.srt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json", "file"]


def test_ids_that_meet_after_their_prefix_is_gone():
    assert recording_ids([Path("v_a.npy"), Path("b.npy")], "v_") == ["a", "b"]
    with pytest.raises(DataError, match="'a'"):
        recording_ids([Path("v_a.npy"), Path("a.npy")], "v_")


def test_only_confident_detections(folder, tmp_path, capsys):
    given = [folder / "fixed.ckpt", folder / "features", "--quiet", "--out"]
    assert _predict(*given, tmp_path / "all.json") == 0
    assert _predict(*given, tmp_path / "high.json", "--min-score", "0.8") == 0
    assert _predict(*given, tmp_path / "few.json", "--top", "3", "--min-score", "0.5") == 0
    assert capsys.readouterr() == ("", "")
    every = _results(tmp_path / "all.json")
    for name, rows in _results(tmp_path / "high.json").items():
        assert rows == [row for row in every[name] if row["score"] >= 0.8]
        assert 0 < len(rows) < len(every[name])
    for name, rows in _results(tmp_path / "few.json").items():
        assert rows == [row for row in every[name] if row["score"] >= 0.5][:3]


def test_subtitles_hold_what_the_checkpoint_calls_confident(folder, tmp_path, capsys):
    file = folder / "features/r0.npy"
    assert _predict(folder / "fixed.ckpt", file, "--out", tmp_path / "all.srt") == 0
    assert "no score threshold" in capsys.readouterr().err
    loaded = load_checkpoint(folder / "fixed.ckpt")
    known = types.SimpleNamespace(
        calibration=None, model=loaded.model, classes=loaded.classes, config=loaded.config, score_threshold=0.85
    )
    said: list[str] = []
    counts = {
        name: predict_files(known, [file], tmp_path / f"{name}.srt", say=said.append, **extra).detections
        for name, extra in {"default": {}, "chosen": {"min_score": 0.0}, "top": {"top": 2}}.items()
    }
    assert "at least 0.85" in said[0] and len(said) == 1
    blocks = (tmp_path / "default.srt").read_text().strip().split("\n\n")
    assert 0 < counts["default"] == len(blocks) < counts["chosen"]
    assert all(float(block.split()[-1]) >= 0.85 for block in blocks)
    assert counts["top"] == 2
    # Tables hold everything.
    assert predict_files(known, [file], tmp_path / "p.csv").detections == counts["chosen"]
    with (tmp_path / "p.csv").open() as table:
        assert len(list(csv.reader(table))) == counts["chosen"] + 1


# --- bad files, stops, resumption


@pytest.fixture
def half(folder, tmp_path) -> Path:
    """The recordings, the last of which holds a NaN that only reading it all can show."""
    features = tmp_path / "features"
    features.mkdir()
    for path in (folder / "features").glob("*.npy"):
        values = np.load(path)
        if path.stem == "r4":
            values[3, 1] = np.nan
        np.save(features / path.name, values)
    return features


def test_one_bad_file_at_the_end_loses_nothing(folder, half, tmp_path, capsys):
    out = tmp_path / "p.json"
    given = [folder / "fixed.ckpt", half, "--out", out]
    line = _fails(capsys, *given)
    assert "r4.npy" in line and "step 3, channel 1" in line and "4 recordings are kept" in line and "--resume" in line
    assert not out.exists()
    assert "unfinished prediction" in _fails(capsys, *given)
    assert "inference.max_segments: None -> 7" in _fails(capsys, *given, "--resume", "inference.max_segments=7")
    assert "fps: None -> 12.5" in _fails(capsys, *given, "--resume", "--fps", "12.5")
    assert "not among the inputs" in _fails(capsys, folder / "fixed.ckpt", half / "r0.npy", "--out", out, "--resume")
    np.save(half / "r4.npy", np.load(folder / "features/r4.npy"))
    assert _predict(*given, "--resume") == 0
    assert "4 of 5 recordings are done already" in capsys.readouterr().err
    assert not Path(f"{out}.part").exists()
    assert _predict(folder / "fixed.ckpt", folder / "features", "--out", tmp_path / "clean.json") == 0
    _assert_same(out, tmp_path / "clean.json")


def _assert_same(path: Path, wanted: Path) -> None:
    """The same recordings in the same order with the same detections; batches round differently."""
    ours, theirs = _results(path), _results(wanted)
    assert list(ours) == list(theirs)
    for name in theirs:
        assert [row["label"] for row in ours[name]] == [row["label"] for row in theirs[name]]
        np.testing.assert_allclose(
            [row["segment"] for row in ours[name]], [row["segment"] for row in theirs[name]], atol=1e-4
        )


def test_another_model_is_not_mixed_in(folder, half, tmp_path, capsys):
    given = [half, "--out", tmp_path / "p.json"]
    _fails(capsys, folder / "fixed.ckpt", *given)
    model = small_model.build()
    with torch.no_grad():
        model.class_head.output.bias.add_(1e-3)
    config = ExperimentConfig(model=small_model.CONFIG, data=DataConfig(fps=10.0))
    save_checkpoint(tmp_path / "other.ckpt", model, config_to_dict(config), CLASSES)
    line = _fails(capsys, tmp_path / "other.ckpt", *given, "--resume")
    assert "other settings (model:" in line


def test_keep_going_leaves_out_what_is_bad_and_says_so(folder, half, tmp_path, capsys):
    (half / "r3.npy").write_text("no array")
    given = [folder / "fixed.ckpt", half, half / "gone.npy", "--out", tmp_path / "p.json", "--keep-going"]
    assert _predict(*given) == 1
    printed = capsys.readouterr()
    assert "in 3 recordings" in printed.out
    for name in ("r3.npy", "r4.npy", "gone.npy"):
        assert sum(name in line for line in printed.err.splitlines()) == 1
    assert list(_results(tmp_path / "p.json")) == ["r0", "r1", "r2"]
    assert not (tmp_path / "p.json.part").exists()
    bad = [half / "r3.npy", half / "r4.npy"]
    line = _fails(capsys, folder / "fixed.ckpt", *bad, "--out", tmp_path / "n/q.json", "--keep-going")
    assert "r3.npy" in line and "and 1 more" in line
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("bytes_", [600, 12_000, 60_000])
def test_a_disk_that_fills_up_is_one_line_and_what_is_done_stays(folder, tmp_path, capsys, bytes_):
    out = tmp_path / "p.json"
    given = [folder / "fixed.ckpt", folder / "features", "--out", out]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        line = _fails(capsys, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in line
    assert not out.exists()
    assert _predict(*given, *(["--resume"] if Path(f"{out}.part").exists() else [])) == 0
    assert _predict(folder / "fixed.ckpt", folder / "features", "--out", tmp_path / "clean.json") == 0
    _assert_same(out, tmp_path / "clean.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.json", "p.json"]


# A process that kills itself at a chosen moment: before one of its writes, or half way through it.
KILLED = """
import os, signal, sys
import tzn.inference.predict as predict, tzn.inference.part_file as part_file, tzn.files as files
moment, at = sys.argv[1], int(sys.argv[2])
predict.BATCH_STEPS = 1  # every recording on its own
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
count = 0
append = part_file.PartFile._append
def counted(self, text):
    global count
    count += 1
    if count == at:
        if moment == "half":
            self._file.write(text.encode()[: len(text) // 2])
        if moment in ("before", "half"):
            die()
    append(self, text)
    if count == at and moment == "after":
        die()
part_file.PartFile._append = counted
if moment == "rename":
    files.os.replace = die
if moment == "delete":
    part_file.PartFile.close = die
from tzn.cli import main
sys.exit(main(["predict", *sys.argv[3:]]))
"""


@pytest.mark.parametrize(
    ("moment", "at"),
    [("before", 1), ("half", 1), ("half", 2), ("half", 4), ("after", 3), ("rename", 0), ("delete", 0)],
    ids=lambda value: str(value),
)
def test_killed_at_any_moment_and_resumed_nothing_is_lost_or_there_twice(folder, tmp_path, moment, at):
    out, clean = tmp_path / "p.json", tmp_path / "clean.json"
    given = [folder / "fixed.ckpt", folder / "features", "--out", out]
    command = [sys.executable, "-c", KILLED, moment, str(at), *map(str, given)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    part = Path(f"{out}.part")
    kept = part.read_bytes().split(b"\n")[1:-1] if part.exists() else []
    if moment in ("half", "after"):
        assert len(kept) == max(at - 1 - (moment == "half"), 0)
    assert _predict(*given, "--resume") == 0
    assert _predict(folder / "fixed.ckpt", folder / "features", "--out", clean) == 0
    _assert_same(out, clean)
    assert not part.exists() and not list(tmp_path.glob(".*.tmp"))
    for line in kept:  # what was done before is taken as it was
        row = json.loads(line)
        assert [r["segment"] for r in _results(out)[row["id"]]] == row["segments"]


STOPPED = KILLED.replace("signal.SIGKILL", "int(os.environ['NUMBER'])")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
@pytest.mark.parametrize(("moment", "at"), [("after", 3), ("rename", 0)], ids=["recording", "rename"])
def test_a_stopped_prediction_says_so_and_leaves_only_what_is_done(folder, tmp_path, number, code, moment, at):
    out = tmp_path / "p.json"
    given = [folder / "fixed.ckpt", folder / "features", "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBER": str(int(number))}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, moment, str(at), *map(str, given)], capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[2], env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("tzn predict: stopped; ")]
    assert done.returncode == code and len(said) == 1 and "continue with --resume" in said[0], done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.json.part"]
    assert _predict(*given, "--resume") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_foreign_file_of_that_name_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "p.json.part").write_text("my notes")
    given = [folder / "fixed.ckpt", folder / "features", "--out", tmp_path / "p.json"]
    assert "not written by" in _fails(capsys, *given, "--resume")
    assert (tmp_path / "p.json.part").read_text() == "my notes"


def test_a_part_file_gives_back_what_it_took(tmp_path):
    exact = Detections(np.array([[1 / 3, 7200.0009]]), np.array([5.384e-13]), np.array([3]), np.array([[0.1, np.nan]]))
    empty = Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
    part = PartFile(tmp_path / "x.part", {"a": (1, 2)}, resume=False)
    part.add({"one": exact, 'é "2"': empty})
    part.close(delete=False)
    again = PartFile(tmp_path / "x.part", {"a": (1, 2)}, resume=True)
    assert list(again) == ["one", 'é "2"']
    for field in dataclasses.fields(Detections):
        np.testing.assert_array_equal(getattr(again["one"], field.name), getattr(exact, field.name))
    assert again['é "2"'].segments.shape == (0, 2) and again['é "2"'].std is None
    again.close(delete=True)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_recordings(folder, tmp_path, monkeypatch):
    """Detections in memory at any time are those of one batch."""
    features = tmp_path / "features"
    features.mkdir()
    for i in range(60):
        np.save(features / f"r{i:02}.npy", small_model.features(10 + i, i).numpy())
    monkeypatch.setattr("tzn.inference.predict.BATCH_STEPS", 256)
    monkeypatch.setattr("tzn.inference.predict.WINDOW_STEPS", 512)
    alive = []

    def counting(function):
        def counted(*arguments):
            alive.append(sum(type(thing) is Detections for thing in gc.get_objects()))
            return function(*arguments)

        return counted

    monkeypatch.setattr(PartFile, "add", counting(PartFile.add))
    monkeypatch.setattr(PartFile, "__getitem__", counting(PartFile.__getitem__))
    before = sum(type(thing) is Detections for thing in gc.get_objects())
    assert _predict(folder / "fixed.ckpt", features, "--out", tmp_path / "p.json") == 0
    assert len(alive) >= 60 and max(alive) - before <= 40
    assert list(_results(tmp_path / "p.json")) == [f"r{i:02}" for i in range(60)]

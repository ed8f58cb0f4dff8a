"""What a stopped, doubled, resumed or diverged training leaves behind; through the command, with real signals and limits."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import torch

from tzn.cli import main
from tzn.config_loading import config_from_dict, dump_config
from tzn.errors import Terminated
from tzn.files import atomic_write
from tzn.models.checkpoint import load_checkpoint
from tzn.training.fit import StopOnSignal

RUNNING = "training.epochs=200"  # long enough to be stopped; the schedule is part of the run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(dump_config(small_run.small_config()))
    return path


def _command(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(config), "--data", str(data), "--out", str(out), "--device", "cpu", "--no-progress", *more]


def _start(arguments: list[str], **settings) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tzn", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def _finish(arguments: list[str]) -> None:
    process = _start(arguments)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.time() + 400
    while not path.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    assert path.is_file(), process.communicate()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _line(capsys, arguments: list[str], code: int = 2) -> str:
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tzn ")]
    assert len(lines) == 1
    return lines[0]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(data, config, tmp_path_factory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    _finish(_command(config, data, out, "training.epochs=8"))
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_stopped_run_says_so_and_resumes_to_the_same_weights(data, config, whole, tmp_path, capfd, number, code):
    out = tmp_path / "run"
    process = _start(_command(config, data, out, "training.epochs=8"))
    _wait_for(out / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == code, errors
    said = [line for line in errors.splitlines() if line.startswith("tzn ")]
    assert said == ["tzn train: stopped; continue with --resume"] and "Traceback" not in errors
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] < 7, "over before it was stopped"
    assert not list(out.rglob("*.tmp"))
    _finish(_command(config, data, out, "training.epochs=8", "--resume"))
    expected, resumed = _weights(whole), _weights(out)
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], rtol=0, atol=0, msg=name)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(data, config, tmp_path):
    out = tmp_path / "run"
    process = _start(_command(config, data, out))
    _wait_for(out / "config.yaml", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 143 and "stopped; " in errors


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=["TERM", "INT"]
)
def test_outside_of_training_a_signal_is_not_taken_for_an_error(number, expected):
    with pytest.raises(expected), StopOnSignal():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception:  # as reading a checkpoint has it
            pytest.fail("taken for an error")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["training.epochs=13"], "training.epochs was 8, now 13"),
        (
            ["training.epochs=8", "data.noise=0.2", "inference.nms=hard"],
            "data.noise was 0.1, now 0.2; inference.nms was",
        ),
    ],
    ids=["schedule", "several"],
)
def test_resuming_another_configuration_is_refused_with_a_list(data, config, whole, capsys, change, words):
    before = _files(whole)
    line = _line(capsys, _command(config, data, whole, "--resume", *change))
    assert words in line and "nothing was written" in line
    assert _files(whole) == before


def test_resuming_on_other_recordings_or_classes_is_refused(data, config, whole, tmp_path, capsys):
    import shutil

    import numpy as np

    before = _files(whole)
    other = tmp_path / "data"
    shutil.copytree(data, other)
    annotations = other / "annotations.json"
    annotations.write_text((data / "annotations.json").read_text().replace("class_0", "klass_0"))
    line = _line(capsys, _command(config, other, whole, "--resume", "training.epochs=8"))
    assert "classes were class_0, class_1, class_2, now" in line and "recordings were" in line
    shutil.copy(data / "annotations.json", annotations)
    for path in (other / "features").glob("*.npy"):
        np.save(path, np.load(path) * 2 + 1)
    assert "features have another mean" in _line(
        capsys, _command(config, other, whole, "--resume", "training.epochs=8")
    )
    assert _files(whole) == before
    # The same recordings elsewhere are the same recordings, and the number of loader processes changes nothing.
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    assert main(_command(config, moved, copy, "--resume", "training.epochs=8", "training.num_workers=1")) == 0


def test_two_trainings_do_not_share_a_folder_and_leftovers_of_a_kill_go(data, config, tmp_path, capsys):
    out = tmp_path / "run"
    process = _start(_command(config, data, out, RUNNING))
    try:
        _wait_for(out / "config.yaml", process)
        checkpoint = out / "checkpoints" / "last.ckpt"
        line = _line(capsys, _command(config, data, out, RUNNING, *(["--resume"] if checkpoint.is_file() else [])))
        assert "another training is writing there" in line or "already holds a run" in line
        _wait_for(checkpoint, process)
        assert "another training is writing there" in _line(capsys, _command(config, data, out, RUNNING, "--resume"))
    finally:
        process.kill()
        process.communicate()
    left = out / "checkpoints" / ".last.ckpt.abcd1234.tmp"
    left.write_bytes(b"half a checkpoint")
    mine = out / ".notes.tmp"
    mine.write_text("not of atomic_write")
    process = _start(_command(config, data, out, RUNNING, "--resume"))
    deadline = time.time() + 400
    while left.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not left.exists() and mine.exists()


def test_a_diverged_training_keeps_its_last_good_checkpoint(data, config, tmp_path, capsys):
    out = tmp_path / "run"
    line = _line(capsys, _command(config, data, out, "training.learning_rate=1e30", "training.warmup_epochs=0"))
    assert "diverged" in line or "loss became NaN" in line
    for path in out.rglob("*.ckpt"):
        assert all(bool(w.isfinite().all()) for w in load_checkpoint(path).model.parameters())


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("kind", ["below-a-file", "name-too-long", "ulimit"])
def test_outputs_that_cannot_be_written_are_one_line(data, config, tmp_path, capsys, kind):
    (tmp_path / "file").write_text("in the way")
    out = {
        "below-a-file": tmp_path / "file" / "run",
        "name-too-long": tmp_path / ("x" * 300),
        "ulimit": tmp_path / "run",
    }[kind]
    if kind != "ulimit":
        line = _line(capsys, _command(config, data, out))
        assert str(out) in line
        return
    process = _start(_command(config, data, out), preexec_fn=_small_files)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 2, errors
    said = [line for line in errors.splitlines() if line.startswith("tzn ")]
    assert len(said) == 1 and ".ckpt: " in said[0] and "too large" in said[0] and "Traceback" not in errors
    assert not list(out.rglob("*.ckpt")) and not list(out.rglob("*.tmp"))


def test_what_training_found_out_is_stored(data, config, whole, tmp_path):
    last = load_checkpoint(whole / "checkpoints" / "last.ckpt")
    assert last.score_threshold_split == "training" and 0 < last.score_threshold < 1
    stored = config_from_dict(last.config)
    assert stored.inference.max_segments >= 200 and stored.data.usual_fps is None  # the configuration fixes data.fps
    out = tmp_path / "validated"
    more = ['data.validation=["synthetic_00[01]"]', "data.fps=null", "training.epochs=6"]
    assert main(_command(config, data, out, *more)) == 0
    best = load_checkpoint(out / "checkpoints" / "best.ckpt")
    assert best.score_threshold_split == "validation"
    assert config_from_dict(best.config).data.usual_fps == 10.0


def test_devices_and_full_disks(tmp_path):
    with pytest.raises(OSError, match="No space left") as full, atomic_write("/dev/full") as file:
        file.write("x" * 100_000)
    assert full.value.filename == "/dev/full" and Path("/dev/full").is_char_device()
    with pytest.raises(IsADirectoryError, match="expected a file"), atomic_write(tmp_path) as file:
        file.write("x")
    name = "x" * 250  # legal, though a temporary name made of it and more is not
    with atomic_write(tmp_path / name) as file:
        file.write("good")
    assert (tmp_path / name).read_text() == "good"

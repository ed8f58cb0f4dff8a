"""The ``tzn`` command as a user runs it, a process of its own each time: with a signal or a limit, measured by the system."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tzn.data.synthetic import generate_synthetic

CHANNELS, FPS = 16, 10
SMALL = (
    "model.width=16", "model.num_heads=2", "model.window=5", "model.head_width=16", "model.boundary_width=16",
    "training.batch_size=4", "training.warmup_epochs=1", "data.max_length=128", f"data.fps={FPS}",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a process ended: exit status (-9: killed), wall seconds, peak resident MB (1e6 bytes), lines on stderr."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    said: tuple[str, ...]


def tzn(
    arguments: Sequence[object], *, stop: tuple[float, signal.Signals] | None = None, file_limit: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:  # fmt: skip
    """Run ``python -m tzn ARGUMENTS``.

    Args:
        stop: send a signal after so many seconds, if the process still runs.
        file_limit: most bytes of a file that it may write.
    """

    def limit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored, and passes that on
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [sys.executable, "-m", "tzn", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | dict(environment or {}),
            preexec_fn=limit,
        )
        status, usage = _wait(process.pid, begun, stop)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begun
        errors.seek(0)
        said = tuple(errors.read().splitlines())
    cpu = usage.ru_utime + usage.ru_stime
    return Outcome(process.returncode, seconds, cpu, 1024 * usage.ru_maxrss / 1e6, said)


def _wait(pid: int, begun: float, stop: tuple[float, signal.Signals] | None) -> tuple[int, resource.struct_rusage]:
    """Not Popen.wait: only wait4 tells what the child itself used."""
    if stop is not None:
        while time.monotonic() - begun < stop[0]:
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                return status, usage
            time.sleep(0.005)
        os.kill(pid, stop[1])  # not reaped yet, so the number is still its own
    _, status, usage = os.wait4(pid, 0)
    return status, usage


def done(outcome: Outcome) -> Outcome:
    """The outcome, if the process ended well."""
    if outcome.code != 0:
        raise SystemExit(f"exit status {outcome.code}: {' '.join(outcome.said)[-2000:]}")
    return outcome


def train(data: Path, out: Path, epochs: int, *more: object) -> list[object]:
    """Arguments of a training of seconds."""
    settings = ["--device", "cpu", "--no-progress", *SMALL, f"training.epochs={epochs}"]
    return [
        "train",
        "configs/synthetic.yaml",
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--no-progress",
        *settings,
        *more,
    ]


def recordings(folder: Path, number: int = 12) -> Path:
    """Annotated recordings to train on; made once."""
    if not (folder / "annotations.json").is_file():
        generate_synthetic(folder, num_recordings=number, length=(100, 180), channels=CHANNELS, seed=1)
    return folder


def trained(folder: Path, epochs: int) -> Path:
    """Checkpoint of a finished training; made once."""
    path = folder / "model" / "checkpoints" / "last.ckpt"
    if not path.is_file():
        done(tzn(train(recordings(folder / "data"), folder / "model", epochs)))
    return path

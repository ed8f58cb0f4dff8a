"""Trainings and predictions that a signal or a full disk ends: what they leave, and whether resuming gives the same."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.commands import CHANNELS, Outcome, done, recordings, train, trained, tzn
from tzn.models.checkpoint import load_checkpoint

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}  # and the exit status that each is to have
ENDED = (0, 2)  # a signal can come after the end
SECONDS, SCORES = 1e-3, 1e-4  # what rounding may change where recordings are batched otherwise after a stop


class Work:
    """Something to stop: how to start it, how to go on, and whether the result is that of an undisturbed run."""

    def __init__(self, arguments: Callable[[Path], list[object]], same: Callable[[Path, Path], str | None]) -> None:
        self.arguments, self.same = arguments, same

    def finish(self, out: Path) -> list[str]:
        """Go on until it is done; what was wrong."""
        begun = out.exists() or out.with_name(f"{out.name}.part").exists()
        outcome = tzn([*self.arguments(out), *(["--resume"] if begun else [])])
        if outcome.code == 2 and "without --resume" in " ".join(outcome.said):
            outcome = tzn(self.arguments(out))
        return [] if outcome.code == 0 else [f"resuming ended with {outcome.code}: {' '.join(outcome.said)[-300:]}"]


def training(folder: Path, epochs: int) -> Work:
    data = recordings(folder / "data")
    return Work(lambda out: train(data, out, epochs), _same_weights)


def prediction(folder: Path, epochs: int, files: int) -> Work:
    model, inputs = trained(folder, epochs), short_recordings(folder / f"short_{files}", files)
    return Work(lambda out: ["predict", model, inputs, "--out", out], _same_detections)


def short_recordings(folder: Path, files: int, steps: tuple[int, int] = (60, 180)) -> Path:
    """Feature files of noise of random lengths; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        path = folder / f"r{i:06d}.npy"
        if not path.is_file():
            rng = np.random.default_rng([0, i])
            length = rng.integers(*steps)
            np.save(path, rng.standard_normal((length, CHANNELS), np.float32))
    return folder


def _same_weights(whole: Path, out: Path) -> str | None:
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, out)
    )
    wrong = [name for name in one if not torch.equal(one[name], other[name])]
    return f"{len(wrong)} of {len(one)} tensors differ" if wrong or one.keys() != other.keys() else None


def _same_detections(whole: Path, out: Path) -> str | None:
    one, other = (json.loads(path.read_text())["results"] for path in (whole, out))
    if list(one) != list(other):
        return f"{len(one)} recordings, after resuming {len(other)}"
    for name, rows in one.items():
        if len(rows) != len(other[name]):
            return f"{name}: {len(rows)} detections, after resuming {len(other[name])}"
        for a, b in zip(rows, other[name], strict=True):
            apart = np.abs(np.subtract(a["segment"], b["segment"])).max()
            if a["label"] != b["label"] or apart > SECONDS or abs(a["score"] - b["score"]) > SCORES:
                return f"{name}: {a} became {b}"
    return None


def _remains(out: Path) -> list[str]:
    """Temporary files and traces of unfinished work beside and in the result."""
    places = [out, *out.parent.glob(f"{out.name}.part")]
    left = [*out.parent.glob(".*.tmp"), *(out.rglob("*.tmp") if out.is_dir() else []), *places[1:]]
    return [f"left {path.name}" for path in left]


def _remove(out: Path) -> None:
    for path in (out, out.with_name(f"{out.name}.part")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def interrupt(work: Work, folder: Path, name: str, points: int, seed: int) -> dict[str, Any]:
    """Stop it ``points`` times, each time a new run, at random moments between its start and its end; then resume."""
    whole = folder / "whole" / name
    _remove(whole)
    whole.parent.mkdir(parents=True, exist_ok=True)
    lasts = done(tzn(work.arguments(whole))).seconds
    rng, rows = random.Random(seed), []
    out = folder / "stopped" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    for point in range(points):
        _remove(out)
        number = list(SIGNALS)[point % len(SIGNALS)]
        after = rng.uniform(0, lasts)
        stopped = tzn(work.arguments(out), stop=(after, number))
        wrong = _wrong_end(stopped, number)
        if stopped.code != 0:
            wrong += work.finish(out)
        if not wrong:
            wrong = [text for text in [work.same(whole, out)] if text] + _remains(out)
        rows.append({
            "signal": number.name, "after_seconds": round(after, 3), "code": stopped.code,
            "said": stopped.said[-1] if stopped.said else "", "wrong": wrong,
        })  # fmt: skip
    _remove(out)
    return {"lasts_seconds": lasts, "points": rows, "wrong": sum(bool(row["wrong"]) for row in rows)}


def _wrong_end(stopped: Outcome, number: signal.Signals) -> list[str]:
    """A process that had no handler yet, while Python and torch load, ends by the signal itself."""
    expected = {SIGNALS[number], -int(number), 0}
    if stopped.code in expected:
        return []
    return [f"exit status {stopped.code} after {number.name}: {' '.join(stopped.said)[-200:]}"]


def counts(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{name.removeprefix('SIG')} {n}" for name, n in Counter(row["signal"] for row in rows).items())


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` bytes at ``folder``; False where mounting is refused and only files can be limited."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(work: Work, folder: Path, name: str, sizes: list[int]) -> dict[str, Any]:
    """Run it on a disk (or with a limit on files) of each of ``sizes`` bytes, then give it room and resume."""
    whole = folder / "whole" / name
    if not whole.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
        done(tzn(work.arguments(whole)))
    rows = []
    for size in sizes:
        with small_disk(folder / "disk", size) as mounted:
            out = folder / "disk" / name
            _remove(out)
            full = tzn(work.arguments(out), file_limit=None if mounted else size)
            wrong = [] if full.code in ENDED else [f"exit status {full.code}: {' '.join(full.said)[-200:]}"]
            lines = [line for line in full.said if line.startswith("tzn ")]
            if full.code == 2 and (len(lines) != 1 or any("Traceback" in line for line in full.said)):
                wrong.append(f"not one line: {full.said}")
            wrong += [f"damaged {path.name}" for path in out.rglob("*.ckpt") if not _loads(path)]
            wrong += [f"left {path.name}" for path in (folder / "disk").rglob("*.tmp")]
            if mounted:
                subprocess.run(["mount", "-o", f"remount,size={1 << 30}", str(folder / "disk")], check=True)
            if full.code != 0:
                wrong += work.finish(out)
            if not wrong:
                wrong = [text for text in [work.same(whole, out)] if text] + _remains(out)
            kind = "disk" if mounted else "limit on files"
            rows.append(
                {"bytes": size, "kind": kind, "code": full.code, "said": lines[-1] if lines else "", "wrong": wrong}
            )
            _remove(out)
    return {"cases": rows, "wrong": sum(bool(row["wrong"]) for row in rows)}


def _loads(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except Exception:
        return False
    return True

"""Processes killed at random points, ten times; the rows that come of it are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal as signals
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus.recordings import some
from benchmarks.lib import parity

KILLS = 10
PER_KILL = 64  # recordings at least: every kill waits for a part of the work to be written
DRIVER_EVERY = 4  # the third of four kills is the driver's
AFTER = 0.3  # seconds after a part was written, at most: a kill is not at the same point of every part
NUMBERS = ("start", "end", "score", "start_std", "end_std", "probability")


def stage_kill(paths: dict[str, list[Path]], folder: Path, count: int) -> dict[str, Any]:
    """``tzn predict --workers 2`` and ``tzn corpus --actors 2``: kills of the driver and of the processes below it.

    Raises:
        NoParity: a run ends with an error, was not killed ten times, or has other rows than the undisturbed one.
    """
    manifest = folder / "kill.csv"
    chosen = some(paths["ludb"], count)
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in chosen))
    start, most = [sys.executable, "-m", "tzn"], min(KILLS, max(len(chosen) // PER_KILL, 1))
    tail = ["--pretrained", "ludb", str(manifest), "--min-score", "0.1", "-q"]
    made = {}
    for name in ("predict", "corpus"):
        results, facts = {}, {}
        for state in ("undisturbed", "killed"):
            out = folder / f"kill_{name}_{state}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            if name == "predict":
                file, parts = out / "predictions.parquet", (out / "predictions.parquet.parts", "part-*.parquet")
                command = [*start, "predict", *tail, "--workers", "2", "--resume", "--out", str(file)]
            else:
                file, parts = out / "predictions.parquet", (out / "rows", "*.parquet")
                command = [*start, "corpus", *tail, "--actors", "2", "--batch-size", "8", "--out", str(out)]
            begin = time.perf_counter()
            kills = disturbed(command, parts, name, most if state == "killed" else 0)
            facts[f"seconds_{state}"] = time.perf_counter() - begin
            if state == "killed":
                facts |= kills
            results[state] = rows(file)
        largest = compare(results["killed"], results["undisturbed"], name)
        made[name] = {
            "recordings": len(chosen), "rows": len(results["killed"]), "largest_difference": largest, **facts,
        }  # fmt: skip
    return made


def disturbed(command: Sequence[str], parts: tuple[Path, str], name: str, count: int) -> dict[str, int]:
    """Run a command to its end, killing it or a process below it ``count`` times, each time after something more was done."""
    random_, kills = random.Random(0), {"driver": 0, "below": 0}
    process = subprocess.Popen(command)
    while sum(kills.values()) < count:
        seen = len(list(parts[0].glob(parts[1])))
        while process.poll() is None and len(list(parts[0].glob(parts[1]))) <= seen:
            time.sleep(0.02)
        if process.poll() is not None:
            raise parity.NoParity(
                f"{name}: ended after {sum(kills.values())} kills of {count}; give it more recordings"
            )
        time.sleep(random_.random() * AFTER)
        if sum(kills.values()) % DRIVER_EVERY == 2:
            process.kill()
            process.wait()
            kills["driver"] += 1
            process = subprocess.Popen(command)
        elif victims := below(process.pid, name):
            os.kill(random_.choice(victims), signals.SIGKILL)
            kills["below"] += 1
    if process.wait():
        raise parity.NoParity(f"{name}: the command ended with {process.returncode}")
    return kills


def below(driver: int, name: str) -> list[int]:
    """Loaders and workers of a prediction (forked by a child of it), Ray's actors, or everything."""
    parents: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    children = {pid for pid, parent in parents.items() if parent == driver}
    grandchildren = {pid for pid, parent in parents.items() if parent in children}
    if name == "predict":
        return sorted(grandchildren)
    mine = children | grandchildren
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    if name == "everything":
        return sorted(mine)
    return sorted(pid for pid in mine if title(pid).startswith(b"ray::") and b"Map" in title(pid))


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path).to_pylist())


def compare(given: list[dict[str, Any]], wanted: list[dict[str, Any]], name: str) -> float:
    """Row by row: texts equal, numbers within rounding; the largest difference of a number.

    Raises:
        NoParity: a row is missing, twice, or another.
    """
    if len(given) != len(wanted):
        raise parity.NoParity(f"{name}: {len(given)} rows after kills, {len(wanted)} undisturbed")
    worst = 0.0
    for place, (a, b) in enumerate(zip(given, wanted, strict=True)):
        other = [key for key in b if key not in NUMBERS and a[key] != b[key]]
        if other:
            raise parity.NoParity(f"{name}: row {place}: {other[0]} = {a[other[0]]}, undisturbed {b[other[0]]}")
        parity.same(
            f"{name}: row {place}", {k: a[k] for k in NUMBERS if b[k] is not None},
            {k: b[k] for k in NUMBERS if b[k] is not None}, rtol=1e-3, atol=1e-3,
        )  # fmt: skip
        worst = max([worst, *(abs(a[k] - b[k]) for k in NUMBERS if b[k] is not None)])
    return worst

"""Long recordings, many recordings, many fuzzed calls: time and peak memory by size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.provenance import ROOT
from benchmarks.reliability.commands import CHANNELS, done, recordings, trained, tzn
from benchmarks.reliability.stopped import short_recordings

PIECE = 100_000  # steps written at once
FUZZ = ROOT / "tests" / "fuzz"
RESULT = re.compile(r"^(\S+): (\d+) answers, (\d+) errors$", re.MULTILINE)


def long_recording(folder: Path, steps: int) -> Path:
    """Features of ``steps`` steps: the annotated recordings end to end, over and over, each time with noise of its own."""
    path = folder / "long" / f"steps_{steps}.npy"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.concatenate([np.load(p) for p in sorted((recordings(folder / "data") / "features").glob("*.npy"))])
    partial = path.with_suffix(".part")
    out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(steps, CHANNELS))
    rng = np.random.default_rng(0)
    for begin in range(0, steps, PIECE):
        size = min(PIECE, steps - begin)
        rows = found[np.arange(begin, begin + size) % len(found)]
        out[begin : begin + size] = rows + 0.1 * rng.standard_normal(rows.shape, np.float32)
    out.flush()
    return partial.replace(path)


def long(folder: Path, epochs: int, steps: list[int]) -> dict[str, Any]:
    """Predict one recording of each length."""
    model, rows = trained(folder, epochs), []
    for size in steps:
        features, out = long_recording(folder, size), folder / f"long_{size}.json"
        run = done(tzn(["predict", model, features, "--out", out]))
        (found,) = json.loads(out.read_text())["results"].values()
        rows.append(_row(size, run.seconds, run.cpu_seconds, run.peak_mb) | {
            "feature_mb": 4e-6 * size * CHANNELS, "detections": len(found),
            "last_end_seconds": max((row["segment"][1] for row in found), default=0.0),
        })  # fmt: skip
        out.unlink()
    return {"rows": rows}


def many(folder: Path, epochs: int, files: list[int]) -> dict[str, Any]:
    """Predict folders of short recordings in one call each."""
    model, rows = trained(folder, epochs), []
    for number in files:
        inputs, out = short_recordings(folder / f"short_{number}", number), folder / f"many_{number}.json"
        run = done(tzn(["predict", model, inputs, "--out", out]))
        with open(out) as file:
            recordings_done = len(json.load(file)["results"])
        if recordings_done != number:
            raise SystemExit(f"{number} files, {recordings_done} recordings in the output")
        rows.append(_row(number, run.seconds, run.cpu_seconds, run.peak_mb))
        out.unlink()
    return {"rows": rows}


def _row(size: int, seconds: float, cpu_seconds: float, peak_mb: float) -> dict[str, Any]:
    return {"size": size, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}


def fuzz(calls: int, seconds: float, cases: int, seed: int) -> dict[str, Any]:
    """Rounds of ``cases`` calls per op and back end, with a new seed each, until ``calls`` are made or time is over."""
    names = _names()
    counts: dict[str, dict[str, list[int]]] = {backend: {} for backend in names}
    wrong: list[str] = []
    begun, rounds = time.monotonic(), 0
    while sum(sum(c) for ops in counts.values() for c in ops.values()) < calls and time.monotonic() - begun < seconds:
        for backend, ops in names.items():
            command = [
                sys.executable,
                str(FUZZ),
                *ops,
                "--cases",
                str(cases),
                "--seed",
                str(seed + rounds),
                "--seconds",
                "900",
            ]
            environment = os.environ | {"TZN_BACKEND": backend, "PYTHONPATH": str(ROOT)}
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            for name, answers, errors in RESULT.findall(run.stdout):
                total = counts[backend].setdefault(name, [0, 0])
                total[0] += int(answers)
                total[1] += int(errors)
            if run.returncode != 0:
                wrong.append(f"{backend}, seed {seed + rounds}: {run.stderr[-2000:].replace(f'{Path.cwd()}/', '')}")
        rounds += 1
    every = [c for ops in counts.values() for c in ops.values()]
    return {
        "asked": calls, "calls": sum(map(sum, every)), "answers": sum(c[0] for c in every),
        "errors": sum(c[1] for c in every), "seconds": time.monotonic() - begun, "rounds": rounds, "cases_per_round": cases,
        "first_seed": seed, "by_op": counts, "wrong": wrong,
    }  # fmt: skip


def _names() -> dict[str, list[str]]:
    """Every op that can be fuzzed, by back end: raw kernels are the compiled library's."""
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom public import PUBLIC\nfrom raw import RAW\n"
    code += "print(*PUBLIC)\nprint(*RAW)"
    run = subprocess.run([sys.executable, "-c", code, str(FUZZ)], capture_output=True, text=True, check=True, cwd=ROOT)
    public, raw = (line.split() for line in run.stdout.splitlines()[-2:])
    return {"cpp": public + raw, "reference": public}

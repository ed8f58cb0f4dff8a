"""What docs/reliability.md reports, repeated: signals, full disks, long and many recordings, fuzzed calls.

usage: python -m benchmarks.reliability {stop,disk,long,many,fuzz} [--quick] [--work FOLDER] [--out benchmarks/results]

Each part runs alone and replaces its own section of ``reliability.json`` and ``reliability.md``. ``--quick``: sizes for
tests. Models and recordings are made in ``--work`` (a few hundred MB) and used again. The exit status is 1 if anything
was wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.provenance import RESULTS, facts, line, processor, write
from benchmarks.lib.tables import table
from benchmarks.reliability import sizes, stopped

PARTS = ("stop", "disk", "long", "many", "fuzz")
TITLES = {
    "stop": "Stopped and resumed", "disk": "Full disks", "long": "One long recording", "many": "Many short recordings",
    "fuzz": "Fuzzed calls",
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = found.add_subparsers(dest="part", required=True)
    made = {name: parts.add_parser(name, help=TITLES[name]) for name in PARTS}
    for one in made.values():
        one.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
        one.add_argument("--work", type=Path, help="folder for models and recordings (default: a temporary one)")
        one.add_argument("--quick", action="store_true", help="sizes for tests; those given stay")
        one.add_argument("--seed", type=int, default=0)
    for name in ("stop", "disk"):
        made[name].add_argument("--what", nargs="+", choices=("train", "predict"), default=["train", "predict"])
        made[name].add_argument("--files", type=int, help="recordings of a prediction (400)")
    made["stop"].add_argument("--points", type=int, help="signals per kind of work (20)")
    made["disk"].add_argument("--sizes", type=int, nargs="+", help="bytes of the disk")
    made["long"].add_argument("--steps", type=int, nargs="+", help="lengths (100000 400000 2000000)")
    made["many"].add_argument("--files", type=int, nargs="+", help="numbers of files (2000 20000)")
    made["fuzz"].add_argument("--calls", type=int, help="stop after so many (1000000)")
    made["fuzz"].add_argument("--seconds", type=float, help="or after this time (3600); a round is finished")
    made["fuzz"].add_argument("--cases", type=int, help="calls per op and round (200)")
    for name in ("stop", "disk", "long", "many"):
        made[name].add_argument("--epochs", type=int, help="of the small model (12)")
    return found


FULL = {
    "epochs": 12, "points": 20, "calls": 1_000_000, "seconds": 3600.0, "cases": 200, "steps": [100_000, 400_000, 2_000_000],
    "sizes": [4096, 32_768, 131_072, 262_144, 524_288, 1_048_576],
}  # fmt: skip
QUICK = {"epochs": 2, "points": 2, "calls": 1, "seconds": 1.0, "cases": 2, "steps": [3000, 9000], "sizes": [32_768]}
FILES = {"full": {"many": [2000, 20_000], "stop": 400, "disk": 400}, "quick": {"many": [5, 20], "stop": 10, "disk": 10}}


def settle(given: argparse.Namespace) -> argparse.Namespace:
    """Sizes that were not given."""
    sizes_ = (QUICK if given.quick else FULL) | {"files": FILES["quick" if given.quick else "full"].get(given.part)}
    for name, value in sizes_.items():
        if getattr(given, name, None) is None:
            setattr(given, name, value)
    return given


def run(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The results of one part."""
    if given.part == "long":
        return sizes.long(work, given.epochs, given.steps)
    if given.part == "many":
        return sizes.many(work, given.epochs, given.files)
    if given.part == "fuzz":
        return sizes.fuzz(given.calls, given.seconds, given.cases, given.seed)
    made = {}
    for what in given.what:
        kind = (
            stopped.training(work, given.epochs)
            if what == "train"
            else stopped.prediction(work, given.epochs, given.files)
        )
        name = "run" if what == "train" else "p.json"
        if given.part == "stop":
            made[what] = stopped.interrupt(kind, work, name, given.points, given.seed)
        else:
            made[what] = stopped.fill(kind, work, name, given.sizes)
    return made


def markdown(content: dict[str, Any]) -> str:
    text = ["# Reliability", ""]
    for part in PARTS:
        if part in content["parts"]:
            found = content["parts"][part]
            about = f"{line(found)} CPU: {found['cpu']}."
            text += [f"## {TITLES[part]}", "", about, "", SECTIONS[part](found["results"])]
    return "\n".join(text)


def _stop(results: dict[str, Any]) -> str:
    rows = [
        [what, stopped.counts(r["points"]), _codes(r["points"]), f"{r['lasts_seconds']:.1f}", str(r["wrong"])]
        for what, r in results.items()
    ]
    return table(["work", "signals", "exit statuses", "seconds undisturbed", "wrong"], rows)


def _disk(results: dict[str, Any]) -> str:
    rows = [
        [what, f"{case['bytes']:,}", case["kind"], str(case["code"]), "; ".join(case["wrong"]) or "nothing"]
        for what, r in results.items()
        for case in r["cases"]
    ]
    return table(["work", "bytes", "what is full", "exit status", "wrong after resuming"], rows)


def _codes(points: Sequence[dict[str, Any]]) -> str:
    codes = [p["code"] for p in points]
    return ", ".join(f"{code}: {codes.count(code)}" for code in sorted(set(codes)))


def _sized(unit: str, results: dict[str, Any]) -> str:
    rows = [
        [f"{r['size']:,}", f"{r['seconds']:.1f}", f"{r['cpu_seconds']:.1f}", f"{1e6 * r['cpu_seconds'] / r['size']:.0f}",
         f"{r['peak_mb']:.0f}", *([f"{r['feature_mb']:.0f}", f"{r['detections']:,}"] if "detections" in r else [])]
        for r in results["rows"]
    ]  # fmt: skip
    header = [unit, "seconds", "CPU seconds", "CPU µs each", "peak MB"]
    return table([*header, *(["MB of features", "detections"] if unit == "steps" else [])], rows)


def _fuzz(r: dict[str, Any]) -> str:
    return (
        f"{r['calls']:,} calls ({r['answers']:,} answers, {r['errors']:,} errors with a message) in {r['seconds']:.0f} s, "
        f"seeds {r['first_seed']} to {r['first_seed'] + r['rounds'] - 1}; wrong: {len(r['wrong'])}.\n"
    )


SECTIONS = {
    "stop": _stop, "disk": _disk, "fuzz": _fuzz, "long": lambda r: _sized("steps", r), "many": lambda r: _sized("files", r),
}  # fmt: skip


def main() -> int:
    given = settle(arguments().parse_args())
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = run(given, work.resolve())
    path = given.out / "reliability.json"
    parts = json.loads(path.read_text())["parts"] if path.is_file() else {}
    parts[given.part] = {**facts(), "cpu": processor(), "results": results}
    content = {**facts(), "parts": {name: parts[name] for name in PARTS if name in parts}}
    write(given.out, "reliability", content, markdown(content))
    return int(any(_wrong(results)))


def _wrong(results: Any) -> list[Any]:
    """Everything under the name "wrong"."""
    if isinstance(results, dict):
        return [results["wrong"]] if "wrong" in results else [w for value in results.values() for w in _wrong(value)]
    return []


if __name__ == "__main__":
    raise SystemExit(main())

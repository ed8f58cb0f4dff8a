"""The compiled CPU kernels beside their peers, with what each is to reach.

usage: python -m benchmarks.ops [--threads 2] [--quick] [--out benchmarks/results]

Runs of one piece of work are interleaved: every round runs each eleven times in a row, in rotating order, and times the
last, which finds its data in the caches as it would in a network; medians over rounds. Peers get what is best for
them: block masks are made beforehand, compiled peers are warmed up. Equal results are checked before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tzn
from benchmarks.ops import attention, block, suppression
from benchmarks.ops.goals import Measurement
from benchmarks.ops.machine import gigabytes_per_second, gigaflops
from tzn import ops
from tzn.files import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results"
LARGE = 2**28  # bytes: beyond the caches


def stages(peak: float, *, quick: bool) -> list[Callable[[], list[Measurement]]]:
    found: list[Callable[[], list[Measurement]]] = [
        lambda: [suppression.measure(2000, multiclass=True, least=5, aim=15)],
        lambda: [suppression.measure(12000, multiclass=True, least=10, aim=40)],
        lambda: [suppression.measure(12000, multiclass=False, least=8, aim=30)],
        lambda: block.measure(2304, peak),
        lambda: attention.measure(2304),
    ]
    return found if quick else [*found, lambda: attention.measure(9216)]


def markdown(content: dict[str, Any]) -> str:
    goals = [
        f"| {row['work']} | {goal['name']} | {goal['value']:.2f} | {goal['least']:g} | {goal['aim']:g} | {goal['mark']} |"
        for row in content["measurements"]
        for goal in row["goals"]
    ]
    times = [
        f"| {row['work']} | {name} | {1e3 * s['median']:.2f} | {1e3 * s['q1']:.2f}–{1e3 * s['q3']:.2f} | {s['rounds']} |"
        for row in content["measurements"]
        for name, s in row["seconds"].items()
    ]
    near = [f"* {row['work']}: {row['roofline']}." for row in content["measurements"] if row["roofline"]]
    return "\n".join([
        "# The compiled CPU kernels", "", f"`{content['command']}`, {content['date']}; {content['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + ".", "",
        "| work | goal | reached | at least | aim | |", "|---|---|---|---|---|---|", *goals, "",
        "## Milliseconds", "", "| work | | median | quartiles | rounds |", "|---|---|---|---|---|", *times, "",
        "## How near to the machine's ceilings", "",
        f"A large float32 matrix product reaches {content['gigaflops']:.0f} GFLOP/s, a large copy "
        f"{content['gigabytes_per_second']:.1f} GB/s (read and write together).", "", *near, "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="without T = 9216")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of ops.json and ops.md")
    options = parser.parse_args()
    if ops.backends()["cpp"] != "available":
        raise SystemExit(f"the compiled kernels are missing: {ops.backends()['cpp']}")
    torch.set_num_threads(options.threads)
    peak = gigaflops()
    found = [row for stage in tqdm(stages(peak, quick=options.quick)) for row in stage()]
    content = {
        "command": "python -m benchmarks.ops" + (" --quick" if options.quick else ""), "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads",
        "versions": {"tzn": tzn.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "gigaflops": peak, "gigabytes_per_second": gigabytes_per_second(LARGE),
        "measurements": [row.to_dict() for row in found],
    }  # fmt: skip
    text = markdown(content)
    with atomic_write(options.out / "ops.json") as file:
        json.dump(content, file, indent=1)
    with atomic_write(options.out / "ops.md") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    main()

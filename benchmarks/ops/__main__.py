"""The compiled CPU kernels beside their peers, with what each is to reach.

usage: python -m benchmarks.ops [--threads 2] [--quick] [--only OP ...] [--out benchmarks/results]

Runs of one piece of work are interleaved: every round runs each eleven times in a row, in rotating order, and times the
last, which finds its data in the caches as it would in a network; medians over rounds. Peers get what is best for
them: block masks are made beforehand, compiled peers are warmed up. Equal results are checked before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.lib.ceilings import gigabytes_per_second, gigaflops
from benchmarks.lib.goals import Measurement
from benchmarks.lib.provenance import facts, line, parser, write
from benchmarks.lib.tables import table
from benchmarks.ops import boundary_crossings, local_attention, nms, variable_depth_block
from tzn import ops

LARGE = 2**28  # bytes: beyond the caches


def stages(peak: float, *, quick: bool) -> dict[str, list[Callable[[], list[Measurement]]]]:
    """What is measured, by op."""
    return {
        "nms": [
            lambda: [nms.measure(2000, multiclass=True, least=5, aim=15)],
            lambda: [nms.measure(12000, multiclass=True, least=10, aim=40)],
            lambda: [nms.measure(12000, multiclass=False, least=8, aim=30)],
        ],
        "boundary_crossings": [lambda: [boundary_crossings.measure(2304)]],
        "variable_depth_block": [lambda: variable_depth_block.measure(2304, peak)],
        "local_attention": [lambda s=s: local_attention.measure(s) for s in ((2304,) if quick else (2304, 9216))],
    }


def markdown(content: dict[str, Any]) -> str:
    measured = content["measurements"]
    goals = [
        [row["work"], goal["name"], f"{goal['value']:.2f}", f"{goal['least']:g}", f"{goal['aim']:g}", goal["mark"]]
        for row in measured
        for goal in row["goals"]
    ]
    times = [
        [row["work"], name, f"{1e3 * s['median']:.2f}", f"{1e3 * s['q1']:.2f}–{1e3 * s['q3']:.2f}", str(s["rounds"])]
        for row in measured
        for name, s in row["seconds"].items()
    ]
    near = [f"* {row['work']}: {row['roofline']}." for row in measured if row["roofline"]]
    return "\n".join([
        "# The compiled CPU kernels", "", line(content), "",
        table(["work", "goal", "reached", "at least", "aim", ""], goals), "## Milliseconds", "",
        table(["work", "", "median", "quartiles", "rounds"], times), "## How near to the machine's ceilings", "",
        f"A large float32 matrix product reaches {content['gigaflops']:.0f} GFLOP/s, a large copy "
        f"{content['gigabytes_per_second']:.1f} GB/s (read and write together).", "", *near, "",
    ])  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--quick", action="store_true", help="without T = 9216")
    arguments.add_argument("--only", nargs="+", choices=stages(0, quick=True), help="these ops, and write nothing")
    options = arguments.parse_args()
    if ops.backends()["cpp"] != "available":
        raise SystemExit(f"the compiled kernels are missing: {ops.backends()['cpp']}")
    torch.set_num_threads(options.threads)
    peak = gigaflops()
    chosen = [
        s for op, parts in stages(peak, quick=options.quick).items() if op in (options.only or [op]) for s in parts
    ]
    content = {
        **facts(), "gigaflops": peak, "gigabytes_per_second": gigabytes_per_second(LARGE),
        "measurements": [row.to_dict() for stage in tqdm(chosen) for row in stage()],
    }  # fmt: skip
    if options.only:
        print(markdown(content))
    else:
        write(options.out, "ops", content, markdown(content))


if __name__ == "__main__":
    main()

"""Zoom: what depth is worth on every data set, who should get it, and what it costs beside today's networks.

    python -m benchmarks.evidence.zoom headroom --data ../shared/data            # random-depth networks, seven sets
    python -m benchmarks.evidence.zoom fronts --data ../shared/data --seeds 0 1 2 3 4
    python -m benchmarks.evidence.zoom known                                     # synthetic sets with a known answer
    python -m benchmarks.evidence.zoom risk --data ../shared/data                # thresholds that keep a promise
    python -m benchmarks.evidence.zoom times --data ../shared/data               # of saved work, what is saved in time
    python -m benchmarks.evidence.zoom variants --seeds 0 1 2                    # what others do, on the known answer
    python -m benchmarks.evidence.zoom report                                    # writes zoom.md

Every training is kept in ``zoom.json`` as soon as it is scored, and not run again; several processes share the work.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from benchmarks.evidence.zoom import known_answer, real, report, risk, times, variants
from benchmarks.lib import provenance
from benchmarks.planning import Store

FRONTS = ("hapt", "ludb", "gtea", "eye_lund2013")
NETWORKS = ("zoom", "atr", "actionformer", "six", "zoom raw")


def jobs(options: argparse.Namespace) -> list[real.Job]:
    sets = options.sets
    if options.part == "headroom":
        return [
            real.Job(d, network, seed, depth="random")
            for seed in options.seeds for d in sets or real.SETS for network in options.networks if network in ("zoom", "atr")
        ]  # fmt: skip
    widths = {"actionformer": real.ACTIONFORMER_WIDTHS}
    return [
        real.Job(d, network, seed, width)
        for seed in options.seeds for d in sets or FRONTS for network in options.networks
        for width in widths.get(network, (real.WIDTH,))
        if network != "zoom raw" or d in real.RAW
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("headroom", "fronts", "known", "risk", "times", "variants", "report"))
    parser.add_argument("--out", type=Path, default=provenance.RESULTS / "evidence", help="folder for the results")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/zoom"), help="folder of the trainings; emptied as they end"
    )
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)  # the counted work and the scores do not depend on it
    store = Store(options.out / "zoom.json")
    if options.part == "report":
        report.write(store.read(), options.out)
        return
    if options.part == "known":
        known_answer.main(store, options.seeds)
        return
    if options.part == "risk":
        risk.main(store, options.seeds, options.data, options.runs, options.sets)
        return
    if options.part == "times":
        times.main(store, options.data, options.runs, options.sets)
        return
    if options.part == "variants":
        variants.main(store, options.seeds)
        return
    for job in jobs(options):
        store.once(job.key, functools.partial(real.run, job, options.data, options.runs))


if __name__ == "__main__":
    main()

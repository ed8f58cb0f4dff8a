"""Depth as a dial and depth as learnt: mAP against counted multiply-adds, and where the depth goes.

usage: python -m benchmarks.evidence.depth --data hapt runs/hapt_seed0 ... [--trained runs/target0.1 ...]

Runs are folders of ``tzn train configs/hapt.yaml``. The dial: every run is scored on the test subjects at mean depth
0.1 ... 1.0 and as trained, with the same weights. ``--trained``: runs of other training.target_depth, as trained.
Where the depth goes: mean tau, as trained, by time to the nearest annotated boundary and by class. Finished
evaluations are kept in depth.parts.json beside the results until all are done.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.depth import picture
from benchmarks.lib.parts import Parts
from benchmarks.lib.provenance import evidence_parser, write
from benchmarks.lib.ranks import rank_correlation
from benchmarks.lib.runs import METRICS, TIOU, load_run, recordings_of, scored
from benchmarks.lib.tables import table
from tzn.config_loading import config_from_dict
from tzn.data.annotations import Recording
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation
from tzn.models.checkpoint import LoadedCheckpoint

SHOWN = ("mAP 0.3:0.7", "@0.7", "mAP 0.5:0.95")
DIAL = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
EDGES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, float("inf"))  # seconds to the nearest boundary


def point(evaluation: CheckpointEvaluation) -> dict[str, float]:
    """Percent, seconds and 1e9 multiply-adds per recording."""
    at = dict(zip(TIOU, 100 * evaluation.report.score.mAP, strict=True))
    errors = evaluation.report.errors["overall"]
    return {
        **{name: float(np.mean([at[t] for t in METRICS[name]])) for name in SHOWN},
        "start": errors["start"]["median"], "end": errors["end"]["median"],
        "depth": evaluation.mean_depth, "gmac": evaluation.gmac,
    }  # fmt: skip


def where(evaluation: CheckpointEvaluation, recordings: list[Recording]) -> dict[str, Any]:
    """Mean tau ``near[bin]`` by :data:`EDGES` and by class ("" outside all segments), steps of each, and the rank
    correlation of tau with the distance."""
    tau, distance, inside = [], [], []
    for recording in recordings:
        trace = evaluation.traces[recording.id]
        times = trace["time"]
        tau.append(trace["depth"])
        distance.append(np.abs(times[:, None] - recording.segments.reshape(1, -1)).min(1))
        within = (times[:, None] >= recording.segments[:, 0]) & (times[:, None] < recording.segments[:, 1])
        inside.append(np.where(within.any(1), recording.labels[within.argmax(1)], -1))
    depth, apart, label = map(np.concatenate, (tau, distance, inside))
    bins = np.digitize(apart, EDGES) - 1
    names = {"outside": -1, **{name: i for i, name in enumerate(evaluation.classes)}}
    return {
        "near": [float(depth[bins == b].mean()) if (bins == b).any() else None for b in range(len(EDGES) - 1)],
        "near_steps": [int((bins == b).sum()) for b in range(len(EDGES) - 1)],
        "class": {name: float(depth[label == i].mean()) for name, i in names.items() if (label == i).any()},
        "class_steps": {name: int((label == i).sum()) for name, i in names.items()},
        "rank_correlation": rank_correlation(depth, apart),
        "share_of_boundary_steps": float(depth[apart < EDGES[3]].sum() / depth.sum()),
    }


def measured(options: Any, dial: tuple[float, ...], parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """(by run: points by budget and where the depth goes; by other run: its point and target)."""
    runs, trained = {}, {}
    for run in options.runs:
        checkpoint = load_run(run)

        def as_trained(c: LoadedCheckpoint = checkpoint) -> dict[str, Any]:
            evaluation = scored(c, options.data, None, traces=True)
            return {"point": point(evaluation), "where": where(evaluation, recordings_of(c, options.data))}

        found = parts.get(f"{run} as trained", as_trained)
        points = {
            f"{b:g}": parts.get(f"{run} {b:g}", lambda b=b, c=checkpoint: point(scored(c, options.data, b)))
            for b in dial
        }
        runs[run.name] = {**found, "dial": points}
    for run in options.trained:
        checkpoint = load_run(run)
        target = config_from_dict(checkpoint.config).training.target_depth
        found = parts.get(f"{run} as trained", lambda c=checkpoint: point(scored(c, options.data)))
        trained[run.name] = {"target": target, "point": found}
    return runs, trained


def mean_of(points: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([p[key] for p in points])) for key in points[0]}


def row(name: str, points: list[dict[str, float]]) -> list[str]:
    m = mean_of(points)
    spread = np.std([p["mAP 0.5:0.95"] for p in points], ddof=1) if len(points) > 1 else None
    return [
        name, str(len(points)), f"{m['depth']:.2f}", f"{m['gmac']:.3f}", f"{m['mAP 0.3:0.7']:.1f}", f"{m['@0.7']:.1f}",
        f"{m['mAP 0.5:0.95']:.1f}" + (f" ± {spread:.1f}" if spread is not None else ""),
        f"{m['start']:.2f} / {m['end']:.2f} s",
    ]  # fmt: skip


def markdown(runs: dict[str, Any], trained: dict[str, Any]) -> str:
    sweeps = [run["dial"] for run in runs.values()]
    rows = [row("as trained", [run["point"] for run in runs.values()])]
    rows += [row(f"dial at {b}", [sweep[b] for sweep in sweeps]) for b in sweeps[0]]
    rows += [row(f"trained for {r['target']:g}", [r["point"]]) for r in trained.values()]
    header = ["", "runs", "mean depth", "GMAC", "mAP 0.3:0.7", "@0.7", "mAP 0.5:0.95", "median error start / end"]
    wheres = [run["where"] for run in runs.values()]
    near = np.mean(np.array([w["near"] for w in wheres], dtype=float), axis=0)
    total = sum(wheres[0]["near_steps"])
    names = [f"{low:g}-{high:g} s" for low, high in itertools.pairwise(EDGES)]
    bins = [
        [name, f"{value:.2f}", f"{100 * steps / total:.0f} %"]
        for name, value, steps in zip(names, near, wheres[0]["near_steps"], strict=True)
    ]
    by_class = sorted(((float(np.mean([w["class"][n] for w in wheres])), n) for n in wheres[0]["class"]), reverse=True)
    classes = [[n, f"{value:.2f}", f"{100 * wheres[0]['class_steps'][n] / total:.0f} %"] for value, n in by_class]
    correlation = np.mean([w["rank_correlation"] for w in wheres])
    share, steps = (
        np.mean([w["share_of_boundary_steps"] for w in wheres]),
        sum(wheres[0]["near_steps"][:3]) / total,
    )
    return "\n".join([
        "# Depth: the dial, training for other depths, and where the depth goes", "",
        f"`python -m benchmarks.evidence.depth --data hapt RUNS --trained OTHERS`: HAPT test subjects, {len(runs)} seed(s) "
        f"for the dial (the same weights in all its rows), {len(trained)} runs trained for other depths. GMAC: 1e9 "
        "multiply-adds per recording, counted as run. ±: standard deviation over seeds.", "",
        table(header, rows), "![mAP against multiply-adds, and where the depth goes](depth.png)", "",
        "## Where the depth goes, as trained", "", "Mean tau of steps by time to the nearest annotated boundary:", "",
        table(["distance", "mean tau", "share of steps"], bins),
        f"Rank correlation of tau with the distance {correlation:+.2f}. Steps within {EDGES[3]:g} s of a boundary are "
        f"{100 * steps:.0f} % of all and get {100 * share:.0f} % of the depth.", "", "By class of the step:", "",
        table(["class", "mean tau", "share of steps"], classes),
    ])  # fmt: skip


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trained", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)  # the counted work and the scores do not depend on it
    begin = time.perf_counter()
    dial = (0.25, 1.0) if options.smoke else DIAL
    if options.smoke:
        options.runs, options.trained = options.runs[:1], options.trained[:1]
    total = len(options.runs) * (1 + len(dial)) + len(options.trained)
    parts = Parts(options.out / "depth.parts.json", total, {"data": str(options.data.resolve()), "tiou": TIOU})
    runs, trained = measured(options, dial, parts)
    checkpoint = load_run(options.runs[0])
    picture.draw(options.out / "depth.png", runs, trained, checkpoint, options.data, EDGES)
    content = {"seconds": time.perf_counter() - begin, "edges": EDGES[:-1], "runs": runs, "trained": trained}
    write(options.out, "depth", content, markdown(runs, trained))
    parts.finish()


if __name__ == "__main__":
    main()

"""The tables of ``zoom.md`` from the stored runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.evidence.zoom import known_answer, real, risk, times, variants
from benchmarks.lib import provenance
from benchmarks.lib.runs import METRICS, TIOU
from benchmarks.lib.tables import table
from tzn.files import atomic_write

Point = Mapping[str, Any]
Points = dict[str, list[Point]]  # by label, one per seed


def by_label(runs: Mapping[str, Any], kind: str) -> Points:
    """Points of all seeds of ``kind``, the key without its seed."""
    found: Points = {}
    for key in sorted(runs):
        if key.rpartition("/")[0] == kind:
            for point in runs[key]["points"]:
                found.setdefault(point["label"], []).append(point)
    return found


def metric(name: str) -> Callable[[Point], float]:
    places = [TIOU.index(t) for t in METRICS[name]]
    return lambda point: fmean(point["mAP"][i] for i in places)


def mean(points: Sequence[Point], value: str | Callable[[Point], float], digits: int, spread: bool = False) -> str:
    read = value if callable(value) else lambda p: p.get(value)
    found = [x for x in map(read, points) if x is not None]
    if not found:
        return "-"
    text = f"{fmean(found):.{digits}f}"
    return text + (f" ± {stdev(found):.{digits}f}" if spread and len(found) > 1 else "")


def known(runs: Mapping[str, Any]) -> list[str]:
    points = by_label(runs, "known/zoom")
    for target in known_answer.TARGETS:
        points[f"learned depth, trained for {target:g}"] = by_label(runs, f"known/learned {target:g}").get(
            "learned", []
        )
    seeds = len(points.get("uniform 0", []))
    if not seeds:
        return []
    rows = [
        [
            label, mean(p, "depth", 3), mean(p, lambda x: 1000 * x["gmac"], 2), mean(p, "wide", 3, True),
            mean(p, "sharp", 3, True), mean(p, "rank", 2), mean(p, "rank_near", 2),
        ]
        for label, p in points.items() if p
    ]  # fmt: skip
    lines = [
        "## Known answer", "",
        f"`{known_answer.__name__}`: half of the boundaries sharp (no depth needed), half fading over 24 steps in noise (depth "
        f"needed). {seeds} seeds, {known_answer.TRAINED} steps of training on fresh data. Error: mean absolute error of the "
        f"distance, in steps, within {known_answer.NEAR:g} steps of a boundary. Rank: correlation of the depth with the oracle "
        "gain over all steps, and over steps within the radius. 1e6 multiply-adds a recording.", "",
        table(["", "mean depth", "1e6 mult.-adds", "error, wide", "error, sharp", "rank, all", "rank, near"], rows), "",
        "Zoom minus uniform depth of equal multiply-adds (between two numbers of blocks: the line between them), error at wide "
        "boundaries in steps, mean ± standard error over the seeds:", "",
    ]  # fmt: skip
    for threshold in known_answer.THRESHOLDS:
        found = []
        for seed, point in enumerate(points[f"zoom {threshold:g}"]):
            curve = [points[f"uniform {b}"][seed] for b in range(known_answer.LAYERS + 1)]
            equal = np.interp(point["gmac"], [c["gmac"] for c in curve], [c["wide"] for c in curve])
            found.append(point["wide"] - float(equal))
        error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
        lines.append(f"* threshold {threshold:g}: {fmean(found):+.3f} ± {error:.3f}")
    return [*lines, ""]


def headroom(runs: Mapping[str, Any]) -> list[str]:
    fine, strict = metric("mAP 0.5:0.95"), metric("@0.9")
    rows, exits = [], []
    for data in real.SETS:
        for network in ("zoom", "atr"):
            kind = f"{data}/{network}/random/{real.WIDTH}"
            points = by_label(runs, kind)
            if not points:
                continue
            losses = np.mean([runs[k]["exits"] for k in runs if k.rpartition("/")[0] == kind], axis=0)
            exits.append([data, network, *(f"{x:.2f}" for x in losses)])
            for budget in real.BUDGETS:
                labels = (f"uniform at {budget:g}", f"random {budget:g}", f"near {budget:g}", f"oracle {budget:g}")
                rows.append([
                    data, network, f"{budget:g}",
                    *(f"{mean(points[label], fine, 1)} / {mean(points[label], strict, 1)}"
                      for label in ("uniform 0", *labels, f"uniform {real.LAYERS}")),
                ])  # fmt: skip
    if not rows:
        return []
    return [
        "## Headroom", "",
        "Networks trained at a random depth of every step. mAP 0.5:0.95 / @0.9 on test recordings when depth goes to the steps "
        "named; the oracle knows every step's loss with and without depth, so it also profits from luck.", "",
        table(["data", "network", "mean depth", "0 blocks", "uniform", "random", "near true boundaries", "oracle gain",
               "all blocks"], rows), "",
        "Boundary loss (nats per step within the radius) after 0 to 4 blocks everywhere; falling: depth has something to give, "
        "rising: it overfits.", "",
        table(["data", "network", *map(str, range(real.LAYERS + 1))], exits), "",
    ]  # fmt: skip


def fronts(runs: Mapping[str, Any]) -> list[str]:
    rows = []
    kinds = sorted({k.rpartition("/")[0] for k in runs if k.split("/")[2] == "learned"})
    for kind in sorted(kinds, key=lambda k: (real.SETS.index(k.split("/")[0]), k.split("/")[1] != "zoom", k)):
        data, network, _, width = kind.split("/")
        for label, p in by_label(runs, kind).items():
            name = label if network == "actionformer" else f"{network}: {label}"
            name = f"ActionFormer, width {width}" if network == "actionformer" else name
            rows.append([
                data, name, str(len(p)), mean(p, "depth", 2), mean(p, "gmac", 3), mean(p, lambda x: 1000 * x["seconds"], 0),
                mean(p, metric("mAP 0.3:0.7"), 1), mean(p, metric("mAP 0.5:0.95"), 1, True), mean(p, metric("@0.7"), 1),
                mean(p, metric("@0.9"), 1), mean(p, metric("@0.95"), 1),
                " / ".join(
                    mean(p, lambda x, side=side: None if x[side] is None else 1000 * x[side], 1) for side in ("start", "end")
                ),
                mean(p, lambda x: 100 * x["share_nearest"] if "share_nearest" in x else None, 0),
            ])  # fmt: skip
    if not rows:
        return []
    return [
        "## Fronts", "",
        f"One planned recipe per set, {real.STEPS} steps, width {real.WIDTH}, scored on the test recordings. zoom: the "
        "boundary stream at a threshold, and the same weights at uniform and at random depth. atr: today's network as trained "
        "for a mean depth of 0.25, and by its dial. GMAC: 1e9 multiply-adds per recording, counted as run; ms: median per "
        "recording on one busy thread, counting included; ±: standard deviation over seeds; nearest: share, in per cent, of "
        f"the depth that the {100 * real.NEAREST:.0f} % of steps nearest to true boundaries get.", "",
        table(["data", "", "seeds", "depth", "GMAC", "ms", "mAP 0.3:0.7", "0.5:0.95", "@0.7", "@0.9", "@0.95",
               "median error start / end, ms", "nearest"], rows), "",
    ]  # fmt: skip


# The stream at half a step against what else there is: its own weights, today's network, and ActionFormer by width.
AGAINST = (
    ("zoom", real.WIDTH, "uniform 0"), ("zoom", real.WIDTH, "uniform 1"), ("zoom", real.WIDTH, f"uniform {real.LAYERS}"),
    ("zoom", real.WIDTH, "random 0.1"), ("zoom", real.WIDTH, "random 0.25"), ("atr", real.WIDTH, "uniform 1"),
    ("atr", real.WIDTH, "as trained"), *(("actionformer", width, "actionformer") for width in real.ACTIONFORMER_WIDTHS),
)  # fmt: skip


def paired(runs: Mapping[str, Any]) -> list[str]:
    """Differences between points of the same seed, with a 95 % interval of Student's t over the seeds."""

    def error(point: Point) -> float | None:
        return None if point["start"] is None else 500 * (point["start"] + point["end"])

    measures = (*(metric(name) for name in ("mAP 0.5:0.95", "@0.7", "@0.9")), error)
    rows = []
    for data in real.SETS:
        ours = {
            key.rpartition("/")[2]: point
            for key in runs if key.startswith(f"{data}/zoom/learned/{real.WIDTH}/")
            for point in runs[key]["points"] if point["label"] == "zoom 0.5"
        }  # fmt: skip
        for network, width, label in AGAINST:
            pairs = [
                (ours[key.rpartition("/")[2]], point)
                for key in runs if key.startswith(f"{data}/{network}/learned/{width}/") and key.rpartition("/")[2] in ours
                for point in runs[key]["points"] if point["label"] == label
            ]  # fmt: skip
            if len(pairs) < 2:
                continue
            said = []
            for digits, read in zip((1, 1, 1, 2), measures, strict=True):
                values = [(read(a), read(b)) for a, b in pairs]
                differences = np.array([x - y for x, y in values if x is not None and y is not None])
                reach = student.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
                low, middle, high = (f"{differences.mean() + x:+.{digits}f}" for x in (-reach, 0, reach))
                said.append(f"{middle} ({low} to {high})")
            cost = [f"{fmean(pair[i]['gmac'] for pair in pairs):.3f}" for i in (0, 1)]
            name = f"ActionFormer, width {width}" if network == "actionformer" else f"{network}: {label}"
            rows.append([data, name, str(len(pairs)), " / ".join(cost), *said])
    if not rows:
        return []
    return [
        "### The stream at a threshold of 0.5 against others, seed by seed", "",
        "Mean difference and 95 % interval (Student's t over the seeds) of mAP and of the mean of median start and end error.",
        "", table(["data", "against", "seeds", "GMAC, both", "0.5:0.95", "@0.7", "@0.9", "error, ms"], rows), "",
    ]  # fmt: skip


def risks(runs: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, r in runs.items():
        if key.startswith("risk/"):
            judged = [("mAP", r), *([("mAP or boundaries", r["either"])] if "either" in r else [])]
            rows += [
                [
                    key.split("/")[1], str(r["groups"]), by, f"{100 * j['risk']:.1f} %", f"{100 * j['refused']:.0f} %",
                    f"{100 * j['saved']:.0f} %",
                ]
                for by, j in judged
            ]  # fmt: skip
    if not rows:
        return []
    return [
        "## A dial with a promise", "",
        f"The largest threshold that, on one half of the test groups, harms at most {100 * risk.RISK:.0f} % of new groups (mAP "
        f"more than {risk.ALLOWED:g} point below full depth; or that, or a boundary error more than a grid step above) by "
        f"conformal risk control; harmed: the share of the other half that it does harm, mean over {risk.SPLITS} random "
        "halves. Refused: halves too small, or too harmed, to promise it at any threshold; these stay at full depth. Saved: of "
        "all multiply-adds of full depth.", "",
        table(["data", "groups", "judged by", "harmed", "refused", "saved"], rows), "",
    ]  # fmt: skip


def compared(runs: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in variants.VARIANTS:
        both = [
            (runs[k], runs.get(f"known/zoom/{k.rpartition('/')[2]}")) for k in runs if k.startswith(f"variant/{name}/")
        ]
        found = np.array([variants.curve(v["points"]) - variants.curve(plain["points"]) for v, plain in both if plain])
        if len(found):
            said = [f"{x:+.3f}" for x in found.mean(0)]
            if len(found) > 1:
                wrong = found.std(0, ddof=1) / len(found) ** 0.5
                said = [f"{m} ± {e:.3f}" for m, e in zip(said, wrong, strict=True)]
            rows.append([name, str(len(found)), *said])
    if not rows:
        return []
    shares = [f"dial at {100 * s:g} %" for s in variants.SHARES]
    return [
        "## Changes of the stream on the known answer", "",
        "Error at hard boundaries, in steps, minus that of the plain stream of the same seed, mean ± standard error; by the "
        "dial at equal multiply-adds (per cent of the way from no block to all of them), and with all blocks everywhere.", "",
        table(["", "seeds", *shares, "all blocks"], rows), "",
    ]  # fmt: skip


def timings(runs: Mapping[str, Any]) -> list[str]:
    def three(values: Sequence[float]) -> str:
        return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

    rows = [
        [
            key.split("/")[1], str(r["steps"]), str(r["threads"]), f"{r['threshold']:g}", f"{100 * r['active']:.0f}",
            f"{100 * r['small_gates']:.0f}", f"{100 * (1 - r['mac'] / r['full_mac']):.0f}",
            f"{1000 * r['wall']['seconds'][0]:.1f} / {1000 * r['wall']['full'][0]:.1f}", three(r["wall"]["ratio"]),
            three(r["own"]["ratio"]),
        ]
        for key, run in runs.items() if key.startswith("times/") for r in run["rows"]
    ]  # fmt: skip
    if not rows:
        return []
    return [
        "## Time for multiply-adds", "",
        f"The boundary stream of a trained network on test recordings laid end to end, batch 1, {times.ROUNDS} interleaved "
        "rounds. Saved time over saved multiply-adds against all blocks on all steps: median and quartiles over rounds, by the "
        "wall clock and by the processor's own. Small: share of running steps whose gate is below 0.1.", "",
        table(["data", "T", "threads", "threshold", "running, %", "small, %", "mult.-adds saved, %", "ms / at full depth",
               "time saved over work saved, wall", "processor"], rows), "",
    ]  # fmt: skip


def write(content: Mapping[str, Any], out: Path) -> None:
    """``zoom.md`` in ``out``."""
    runs = content["runs"]
    lines = [
        "# Zoom: depth where a boundary is not settled", "", provenance.line(content), "",
        *known(runs), *compared(runs), *headroom(runs), *fronts(runs), *paired(runs), *timings(runs), *risks(runs),
    ]  # fmt: skip
    with atomic_write(out / "zoom.md") as file:
        file.write("\n".join(lines))

"""LUDB, end to end: P, QRS and T waves of electrocardiograms, TemporalZoomNet against an ActionFormer of equal width.

usage: python -m benchmarks.evidence.ludb --data ludb [--runs runs] [--seeds 0 1 2]

Trains configs/ludb.yaml and configs/actionformer_ludb.yaml (same width, epochs, batch, augmentation and averaging of the
weights) for every seed; a run that is finished in --runs (ludb_seed0, actionformer_ludb_seed0, ...) is used again and
one that was stopped goes on. Scores are of the 50 test people; TemporalZoomNet also without its distance head at
inference (inference.mode=anchor). Differences: paired bootstrap over people and seeds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.ludb import picture
from benchmarks.lib.bootstrap import RESAMPLES, paired_bootstrap
from benchmarks.lib.provenance import CONFIGS, evidence_parser, write
from benchmarks.lib.runs import (
    SMOKE,
    TIOU,
    differences,
    mean_of,
    percent,
    recordings_of,
    scored,
    trained,
    truth_of,
    with_inference,
    work_of,
)  # fmt: skip
from benchmarks.lib.tables import table
from tzn.config_loading import load_config
from tzn.detections import Detections
from tzn.evaluation.boundary_error import SIDES, boundary_errors
from tzn.evaluation.flat import GroundTruth
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation

MODELS = {"actionformer_ludb": "ActionFormer, augmented and averaged like ours", "ludb": "TemporalZoomNet"}
ANCHOR = "ludb, anchor"
ROWS = {**MODELS, ANCHOR: "the same weights, ends not moved to crossings"}
COMPARED = ("mAP 0.5:0.95", "@0.5", "@0.75", "@0.9")
THRESHOLDS = ("@0.5", "@0.6", "@0.7", "@0.75", "@0.8", "@0.85", "@0.9", "@0.95")


def error_differences(
    truth: Mapping[str, GroundTruth], base: Sequence[Mapping[str, Detections]], ours: Sequence[Mapping[str, Detections]],
    classes: Sequence[str], resamples: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Difference of the median absolute boundary error in milliseconds, ours minus base: [difference, low, high].

    Each side over the segments that it matches at tIoU 0.5 (nearly all); resampled as :func:`paired_bootstrap` does.
    """
    names = list(truth)

    def per_recording(found: Mapping[str, Detections]) -> list[tuple[np.ndarray, np.ndarray]]:
        errors = [boundary_errors({n: truth[n]}, {n: found[n]}, len(classes)) for n in names]
        return [(1e3 * np.abs(e.error), e.labels) for e in errors]

    sides = [[per_recording(found) for found in side] for side in (base, ours)]

    def median(run: list[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray, label: int | None, side: int) -> float:
        picked = [run[i] for i in chosen]
        values = [e[:, side] if label is None else e[lab == label, side] for e, lab in picked]
        together = np.concatenate(values)
        return float(np.median(together)) if len(together) else float("nan")

    return {
        f"{name} {word}": paired_bootstrap(
            lambda run, chosen, label=label, side=side: median(run, chosen, label, side), sides, len(names), resamples
        )
        for name, label in [("all", None), *((c, i) for i, c in enumerate(classes))]
        for side, word in enumerate(SIDES)
    }  # fmt: skip


def score_row(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    fine = [percent(e, "mAP 0.5:0.95") for e in evaluations]
    spread = f" ± {np.std(fine, ddof=1):.1f}" if len(fine) > 1 else ""
    return [
        name, f"{fmean(fine):.1f}{spread}", *(mean_of(evaluations, metric) for metric in THRESHOLDS),
        f"{fmean(e['mean_depth'] for e in evaluations):.2f}", work_of(evaluations),
    ]  # fmt: skip


def error_row(name: str, evaluations: list[dict[str, Any]], classes: Sequence[str]) -> list[str]:
    def cell(of: Any) -> str:
        parts = [of(e) for e in evaluations]
        if not all(part["matched"] for part in parts):  # a smoke run may find nothing
            return "-"
        return " / ".join(f"{1e3 * fmean(part[side]['median'] for part in parts):.1f}" for side in SIDES)

    matched = [e["boundary_error"]["overall"] for e in evaluations]
    missed = fmean(m["missed"] / (m["matched"] + m["missed"]) for m in matched)
    return [
        name, cell(lambda e: e["boundary_error"]["overall"]),
        *(cell(lambda e, c=c: e["boundary_error"]["per_class"][c]) for c in classes), f"{100 * missed:.1f} %",
    ]  # fmt: skip


def markdown(content: dict[str, Any], classes: Sequence[str]) -> str:
    results = content["results"]
    effort = "; ".join(
        f"{MODELS[m]} {fmean(r['cpu_seconds'] for r in runs) / 60:.1f}" for m, runs in content["training"].items()
    )
    seeds = " ".join(map(str, content["seeds"]))
    points = [f"* {n}: {d:+.1f} points ({low:+.1f} to {high:+.1f})" for n, (d, low, high) in content["mAP"].items()]
    errors = [f"* {n}: {d:+.2f} ms ({low:+.2f} to {high:+.2f})" for n, (d, low, high) in content["error_ms"].items()]
    return "\n".join([
        "# LUDB: P, QRS and T waves of test people", "",
        f"`python -m benchmarks.evidence.ludb --data ludb --seeds {seeds}`: 50 people, "
        f"{content['segments']:,} waves; {content['training']['ludb'][0]['epochs']} epochs; means over seeds, ±: standard "
        f"deviation. GMAC: 1e9 multiply-adds per recording, counted as run. CPU minutes of training a seed: {effort}.", "",
        table(
            ["", "mAP 0.5:0.95", *THRESHOLDS, "mean depth", "GMAC"],
            [score_row(title, results[m]) for m, title in ROWS.items()],
        ),
        "Median absolute error of start / end in milliseconds (one sample is 4 ms, annotations are on a 2 ms grid), and "
        "the share of waves that no detection matches at tIoU 0.5:", "",
        table(["", "all", *classes, "missed"], [error_row(title, results[m], classes) for m, title in ROWS.items()]),
        "![boundary errors and mAP](ludb.png)", "",
        "TemporalZoomNet minus ActionFormer, 95 % intervals of a paired bootstrap over people and seeds:", "",
        *points, *errors, "",
    ])  # fmt: skip


def main() -> None:
    options = evidence_parser(__doc__, seeds=(0, 1, 2)).parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds = [options.seed] if options.smoke else options.seeds
    training: dict[str, list[Any]] = {name: [] for name in MODELS}
    results: dict[str, list[CheckpointEvaluation]] = {name: [] for name in ROWS}
    for seed in seeds:
        for name in MODELS:
            run = options.runs / f"{name}{'_smoke' if options.smoke else ''}_seed{seed}"
            print(run.name, file=sys.stderr, flush=True)
            config = load_config(CONFIGS / f"{name}.yaml", [*SMOKE, "training.batch_size=10"] if options.smoke else [])
            checkpoint = trained(config, options.data, run, seed)
            training[name].append(json.loads((run / "run.json").read_text()))
            results[name].append(scored(checkpoint, options.data))
        results[ANCHOR].append(scored(with_inference(checkpoint, mode="anchor"), options.data))
    truth = truth_of(checkpoint, options.data)
    base, ours = ([e.detections for e in results[name]] for name in MODELS)
    points = differences(results, {"ours": tuple(MODELS)}, COMPARED, checkpoint, options.data, smoke=options.smoke)
    resamples = 20 if options.smoke else RESAMPLES
    content = {
        "seeds": seeds, "training": training, "segments": sum(len(r.segments) for r in recordings_of(checkpoint, options.data)),
        "mAP": points["ours"],
        "error_ms": error_differences(truth, base, ours, checkpoint.classes, resamples),
        "results": {name: [e.to_dict() for e in evaluations] for name, evaluations in results.items()},
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    picture.draw(options.out / "ludb.png", content, MODELS, checkpoint.classes, TIOU)
    write(options.out, "ludb", content, markdown(content, checkpoint.classes))


if __name__ == "__main__":
    main()

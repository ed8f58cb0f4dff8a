"""LUDB, end to end: P, QRS and T waves of electrocardiograms, TemporalZoomNet against an ActionFormer of equal width.

usage: python benchmarks/evidence/ludb.py --data ludb [--runs runs] [--seeds 0 1 2]

Trains configs/ludb.yaml and configs/actionformer_ludb.yaml (same width, epochs, batch, augmentation and averaging of the
weights) for every seed; a run that is finished in --runs (ludb_seed0, actionformer_ludb_seed0, ...) is used again and
one that was stopped goes on. Scores are of the 50 test people; TemporalZoomNet also without its distance head at
inference (inference.mode=anchor). Differences: paired bootstrap over people and seeds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ludb_picture
import numpy as np
import report
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hapt import TIOU, scored, trained
from paired_bootstrap import paired_difference

from tzn.config_loading import config_from_dict, load_config
from tzn.data.dataset import load_split_annotations, select_recordings
from tzn.detections import Detections
from tzn.evaluation.boundary_error import SIDES, boundary_errors
from tzn.evaluation.flat import GroundTruth
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
MODELS = {"actionformer_ludb": "ActionFormer, augmented and averaged like ours", "ludb": "TemporalZoomNet"}
ANCHOR = "ludb, anchor"
ROWS = {**MODELS, ANCHOR: "the same weights, ends not moved to crossings"}
FINE = TIOU[2:]
SMOKE = ["training.epochs=1", "training.warmup_epochs=0", "training.batch_size=10", "data.max_length=256"]


def error_differences(
    truth: Mapping[str, GroundTruth], base: Sequence[Mapping[str, Detections]], ours: Sequence[Mapping[str, Detections]],
    classes: Sequence[str], resamples: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Difference of the median absolute boundary error in milliseconds, ours minus base: [difference, low, high].

    Each side over the segments that it matches at tIoU 0.5 (nearly all); resampled as in ``paired_bootstrap``.
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

    generator = np.random.default_rng(0)
    everyone = np.arange(len(names))
    draws = [
        (generator.integers(len(names), size=len(names)), *(int(generator.integers(len(s))) for s in sides))
        for _ in range(resamples)
    ]
    result = {}
    for name, label in [("all", None), *((c, i) for i, c in enumerate(classes))]:
        for side, word in enumerate(SIDES):
            means = [np.mean([median(run, everyone, label, side) for run in runs]) for runs in sides]
            drawn = [
                median(sides[1][o], chosen, label, side) - median(sides[0][b], chosen, label, side)
                for chosen, b, o in draws
            ]
            result[f"{name} {word}"] = [float(means[1] - means[0]), *map(float, np.percentile(drawn, [2.5, 97.5]))]
    return result


def mAP_differences(
    truth: Mapping[str, GroundTruth], base: Any, ours: Any, classes: Sequence[str], resamples: int
) -> dict[str, list[float]]:
    """Ours minus base in points: [difference, low, high] by metric."""
    metrics = {"mAP 0.5:0.95": FINE, "@0.5": [0.5], "@0.75": [0.75], "@0.9": [0.9]}
    return {
        name: list(
            paired_difference(
                truth, base, ours, classes, tiou, lambda score: 100 * score.average_mAP, resamples=resamples
            )
        )
        for name, tiou in metrics.items()
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def score_row(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    at = {t: [100 * e["mAP"][i] for e in evaluations] for i, t in enumerate(TIOU)}
    fine = [mean([at[t][i] for t in FINE]) for i in range(len(evaluations))]
    spread = f" ± {np.std(fine, ddof=1):.1f}" if len(fine) > 1 else ""
    return [
        name, f"{mean(fine):.1f}{spread}", *(f"{mean(at[t]):.1f}" for t in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        f"{mean([e['mean_depth'] for e in evaluations]):.2f}",
        f"{mean([e['gmac_per_recording'] for e in evaluations]):.3f}",
    ]  # fmt: skip


def error_row(name: str, evaluations: list[dict[str, Any]], classes: Sequence[str]) -> list[str]:
    def cell(of: Any) -> str:
        parts = [of(e) for e in evaluations]
        if not all(part["matched"] for part in parts):  # a smoke run may find nothing
            return "-"
        return " / ".join(f"{1e3 * mean([part[side]['median'] for part in parts]):.1f}" for side in SIDES)

    matched = [e["boundary_error"]["overall"] for e in evaluations]
    missed = mean([m["missed"] / (m["matched"] + m["missed"]) for m in matched])
    return [
        name, cell(lambda e: e["boundary_error"]["overall"]),
        *(cell(lambda e, c=c: e["boundary_error"]["per_class"][c]) for c in classes), f"{100 * missed:.1f} %",
    ]  # fmt: skip


def markdown(content: dict[str, Any], classes: Sequence[str]) -> str:
    results = content["results"]
    thresholds = [f"@{t:g}" for t in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]
    effort = "; ".join(
        f"{MODELS[m]} {mean([r['cpu_seconds'] for r in runs]) / 60:.1f}" for m, runs in content["training"].items()
    )
    seeds = " ".join(map(str, content["seeds"]))
    points = [f"* {n}: {d:+.1f} points ({low:+.1f} to {high:+.1f})" for n, (d, low, high) in content["mAP"].items()]
    errors = [f"* {n}: {d:+.2f} ms ({low:+.2f} to {high:+.2f})" for n, (d, low, high) in content["error_ms"].items()]
    return "\n".join([
        "# LUDB: P, QRS and T waves of test people", "",
        f"`python benchmarks/evidence/ludb.py --data ludb --seeds {seeds}`: 50 people, "
        f"{content['segments']:,} waves; {content['training']['ludb'][0]['epochs']} epochs; means over seeds, ±: standard "
        f"deviation. GMAC: 1e9 multiply-adds per recording, counted as run. CPU minutes of training a seed: {effort}.", "",
        report.table(
            ["", "mAP 0.5:0.95", *thresholds, "mean depth", "GMAC"],
            [score_row(title, results[m]) for m, title in ROWS.items()],
        ),
        "Median absolute error of start / end in milliseconds (one sample is 4 ms, annotations are on a 2 ms grid), and "
        "the share of waves that no detection matches at tIoU 0.5:", "",
        report.table(["", "all", *classes, "missed"], [error_row(title, results[m], classes) for m, title in ROWS.items()]),
        "![boundary errors and mAP](ludb.png)", "",
        "TemporalZoomNet minus ActionFormer, 95 % intervals of a paired bootstrap over people and seeds:", "",
        *points, *errors, "",
    ])  # fmt: skip


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds, resamples = ([options.seed], 20) if options.smoke else (options.seeds, 500)
    training: dict[str, list[Any]] = {name: [] for name in MODELS}
    results: dict[str, list[CheckpointEvaluation]] = {name: [] for name in ROWS}
    for seed in seeds:
        for name in MODELS:
            run = options.runs / f"{name}{'_smoke' if options.smoke else ''}_seed{seed}"
            print(run.name, file=sys.stderr, flush=True)
            config = load_config(CONFIGS / f"{name}.yaml", SMOKE if options.smoke else [])
            checkpoint = trained(config, options.data, run, seed)
            training[name].append(json.loads((run / "run.json").read_text()))
            results[name].append(scored(checkpoint, options.data, None))
        inference = {**checkpoint.config["inference"], "mode": "anchor"}
        anchor = dataclasses.replace(checkpoint, config={**checkpoint.config, "inference": inference})
        results[ANCHOR].append(scored(anchor, options.data, None))
    config = config_from_dict(checkpoint.config)
    annotations = load_split_annotations(options.data, config.data, checkpoint.classes)
    test = select_recordings(annotations, config.data, "test")
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in test}
    base, ours = ([e.detections for e in results[name]] for name in MODELS)
    content = {
        "seeds": seeds, "training": training, "segments": sum(len(r.segments) for r in test),
        "mAP": mAP_differences(truth, base, ours, checkpoint.classes, resamples),
        "error_ms": error_differences(truth, base, ours, checkpoint.classes, resamples),
        "results": {name: [e.to_dict() for e in evaluations] for name, evaluations in results.items()},
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    ludb_picture.draw(options.out / "ludb.png", content, MODELS, checkpoint.classes, TIOU)
    report.write(options.out, "ludb", content, markdown(content, checkpoint.classes))


if __name__ == "__main__":
    main()

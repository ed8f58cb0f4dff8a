"""HAPT, end to end: train TemporalZoomNet and ActionFormer on the same recordings, score the test subjects, write a table.

usage: python -m benchmarks.evidence.hapt --data hapt [--runs runs] [--seeds 0 1 2 3 4]

All models have width 128, 30 epochs, batch 2, the same split, scoring and grid of 10 steps a second. ActionFormer is there
twice: by its published recipe, and with the augmentation and weight averaging that TemporalZoomNet has. The data folder is
that of configs/hapt.yaml. Test subjects are not in training, and no setting was chosen on them. A finished run in
--runs is used again. Latency: features in to final detections out, per test recording, models interleaved, 2 threads.
Intervals: paired bootstrap over test recordings and seeds (benchmarks/lib/bootstrap.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from benchmarks.lib.bootstrap import RESAMPLES, paired_difference
from benchmarks.lib.provenance import CONFIGS, RESULTS, evidence_parser, facts, line, write
from benchmarks.lib.runs import (
    FINE,
    SMOKE,
    TUNED,
    dataset_of,
    ends_of,
    mean_of,
    scored,
    short_of,
    trained,
    truth_of,
    work_of,
)  # fmt: skip
from benchmarks.lib.tables import table
from benchmarks.lib.timing import interleaved
from tzn.config_loading import config_from_dict, load_config
from tzn.evaluation.detection_map import Score
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation
from tzn.inference.localize import localize
from tzn.models.checkpoint import LoadedCheckpoint

# Name of the runs: configuration, settings that replace its own.
MODELS: dict[str, tuple[str, list[str]]] = {
    "actionformer_hapt": ("actionformer_hapt", []),
    "actionformer_tuned": ("actionformer_hapt", TUNED),
    "hapt": ("hapt", []),
}
# Rows of the table: runs, depth budget (None: as trained), name.
ROWS = [
    ("actionformer_hapt", None, "ActionFormer, published recipe"),
    ("actionformer_tuned", None, "ActionFormer, augmented and averaged like ours"),
    ("hapt", None, "TemporalZoomNet, depth as trained"),
    ("hapt", 1.0, "TemporalZoomNet, every token at full depth"),
    ("hapt", 0.15, "TemporalZoomNet, dial at 0.15"),
]
BASE, OURS = ROWS[1][2], ROWS[2][2]  # what the intervals compare
SHOWN = ("mAP 0.3:0.7", "mAP 0.5:0.95", "@0.7", "@0.8", "@0.9")
ROUNDS = 3
# The original ActionFormer program at the same width and split, three seeds, measured on two CPU cores: percent.
ORIGINAL = {"average 0.3:0.7": (78.9, 74.3, 77.5), "mAP@0.7": (55.9, 44.3, 54.9), "mAP@0.8": (20.8, 12.6, 17.8)}


def main() -> None:
    options = evidence_parser(__doc__, RESULTS, seeds=(0,)).parse_args()
    torch.set_num_threads(2)
    seeds = [options.seed] if options.smoke else options.seeds
    training: dict[str, list[Any]] = defaultdict(list)
    results: dict[str, list[CheckpointEvaluation]] = defaultdict(list)
    for seed in seeds:
        checkpoints = {}
        for model, (config, settings) in MODELS.items():
            run = options.runs / f"{model}{'_smoke' if options.smoke else ''}_seed{seed}"
            small = SMOKE if options.smoke else []
            checkpoints[model] = trained(
                load_config(CONFIGS / f"{config}.yaml", [*settings, *small]), options.data, run, seed
            )
            training[model].append(json.loads((run / "run.json").read_text()))
        for model, budget, name in ROWS:
            results[name].append(scored(checkpoints[model], options.data, budget))
        if seed == seeds[0]:
            latency = interleaved_latency(checkpoints, options.data)
    content = {
        **facts(), "backend": os.environ.get("TZN_BACKEND", "auto"), "seeds": seeds, "training": training,
        "original_actionformer_three_seeds": ORIGINAL, "latency_seconds": latency,
        "differences": differences(results, options.data, checkpoints["hapt"], 20 if options.smoke else RESAMPLES),
        "results": {name: [e.to_dict() for e in evaluations] for name, evaluations in results.items()},
    }  # fmt: skip
    write(options.out, "hapt", content, markdown(content))


def interleaved_latency(checkpoints: dict[str, LoadedCheckpoint], data: Path) -> dict[str, float]:
    """Median seconds per test recording by row name: rounds of all rows on a recording, then the next recording."""
    configs = {model: config_from_dict(checkpoint.config) for model, checkpoint in checkpoints.items()}
    dataset = dataset_of(configs["hapt"], data, "test", checkpoints["hapt"].classes)
    medians: dict[str, list[float]] = defaultdict(list)
    for index in range(len(dataset)):
        example, runs = dataset[index], {}
        for model, budget, name in ROWS:
            inference = configs[model].inference
            inference = inference if budget is None else dataclasses.replace(inference, budget=budget)
            runs[name] = lambda e=example, m=checkpoints[model].model, i=inference: localize(
                m, e.features, e.grid, e.duration, i
            )
        for name, seconds in interleaved(runs, "cpu", (ROUNDS + 1, ROUNDS + 1), 0.0).items():
            medians[name].append(median(seconds[1:]))  # the first is a warm-up
    return {name: median(values) for name, values in medians.items()}


def differences(
    results: dict[str, list[CheckpointEvaluation]], data: Path, checkpoint: LoadedCheckpoint, resamples: int
) -> dict[str, list[float]]:
    """TemporalZoomNet minus tuned ActionFormer, in points: [difference, low, high] by metric."""
    short = config_from_dict(checkpoint.config).evaluation.short_classes

    def of_all(score: Score) -> float:
        return 100 * score.average_mAP

    def of_short(score: Score) -> float:
        return 100 * float(np.mean(score.ap[0, [i for i, name in enumerate(score.classes) if name in short]]))

    metrics = {"mAP@0.7": ((0.7,), of_all), "short @0.7": ((0.7,), of_short), "mAP 0.5:0.95": (FINE, of_all)}
    truth = truth_of(checkpoint, data)
    base, ours = ([e.detections for e in results[name]] for name in (BASE, OURS))
    return {
        name: paired_difference(truth, base, ours, checkpoint.classes, tiou, metric, resamples=resamples)
        for name, (tiou, metric) in metrics.items()
    }


def cells(evaluations: list[dict[str, Any]], seconds: float) -> list[str]:
    return [
        *(mean_of(evaluations, metric) for metric in SHOWN), short_of(evaluations), ends_of(evaluations),
        f"{fmean(e['mean_depth'] for e in evaluations):.2f}", work_of(evaluations), f"{1e3 * seconds:.0f} ms",
    ]  # fmt: skip


def markdown(content: dict[str, Any]) -> str:
    header = ["", *SHOWN, "short @0.7", "median error start / end", "mean depth", "GMAC", "latency"]
    rows = [[name, *cells(content["results"][name], content["latency_seconds"][name])] for _, _, name in ROWS]
    effort = "; ".join(
        f"{model} {fmean(r['cpu_seconds'] for r in runs) / 60:.1f}" for model, runs in content["training"].items()
    )
    original = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in ORIGINAL.items())
    return "\n".join([
        "# HAPT: real recordings, test subjects not seen in training", "",
        f"{line(content)} Back end {content['backend']}; {content['training']['hapt'][0]['epochs']} epochs each; CPU minutes "
        f"of training a seed: {effort}.", "", table(header, rows),
        f"Means over {len(content['seeds'])} seed(s). GMAC: multiply-adds (1e9) per recording, counted as run. Latency: "
        "features in, detections out, median over the test recordings, interleaved. Short: the six postural transitions. "
        "The TemporalZoomNet rows are the same weights at three depths.", "",
        *(
            f"* {name}: {OURS} minus {BASE} {value:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
            for name, (value, low, high) in content["differences"].items()
        ),
        "",
        f"The original ActionFormer program on the same split, three seeds: {original}. TemporalZoomNet's settings were chosen "
        "on five held-out training subjects (about ten trials); the tuned ActionFormer has the same augmentation and "
        "averaging and no trials of its own.", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()

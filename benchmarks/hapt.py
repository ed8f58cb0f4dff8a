"""HAPT, end to end: train TemporalZoomNet and ActionFormer on the same recordings, score the test subjects, write the table.

usage: python benchmarks/hapt.py --data hapt [--runs runs] [--seeds 0] [--out benchmarks/results]

Both models have width 128, 30 epochs, batch 2, the same split, scoring and grid of 10 steps a second. The data folder is
that of configs/hapt.yaml. Test subjects are not in training, and no setting was chosen on them. A finished run in
--runs is used again. Latency: features in to final detections out, per test recording, models interleaved, 2 threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tzn.config_loading import config_from_dict, load_config
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.files import atomic_write
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.inference.localize import localize
from tzn.models.checkpoint import LoadedCheckpoint, load_checkpoint, run_checkpoint
from tzn.training import train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MODELS = {"ActionFormer": "actionformer_hapt", "TemporalZoomNet": "hapt"}
# Rows of the table: model, and depth budgets of it that need no training of their own.
ROWS = [
    ("ActionFormer", None, "ActionFormer (our port)"),
    ("TemporalZoomNet", None, "TemporalZoomNet, depth as trained"),
    ("TemporalZoomNet", 1.0, "TemporalZoomNet, every token at full depth"),
    ("TemporalZoomNet", 0.34, "TemporalZoomNet, dial at 0.34"),
]
TIOU = [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
ROUNDS = 3
# The original ActionFormer program at the same width and split, three seeds, measured on two CPU cores: percent.
ORIGINAL = {"average 0.3:0.7": (78.9, 74.3, 77.5), "mAP@0.7": (55.9, 44.3, 54.9), "mAP@0.8": (20.8, 12.6, 17.8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(2)
    training: dict[str, list[Any]] = defaultdict(list)
    results: dict[str, list[Any]] = defaultdict(list)
    for seed in options.seeds:
        checkpoints = {}
        for model, config in MODELS.items():
            run = options.runs / f"{config}_seed{seed}"
            checkpoints[model] = trained(CONFIGS / f"{config}.yaml", options.data, run, seed)
            training[model].append(json.loads((run / "run.json").read_text()))
        for model, budget, name in ROWS:
            results[name].append(scored(checkpoints[model], options.data, budget))
        if seed == options.seeds[0]:
            latency = interleaved_latency(checkpoints, options.data)
    content = {
        "command": f"python benchmarks/hapt.py --data hapt --seeds {' '.join(map(str, options.seeds))}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 2 threads",
        "torch": torch.__version__, "backend": os.environ.get("TZN_BACKEND", "auto"), "seeds": options.seeds,
        "training": training, "original_actionformer_three_seeds": ORIGINAL, "latency_seconds": latency,
        "results": results,
    }  # fmt: skip
    with atomic_write(options.out / "hapt.json") as file:
        json.dump(content, file, indent=1)
    text = markdown(content)
    with atomic_write(options.out / "hapt.md") as file:
        file.write(text)
    print(text)


def trained(config: Path, data: Path, run: Path, seed: int) -> LoadedCheckpoint:
    if not (run / "run.json").is_file():
        resume = (run / "checkpoints" / "last.ckpt").is_file()
        train(
            load_config(config, [f"training.seed={seed}"]), data, run, resume=resume, accelerator="cpu", progress=False
        )
    return load_checkpoint(run_checkpoint(run))


def scored(checkpoint: LoadedCheckpoint, data: Path, budget: float | None) -> dict[str, Any]:
    config = config_from_dict(checkpoint.config)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, tiou=tuple(TIOU)))
    return evaluate_checkpoint(checkpoint, data, config=config, budget=budget, progress=False).to_dict()


def interleaved_latency(checkpoints: dict[str, LoadedCheckpoint], data: Path) -> dict[str, float]:
    """Median seconds per test recording by row name: rounds of all rows on a recording, then the next recording."""
    config = config_from_dict(next(iter(checkpoints.values())).config)
    annotations = load_split_annotations(data, config.data, next(iter(checkpoints.values())).classes)
    dataset = RecordingDataset(
        annotations, select_recordings(annotations, config.data, "test"), data / config.data.features, config.data,
        input_dim=config.model.feature_dim, training=False,
    )  # fmt: skip
    settings = {}
    for model, budget, name in ROWS:
        inference = config_from_dict(checkpoints[model].config).inference
        inference = inference if budget is None else dataclasses.replace(inference, budget=budget)
        settings[name] = (checkpoints[model].model, inference)
    medians: dict[str, list[float]] = defaultdict(list)
    for index in range(len(dataset)):
        example = dataset[index]
        times: dict[str, list[float]] = defaultdict(list)
        for round_ in range(ROUNDS + 1):
            for name, (network, inference) in settings.items():
                begin = time.perf_counter()
                localize(network, example.features, example.grid, example.duration, inference)
                if round_:  # the first is a warm-up
                    times[name].append(time.perf_counter() - begin)
        for name, seconds in times.items():
            medians[name].append(statistics.median(seconds))
    return {name: statistics.median(values) for name, values in medians.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def cells(evaluations: list[dict[str, Any]], seconds: float) -> list[str]:
    at = {tiou: _mean([100 * e["mAP"][i] for e in evaluations]) for i, tiou in enumerate(TIOU)}
    coarse = _mean([at[t] for t in (0.3, 0.4, 0.5, 0.6, 0.7)])
    fine = _mean([value for tiou, value in at.items() if tiou >= 0.5])
    short = _mean([100 * e["short_mAP"]["0.7"] for e in evaluations])
    error = [_mean([e["boundary_error"]["overall"][s]["median"] for e in evaluations]) for s in ("start", "end")]
    return [
        f"{coarse:.1f}", f"{fine:.1f}", f"{at[0.7]:.1f}", f"{at[0.8]:.1f}", f"{at[0.9]:.1f}", f"{short:.1f}",
        f"{error[0]:.2f} / {error[1]:.2f} s", f"{_mean([e['mean_depth'] for e in evaluations]):.2f}",
        f"{_mean([e['gmac_per_recording'] for e in evaluations]):.3f}", f"{1e3 * seconds:.0f} ms",
    ]  # fmt: skip


def markdown(content: dict[str, Any]) -> str:
    header = [
        "", "mAP 0.3:0.7", "mAP 0.5:0.95", "@0.7", "@0.8", "@0.9", "short @0.7", "median error start / end",
        "mean depth", "GMAC", "latency",
    ]  # fmt: skip
    rows = [[name, *cells(content["results"][name], content["latency_seconds"][name])] for _, _, name in ROWS]
    effort = "; ".join(
        f"{model} {_mean([r['cpu_seconds'] for r in runs]) / 60:.1f}" for model, runs in content["training"].items()
    )
    original = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in ORIGINAL.items())
    lines = [
        "# HAPT: real recordings, test subjects not seen in training",
        "",
        f"`{content['command']}`, {content['date']}, {content['machine']}, torch {content['torch']}, back end "
        f"{content['backend']}. {content['training']['ActionFormer'][0]['epochs']} epochs each; CPU minutes of training a "
        f"seed: {effort}.",
        "",
        *("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)),
        "",
        f"Means over {len(content['seeds'])} seed(s). GMAC: multiply-adds (1e9) per recording, counted as run. Latency: "
        "features in, detections out, median over the test recordings, interleaved. Short: the six postural transitions. "
        "Rows two to four are the same weights at three depths.",
        "",
        f"The original ActionFormer program on the same split, three seeds: {original}. ActionFormer has its published recipe; "
        "TemporalZoomNet's augmentation and loss weights were chosen on held-out training subjects, so tuning effort is "
        "not equal yet.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

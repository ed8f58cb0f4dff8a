"""Trained runs and their scores: what the programs of ``evidence/`` have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lib.bootstrap import RESAMPLES, paired_difference
from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, override_config
from tzn.data.annotations import Recording
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.data.stores import located
from tzn.evaluation.flat import GroundTruth
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation, evaluate_checkpoint
from tzn.models.checkpoint import LoadedCheckpoint, load_checkpoint, run_checkpoint
from tzn.training import train

TIOU = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
COARSE, FINE = (0.3, 0.4, 0.5, 0.6, 0.7), TIOU[2:]
METRICS: dict[str, Sequence[float]] = {"mAP 0.3:0.7": COARSE, "mAP 0.5:0.95": FINE} | {f"@{t:g}": (t,) for t in TIOU}
SMOKE = ["training.epochs=1", "training.warmup_epochs=0", "data.max_length=256"]
# Augmentation and averaging of the weights that TemporalZoomNet has on HAPT.
TUNED = ["data.noise=0.1", "data.gain=0.1", "data.stretch=0.15", "training.ema_decay=0.99"]
Results = Mapping[str, Sequence[CheckpointEvaluation]]  # by row, one per seed


def trained(config: ExperimentConfig, data: Path, run: Path, seed: int, *, progress: bool = False) -> LoadedCheckpoint:
    """The checkpoint of ``run``: used again where it is finished, gone on with where it was stopped, else trained."""
    if not (run / "run.json").is_file():
        resume = (run / "checkpoints" / "last.ckpt").is_file()
        config = override_config(config, [f"training.seed={seed}"])
        train(config, data, run, resume=resume, accelerator="cpu", progress=progress)
    return load_run(run)


def load_run(run: Path) -> LoadedCheckpoint:
    return load_checkpoint(run_checkpoint(run))


def with_inference(checkpoint: LoadedCheckpoint, **settings: Any) -> LoadedCheckpoint:
    """The same weights with other inference settings."""
    inference = {**checkpoint.config["inference"], **settings}
    return dataclasses.replace(checkpoint, config={**checkpoint.config, "inference": inference})


def scored(
    checkpoint: LoadedCheckpoint, data: Path, budget: float | None = None, *, traces: bool = False
) -> CheckpointEvaluation:
    """The test recordings at all of :data:`TIOU`; ``budget``: mean depth, None as trained."""
    config = config_from_dict(checkpoint.config)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, tiou=TIOU))
    return evaluate_checkpoint(checkpoint, data, config=config, budget=budget, keep_traces=traces, progress=False)


def recordings_of(checkpoint: LoadedCheckpoint, data: Path, split: str = "test") -> list[Recording]:
    config = config_from_dict(checkpoint.config).data
    return select_recordings(load_split_annotations(data, config, checkpoint.classes), config, split)


def dataset_of(
    config: ExperimentConfig, data: Path, split: str, classes: Sequence[str] | None = None, *, training: bool = False,
    most: int | None = None, seed: int = 0,
) -> RecordingDataset:  # fmt: skip
    """The split's recordings with features, at most ``most``; ``training``: cropped and augmented."""
    annotations = load_split_annotations(data, config.data, classes)
    chosen = select_recordings(annotations, config.data, split)[:most]
    return RecordingDataset(
        annotations, chosen, located(data, config.data.features), config.data, config.model.feature_dim, training=training,
        seed=seed,
    )  # fmt: skip


def truth_of(checkpoint: LoadedCheckpoint, data: Path) -> dict[str, GroundTruth]:
    return {r.id: GroundTruth(r.segments, r.labels) for r in recordings_of(checkpoint, data)}


def differences(
    results: Results, pairs: Mapping[str, tuple[str, str]], metrics: Sequence[str], checkpoint: LoadedCheckpoint,
    data: Path, *, smoke: bool = False,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """By pair (first row, second row) and by metric: [second minus first, low, high] in points of mAP."""
    truth = truth_of(checkpoint, data)
    found = {row: [e.detections for e in evaluations] for row, evaluations in results.items()}
    return {
        name: {
            m: paired_difference(truth, found[first], found[second], checkpoint.classes, METRICS[m],
                                 resamples=20 if smoke else RESAMPLES)
            for m in metrics
        }
        for name, (first, second) in pairs.items()
    }  # fmt: skip


def percent(evaluation: Mapping[str, Any], metric: str) -> float:
    """A metric of :data:`METRICS` of a stored evaluation."""
    at = dict(zip(TIOU, evaluation["mAP"], strict=True))
    return 100 * fmean(at[t] for t in METRICS[metric])


def mean_of(evaluations: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Mean of a metric over the seeds, for a table."""
    return f"{fmean(percent(e, metric) for e in evaluations):.1f}"


def short_of(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Mean mAP@0.7 of the short classes."""
    return f"{fmean(100 * e['short_mAP']['0.7'] for e in evaluations):.1f}"


def ends_of(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Median errors of start and end, mean over the seeds; "-" where a smoke run matches nothing."""
    errors = [e["boundary_error"]["overall"] for e in evaluations]
    if not all(e["matched"] for e in errors):
        return "-"
    return " / ".join(f"{fmean(e[side]['median'] for e in errors):.2f}" for side in ("start", "end")) + " s"


def work_of(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """1e9 multiply-adds per recording, mean over the seeds."""
    return f"{fmean(e['gmac_per_recording'] for e in evaluations):.3f}"

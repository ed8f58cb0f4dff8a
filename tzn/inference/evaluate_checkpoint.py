"""Evaluate a trained localizer: scores, boundary errors, depth and compute, at one or several depth budgets."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.data.stores import located
from tzn.detections import Detections
from tzn.errors import DataError
from tzn.evaluation.report import EvaluationReport, evaluate
from tzn.inference.calibrated import calibrated, calibration_of
from tzn.inference.external_scores import fuse_video_scores, load_video_scores
from tzn.inference.localize import candidates, suppress
from tzn.inference.traces import trace_arrays
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.profiling import count_multiply_adds
from tzn.readers.front_end import prepare_features


@dataclasses.dataclass(frozen=True)
class CheckpointEvaluation:
    """Result of one pass over a split at one depth budget."""

    report: EvaluationReport
    detections: dict[str, Detections]
    classes: tuple[str, ...]  # names in label order
    traces: dict[str, dict[str, Any]]
    mean_depth: float  # mean tau over all steps
    gmac: float  # mean multiply-adds per recording, in 1e9
    seconds: float  # median wall-clock time per recording, counting included

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.report.to_dict(),
            "mean_depth": self.mean_depth,
            "gmac_per_recording": self.gmac,
            "median_seconds_per_recording": self.seconds,
        }


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint,
    data: Path,
    *,
    split: str = "test",
    config: ExperimentConfig | None = None,
    budget: float | None = None,
    keep_traces: bool = False,
    video_scores: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> CheckpointEvaluation:
    """Run the localizer over a split of the data folder and score it.

    Args:
        split: "test", "validation" or "train".
        config: replaces the checkpoint's configuration (its model section is ignored).
        budget: mean depth to run at; None: the configuration's own.
        keep_traces: keep depth and distance curves of every recording.
        video_scores: file of a whole-video classifier, for models trained with ``data.single_class``: detections get its
            classes and are scored on the labels of the annotations.

    Raises:
        DataError: unusable data or scores, an empty split, ``video_scores`` for a model that classifies itself.
    """
    config = prepare_features(config or config_from_dict(checkpoint.config), data, device=device, progress=progress)
    inference = config.inference if budget is None else dataclasses.replace(config.inference, budget=budget)
    if video_scores is not None and not config.data.single_class:
        raise DataError(
            f"{video_scores}: video scores are for models of one class, but this one knows {checkpoint.classes}"
        )
    annotations = load_split_annotations(data, config.data, None if config.data.single_class else checkpoint.classes)
    recordings = select_recordings(annotations, config.data, split)
    if not recordings:
        raise DataError(f"{data}: no recordings in split {split!r}")
    dataset = RecordingDataset(
        annotations,
        recordings,
        located(data, config.data.features),
        config.data,
        input_dim=config.stored_dim,
        training=False,
    )
    model = checkpoint.model.to(device).eval()
    known_errors = None if video_scores is not None else calibration_of(checkpoint, inference)
    found, traces, depth, steps, work, times = {}, {}, 0.0, 0, 0, []
    for i in tqdm(range(len(dataset)), desc=f"eval {split}", unit="recording", disable=None if progress else True):
        example = dataset[i]
        begin = time.perf_counter()
        raw, count = count_multiply_adds(lambda e=example: candidates(model, e.features.to(device), inference))  # type: ignore[misc]
        found[example.id] = suppress(raw, example.grid, example.duration, inference)
        found[example.id] = calibrated(found[example.id], known_errors)
        times.append(time.perf_counter() - begin)
        work += count
        depth += float(raw.trace.depth.sum())
        steps += raw.trace.depth.numel()
        if keep_traces:
            traces[example.id] = trace_arrays(raw.trace, example.grid)
    classes = checkpoint.classes
    if video_scores is not None:
        classes = annotations.classes
        found = fuse_video_scores(found, load_video_scores(video_scores, classes))
        recordings = select_recordings(annotations, dataclasses.replace(config.data, single_class=False), split)
    report = evaluate(recordings, found, classes, config.evaluation, costs=True)
    return CheckpointEvaluation(
        report, found, classes, traces, depth / max(steps, 1), work / len(dataset) / 1e9, statistics.median(times)
    )

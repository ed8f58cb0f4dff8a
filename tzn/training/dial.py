"""The dial of a network with a boundary stream: the largest threshold that harms few new groups."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tzn.calibration import controlled
from tzn.config import ExperimentConfig, InferenceConfig
from tzn.data.annotations import Recording
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.data.groups import recording_groups
from tzn.data.stores import located
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError
from tzn.evaluation.boundary_error import SIDES
from tzn.evaluation.report import EvaluationReport, evaluate
from tzn.inference.localize import candidates, suppress
from tzn.models import Localizer, TemporalZoomNet
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.profiling import count_multiply_adds

# Thresholds that a dial is chosen from, grid steps; at the last one no block runs.
THRESHOLDS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 1000.0)
ALLOWED = 1.0  # points of mAP that a group may lose to a dial without being harmed

Judged = Sequence[tuple[LoadedCheckpoint, ExperimentConfig]]  # models, and what each has not seen


class Dial(NamedTuple):
    """A threshold that keeps a promise (:func:`tzn.calibration.controlled`).

    Attributes:
        threshold: chosen ``inference.threshold``, grid steps.
        risk: promised: at most this share of new groups loses more than ``allowed`` points of mAP against full depth, or (if
            it is not None) gains more than ``allowed_error`` seconds of boundary error.
        groups, harmed: how many with segments it was chosen on, and how many of them it (or a smaller threshold) harms.
        mAP, full_mAP: percent, mean over groups, at the threshold and at full depth.
        saved: share of the whole network's multiply-adds at full depth that it does without.
    """

    threshold: float
    risk: float
    allowed: float
    allowed_error: float | None
    groups: int
    harmed: int
    mAP: float
    full_mAP: float
    saved: float

    def text(self) -> str:
        """For a terminal."""
        worse = f"lose more than {self.allowed:g} points"
        if self.allowed_error is not None:
            worse += f" or {self.allowed_error:g} s of boundary error"
        return (
            f"threshold {self.threshold:g}: {100 * self.saved:.0f} % of the multiply-adds of full depth saved, mAP "
            f"{self.mAP:.1f} for {self.full_mAP:.1f}; {self.harmed} of {self.groups} groups "
            f"{worse}, a new one with a chance of at most {100 * self.risk:g} %"
        )


def choose_dial(
    judged: Judged,
    data: Path,
    group: str | None,
    risk: float,
    allowed: float = ALLOWED,
    allowed_error: float | None = None,
    device: str = "cpu",
) -> Dial:
    """The largest of :data:`THRESHOLDS` at which at most a share ``risk`` of new groups loses more than ``allowed`` points of
    mAP (mean over ``evaluation.tiou``) against all blocks on all steps, or finds its boundaries worse.

    Args:
        judged: models with a boundary stream, and configurations whose ``data.validation`` names what each has not seen.
        allowed_error: seconds by which a group's boundary error may grow: the mean of the median errors of starts and ends
            of right detections, infinite where there are none. None: boundaries are judged by mAP alone.

    Raises:
        ConfigError: a group is both held out and trained on. DataError: too few groups, or too many harmed at every threshold.
    """
    lost: list[np.ndarray] = []  # by group: points of mAP and seconds of boundary error, [2, K]
    maps, full_maps, work = np.zeros(len(THRESHOLDS)), 0.0, np.zeros(len(THRESHOLDS) + 1)
    for checkpoint, config in judged:
        dataset, names = unseen(checkpoint, config, data, group)
        members: dict[str, list[Recording]] = {}
        for recording in dataset.recordings:
            members.setdefault(names[recording.id], []).append(recording)
        members = {name: of for name, of in members.items() if any(len(r.segments) for r in of)}  # others have no mAP
        model, scores = checkpoint.model.to(device), []
        for k, threshold in enumerate((None, *THRESHOLDS)):  # the first at full depth
            inference = config.inference.replace(threshold=threshold)
            with _full_depth(model, threshold is None):
                found, count = _found(model, dataset, inference, device)
            work[k] += count
            reports = (evaluate(of, found, checkpoint.classes, config.evaluation) for of in members.values())
            scores.append([(100 * r.score.average_mAP, -boundary_error(r)) for r in reports])
        of_all = np.array(scores).reshape(len(scores), -1, 2)  # [1 + K, G, 2]
        full_maps += of_all[0, :, 0].sum()
        maps += of_all[1:, :, 0].sum(1)
        with np.errstate(invalid="ignore"):  # infinite at both: nothing is lost
            lost += list((of_all[0] - of_all[1:]).transpose(1, 2, 0))
    limits = np.array([allowed, math.inf if allowed_error is None else allowed_error])
    worse = (np.array(lost).reshape(-1, 2, len(THRESHOLDS)) > limits[:, None]).any(1)
    groups, harmed = len(lost), np.maximum.accumulate(worse, axis=1)
    try:
        chosen = controlled(harmed, risk)
    except ValueError as error:
        raise DataError(f"no threshold chosen: {error} (group, or folds, of held-out recordings)") from None
    if chosen is None:
        more = "" if allowed_error is None else f" or {allowed_error:g} s of boundary error"
        raise DataError(
            f"no threshold chosen: even {THRESHOLDS[0]:g} costs {harmed[:, 0].sum()} of {groups} groups more than {allowed:g} "
            f"points of mAP{more}; expected at most {math.floor(risk * (groups + 1) + 1e-9) - 1} for a risk of {risk:g}"
        )
    return Dial(
        THRESHOLDS[chosen], risk, allowed, allowed_error, groups, int(harmed[:, chosen].sum()), float(maps[chosen] / groups),
        full_maps / groups, float(1 - work[chosen + 1] / work[0]),
    )  # fmt: skip


def boundary_error(report: EvaluationReport) -> float:
    """Seconds: the mean of the median errors of starts and ends; infinite where nothing right was found."""
    overall = report.errors["overall"]
    return float(np.mean([overall[side]["median"] for side in SIDES])) if overall["matched"] else math.inf


def check_dial(model: Localizer, risk: float, allowed: float, allowed_error: float | None) -> None:
    if not isinstance(model, TemporalZoomNet) or model.boundary_stream is None:
        raise ConfigError(
            "--risk: this network has no boundary stream (model.zoom_layers) whose threshold could be chosen"
        )
    if not 0 < risk < 1:
        raise ConfigError(f"--risk {risk:g}: expected a share in (0, 1)")
    if not allowed >= 0:
        raise ConfigError(f"--allowed {allowed:g}: expected points of mAP >= 0")
    if allowed_error is not None and not allowed_error >= 0:
        raise ConfigError(f"--allowed-error {allowed_error:g}: expected seconds >= 0")


@contextlib.contextmanager
def _full_depth(model: Localizer, full: bool) -> Iterator[None]:
    stream = model.boundary_stream
    stream.full_depth = full  # type: ignore[union-attr]
    try:
        yield
    finally:
        stream.full_depth = False  # type: ignore[union-attr]


def _found(
    model: Localizer, dataset: RecordingDataset, inference: InferenceConfig, device: str
) -> tuple[dict[str, Detections], int]:
    """Detections by recording, and the multiply-adds that they cost."""
    found, work = {}, 0
    for i, recording in enumerate(dataset.recordings):
        example = dataset[i]
        raw, count = count_multiply_adds(lambda e=example: candidates(model, e.features.to(device), inference))  # type: ignore[misc]
        found[recording.id] = suppress(raw, example.grid, example.duration, inference)
        work += count
    return found, work


def unseen(
    checkpoint: LoadedCheckpoint, config: ExperimentConfig, data: Path, group: str | None, split: str = "validation"
) -> tuple[RecordingDataset, dict[str, str]]:
    """Recordings of a split, and the group of each.

    Raises:
        ConfigError: a group is both in the split and trained on. DataError: unusable data.
    """
    annotations = load_split_annotations(data, config.data, None if config.data.single_class else checkpoint.classes)
    chosen = select_recordings(annotations, config.data, split)
    names = recording_groups(data / config.data.annotations, [r.id for r in chosen], group)
    seen = {r.id for r in select_recordings(annotations, config.data, "train")}
    both = set(names.values()) & set(recording_groups(data / config.data.annotations, seen, group).values())
    if both:
        raise ConfigError(f"group {min(both)!r} is both held out and trained on; its errors would be too small")
    dataset = RecordingDataset(
        annotations, chosen, located(data, config.data.features), config.data, config.model.feature_dim, training=False
    )
    return dataset, names

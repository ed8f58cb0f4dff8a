"""Calibration of a trained run on people (places, devices, …) that the models it is measured with have not seen.

``tzn calibrate``: fold models of the run's own configuration, each without some of the groups, say what those groups'
boundaries look like to a stranger; :mod:`tzn.calibration` makes tables of it, and they are stored in the run's checkpoint.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tzn.calibration import (
    FEWEST,
    Calibration,
    fit_intervals,
    fit_probabilities,
    fit_scale,
    gaussian_factor,
    vote_inflation,
)
from tzn.config import ExperimentConfig, InferenceConfig
from tzn.config_loading import config_from_dict, config_to_dict
from tzn.data.annotations import Recording
from tzn.data.dataset import RecordingDataset, load_split_annotations
from tzn.data.groups import group_folds, recording_groups
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError
from tzn.evaluation.boundary_error import boundary_errors
from tzn.evaluation.detection_map import matched
from tzn.evaluation.flat import GroundTruth, flatten
from tzn.inference.localize import candidates, suppress
from tzn.models import Localizer
from tzn.models.checkpoint import LoadedCheckpoint, load_checkpoint, run_checkpoint
from tzn.models.checkpoint_file import read_checkpoint, write_checkpoint
from tzn.readers.front_end import prepare_features
from tzn.training.dial import ALLOWED, Dial, Judged, check_dial, choose_dial, unseen
from tzn.training.fit import train
from tzn.training.resolve import best_f1_threshold

RIGHT = 0.5  # tIoU of a detection that is right
MARK = 2.0  # factor by which a second decoding tells ends that a crossing moved from the others
SQRT2 = math.sqrt(2.0)


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """What a model says of recordings that it has not seen.

    Attributes:
        error: ``[M]`` seconds, |found - annotated| of starts and ends of right detections, the ``n`` best of a recording and
            class with ``n`` segments.
        std: ``[M]`` seconds, their standard errors as inference gives them. moved: ``[M]`` bool, a crossing moved the end.
        group: ``[M]`` text. labels: ``[M]`` class.
        scores: ``[N]`` of all detections. right: ``[N]`` bool.
        products, pairs: ``[2 W + 1]`` sums of products, and their number, of standardised distance errors 0 to 2 W steps
            apart.
        found: detections by recording.
        recordings: their ground truth.
    """

    error: np.ndarray
    std: np.ndarray
    moved: np.ndarray
    group: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    products: np.ndarray
    pairs: np.ndarray
    found: dict[str, Detections]
    recordings: list[Recording]


class Report(NamedTuple):
    """What ``tzn calibrate`` found.

    Attributes:
        calibration: as stored.
        covered: coverage promised -> share of the boundaries covered, each fold (group, with ``held_out``) judged by what
            the others taught: expected, guaranteed.
        uncalibrated: the same of the Gaussian intervals of the standard errors as they were.
        score_threshold: score of the best F1 on the held-out recordings; None: no detection is right.
        path: the checkpoint.
        dial: the threshold, where one was asked for.
    """

    calibration: Calibration
    covered: dict[float, tuple[float, float]]
    uncalibrated: dict[float, float]
    score_threshold: float | None
    path: Path
    dial: Dial | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, shares in [0, 1]; None where a share is not known."""
        shares = {str(k): [None if math.isnan(x) else x for x in pair] for k, pair in self.covered.items()}
        return {
            "checkpoint": str(self.path), "calibration": self.calibration.to_dict(), "covered": shares,
            "uncalibrated": {str(k): v for k, v in self.uncalibrated.items()}, "score_threshold": self.score_threshold,
            "dial": None if self.dial is None else self.dial._asdict(),
        }  # fmt: skip

    def text(self) -> str:
        """For a terminal."""
        c = self.calibration
        lines = [
            f"{c.intervals.boundaries} starts and ends of right detections in {c.intervals.groups} groups ({c.source})",
            f"standard errors times {c.std_scale[0]:.2f} where a crossing moved the end, {c.std_scale[1]:.2f} elsewhere",
        ]
        if c.lag_correlation:
            lags = " ".join(f"{x:.2f}" for x in c.lag_correlation[:4])
            lines.append(f"distance errors 1 to {min(len(c.lag_correlation), 4)} steps apart correlate by {lags}")
        lines.append("coverage of unseen groups   before   calibrated   guaranteed")
        for level, (expected, guaranteed) in self.covered.items():
            shares = (self.uncalibrated[level], expected, guaranteed)
            lines.append(f"{100 * level:10.0f} %            " + "   ".join(f"{100 * x:8.1f}" for x in shares))
        if self.dial is not None:
            lines.append(self.dial.text())
        return "\n".join([*lines, f"stored in {self.path}"])


def calibrate(
    run: Path,
    data: Path,
    *,
    folds: int = 5,
    group: str | None = None,
    fold_runs: Sequence[Path] = (),
    held_out: bool = False,
    risk: float | None = None,
    allowed: float = ALLOWED,
    allowed_error: float | None = None,
    out: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure a run's errors on groups it has not seen and store tables of them in its checkpoint.

    Args:
        run: folder of ``tzn train``, or a checkpoint.
        data: its data folder.
        folds: models to train, each without one part of the groups. Finished ones in ``out`` are taken as they are.
        group: regular expression for the group in a recording's id, see :func:`tzn.data.groups.recording_groups`.
        fold_runs: finished runs that held groups out (``data.validation``), in place of training folds.
        held_out: no fold models: the run's own validation recordings, which chose its best epoch, so that errors come out
            a little too small.
        risk: of a network with a boundary stream also choose ``inference.threshold``, see :func:`choose_dial`, before
            anything is measured; None: leave it. allowed: points of mAP that a group may lose.
        out: folder for the fold models; None: RUN/calibration.
        device: where models run. progress: bars. say: takes what a user should know, line by line.

    Raises:
        ConfigError: folds that do not fit the groups, fold runs of another model or with a group on both sides,
            ``held_out`` without validation recordings, ``risk`` for a network without a boundary stream or outside (0, 1),
            a negative ``allowed`` or ``allowed_error``, the latter without ``risk``. DataError: unusable data, too few right
            detections or groups, a risk that no threshold keeps.
        CheckpointError, TrainingError, StoppedError: as of training.
    """
    path = run_checkpoint(Path(run))
    checkpoint = load_checkpoint(path)
    config = prepare_features(uncalibrated(checkpoint), data, progress=progress)
    if held_out and fold_runs:
        raise ConfigError(
            "--held-out and --fold-run exclude each other: either the run's own recordings, or fold models"
        )
    if risk is not None:
        check_dial(checkpoint.model, risk, allowed, allowed_error)
    elif allowed_error is not None:
        raise ConfigError("--allowed-error: belongs to --risk, which is not given")
    judged: Judged
    if held_out:
        if not config.data.validation:
            raise ConfigError(
                "--held-out: the run held no recordings out (data.validation); leave it out to train folds"
            )
        judged, source = [(checkpoint, config)], "validation"
    else:
        runs = list(fold_runs) or _trained_folds(config, data, folds, group, out or _folder(run), device, progress, say)
        judged = [(load_checkpoint(last_checkpoint(one)), _same(config, one)) for one in runs]
        source = f"{len(runs)} folds"
    dial = None
    if risk is not None:
        dial = choose_dial(judged, data, group, risk, allowed, allowed_error, device)
        config = dataclasses.replace(config, inference=config.inference.replace(threshold=dial.threshold))
        judged = [(one, dataclasses.replace(its, inference=config.inference)) for one, its in judged]
    parts = [held_out_by(one, its, data, group, device) for one, its in judged]
    _check_disjoint(parts)
    whole = joined(parts)
    if held_out:
        parts = by_group(whole)
    calibration = fit(whole, config.inference, source)
    threshold = best_f1_threshold(whole.recordings, whole.found, len(checkpoint.classes))
    content = read_checkpoint(path)
    content["tzn"] |= {
        "calibration": calibration.to_dict(), "score_threshold": threshold, "score_threshold_split": source,
    }  # fmt: skip
    if dial is not None:
        content["tzn"]["config"]["inference"]["threshold"] = dial.threshold
    write_checkpoint(path, content)
    levels = (0.5, 0.8, 0.9, 0.95)
    covered = cross_coverage(parts, config.inference, levels)
    claimed = {level: _share(whole.error, whole.std, whole.group, gaussian_factor(level)) for level in levels}
    return Report(calibration, covered, claimed, threshold, path, dial)


def uncalibrated(checkpoint: LoadedCheckpoint) -> ExperimentConfig:
    """The checkpoint's configuration with standard errors as the network gives them."""
    config = config_from_dict(checkpoint.config)
    return dataclasses.replace(config, inference=config.inference.replace(std_scale=(1.0, 1.0)))


def held_out_by(
    checkpoint: LoadedCheckpoint, config: ExperimentConfig, data: Path, group: str | None, device: str = "cpu",
    split: str = "validation",
) -> HeldOut:  # fmt: skip
    """:class:`HeldOut` of the recordings that ``config.data.validation`` names (or of another ``split``).

    Raises:
        ConfigError: a group is both held out and trained on. DataError: unusable data; a model without standard errors.
    """
    dataset, names = unseen(checkpoint, config, data, group, split)
    return read_off(checkpoint.model.to(device), dataset, names, config.inference, len(checkpoint.classes), device)


def read_off(
    model: Localizer, dataset: RecordingDataset, groups: Mapping[str, str], inference: InferenceConfig, classes: int,
    device: str = "cpu",
) -> HeldOut:  # fmt: skip
    """Run a model over recordings and compare what it finds with their annotations; ``groups``: by recording id.

    Raises:
        DataError: the model knows no standard errors.
    """
    window = 2 * inference.vote_window + 1
    products, pairs = np.zeros(window), np.zeros(window)
    found: dict[str, Detections] = {}
    marks: dict[str, Detections] = {}
    truth: dict[str, GroundTruth] = {}
    marking = inference.replace(std_scale=(MARK, 1.0))
    for i, recording in enumerate(dataset.recordings):
        example = dataset[i]
        raw = candidates(model, example.features.to(device), inference)
        if raw.std is None:
            raise DataError("this model knows no standard errors of its segments; there is nothing to calibrate")
        # The same decoding again: an end that a crossing moved comes out with another standard error.
        again = candidates(model, example.features.to(device), marking)
        for kept, one in ((found, raw), (marks, again)):
            kept[recording.id] = suppress(one, example.grid, example.duration, inference)
        truth[recording.id] = GroundTruth(recording.segments, recording.labels)
        if raw.trace.distance is not None and raw.trace.scale is not None:
            p, n = lag_products(raw.trace.distance, raw.trace.scale, example.segments, inference.vote_window)
            products, pairs = products + p, pairs + n
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("error", "std", "moved", "group", "labels", "scores", "right")
    }
    for name in sorted(set(groups.values())):
        members = [r.id for r in dataset.recordings if groups[r.id] == name]
        of = {m: truth[m] for m in members}
        errors = boundary_errors(of, {m: found[m] for m in members}, classes, min_iou=RIGHT)
        marked = boundary_errors(of, {m: marks[m] for m in members}, classes, min_iou=RIGHT)
        columns["error"].append(np.abs(errors.error).ravel())
        columns["std"].append(errors.std.ravel())
        columns["moved"].append((marked.std > 0.5 * (1 + MARK) * errors.std).ravel())
        columns["group"].append(np.full(errors.error.size, name))
        columns["labels"].append(np.repeat(errors.labels, 2))
        scores, right = rightness(of, {m: found[m] for m in members}, classes)
        columns["scores"].append(scores)
        columns["right"].append(right)
    stacked = {name: np.concatenate(parts) for name, parts in columns.items()}
    return HeldOut(**stacked, products=products, pairs=pairs, found=found, recordings=list(dataset.recordings))


def rightness(
    truth: Mapping[str, GroundTruth], found: Mapping[str, Detections], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[N]`` of all detections and whether each is right at tIoU :data:`RIGHT`, matched as for mAP."""
    flat = flatten(truth, found, classes)
    right = matched(flat, [RIGHT])[1][0] >= 0
    # Detections of classes that these recordings do not have are not in the flat arrays, and are wrong.
    strangers = [d.scores[~np.isin(d.labels, flat.truth_labels)] for d in found.values()]
    others = np.concatenate(strangers) if strangers else np.zeros(0)
    return np.concatenate([flat.scores, others]), np.concatenate([right, np.zeros(len(others), bool)])


def lag_products(distance: Tensor, scale: Tensor, segments: Tensor, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums ``[2 W + 1]`` of products of standardised distance errors k = 0 … 2 W steps apart, and their number.

    Errors are those of the votes that :func:`tzn.ops.boundary_crossings` would count: within ``window`` W steps of an
    annotated boundary, nearer to no other, pointing within W of it.

    Args:
        distance, scale: ``[2, T]``, NaN where they were not computed; segments: ``[N, 2]`` in steps.
    """
    products, pairs = np.zeros(2 * window + 1), np.zeros(2 * window + 1)
    steps = distance.shape[1]
    for side in range(2):
        places = np.unique(segments[:, side].double().cpu().numpy())
        if not len(places):
            continue
        d, b = distance[side].double().cpu().numpy(), scale[side].double().cpu().numpy()
        at = np.round(places)[:, None].astype(np.int64) + np.arange(-window, window + 1)
        inside = (at >= 0) & (at < steps)
        at = at.clip(0, steps - 1)
        error = d[at] - (at - places[:, None])
        middle = 0.5 * (places[1:] + places[:-1])
        own = np.searchsorted(middle, at) == np.arange(len(places))[:, None]
        with np.errstate(invalid="ignore"):
            cast = inside & own & (np.abs(error) <= window) & (np.abs(at - places[:, None]) <= window)
        z = np.where(cast, error / (SQRT2 * b[at]), 0.0)
        for k in range(2 * window + 1):
            size = at.shape[1] - k
            products[k] += (z[:, :size] * z[:, k:]).sum()
            pairs[k] += (cast[:, :size] & cast[:, k:]).sum()
    return products, pairs


def fit(held: HeldOut, inference: InferenceConfig, source: str) -> Calibration:
    """Tables of what held-out groups say; ``inference``: the settings they were read off with.

    Raises:
        DataError: too few right detections, or all of one group.
    """
    known = np.isfinite(held.std) & (held.std > 0)
    error, std, moved, group = held.error[known], held.std[known], held.moved[known], held.group[known]
    count = len(np.unique(group))
    if len(error) < FEWEST or count < 2:
        raise DataError(
            f"{len(error)} starts and ends of right detections in {count} groups: expected at least {FEWEST} in at least 2; "
            "train longer, or hold more recordings out"
        )
    ratio = error / std
    every = fit_scale(ratio, group)
    scales = [fit_scale(ratio[part], group[part]) if part.sum() >= FEWEST else every for part in (moved, ~moved)]
    lags, inflation, distance_scale, correlation = (), 1.0, None, None
    if held.pairs[0] >= FEWEST and held.products[0] > 0:
        variance = held.products[0] / held.pairs[0]
        means = held.products[1:] / np.maximum(held.pairs[1:], 1)
        kept = int(np.argmin(held.pairs[1:] >= FEWEST)) if (held.pairs[1:] < FEWEST).any() else len(means)
        lags = tuple(np.clip(means[:kept] / variance, -1, 1).round(4).tolist())
    if lags and inference.estimator != "crossing":
        votes = 2 * inference.vote_window
        inflation = vote_inflation(lags, inference.vote_window)
        correlation = float(np.clip((inflation**2 - 1) / votes, 0, 1))
        # Inference multiplied with the inflation of its own setting; the lags explain that much, the scale the rest.
        distance_scale = scales[0] * math.sqrt(1 + votes * inference.vote_correlation) / max(inflation, 1e-6)
    elif lags:
        distance_scale = scales[0]
    corrected = ratio / np.where(moved, *scales)
    knots = fit_probabilities(held.scores, held.right)
    settings = _settings(inference)
    return Calibration(
        fit_intervals(corrected, group), (scales[0], scales[1]), distance_scale, lags, correlation, *knots, RIGHT,
        source, settings,
    )  # fmt: skip


def _settings(inference: InferenceConfig) -> dict[str, Any]:
    """Inference settings as plain data, without what a calibration itself sets."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(inference).items()}
    plain.pop("std_scale")
    return plain


def corrected_std(held: HeldOut, calibration: Calibration) -> np.ndarray:
    """``[M]`` standard errors of the boundaries as a calibrated checkpoint gives them."""
    return held.std * np.where(held.moved, *calibration.std_scale)


def cross_coverage(
    parts: Sequence[HeldOut], inference: InferenceConfig, levels: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """By level: shares of the boundaries inside (expected, guaranteed) intervals, each part judged by the others' tables;
    groups count alike. NaN where the others are too few.
    """
    rows = []
    for i, part in enumerate(parts):
        others = [p for k, p in enumerate(parts) if k != i]
        try:
            calibration = fit(joined(others), inference, "others")
        except (DataError, ValueError):
            return dict.fromkeys(levels, (math.nan, math.nan))
        rows.append((part, corrected_std(part, calibration), calibration.intervals))
    result = {}
    for level in levels:
        shares = []
        for guarantee in (False, True):
            inside = [(p.error <= t.factor(level, guarantee=guarantee) * std, p.group) for p, std, t in rows]
            shares.append(_group_mean(*(np.concatenate(x) for x in zip(*inside, strict=True))))
        result[level] = (shares[0], shares[1])
    return result


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """All parts as one.

    Raises:
        ValueError: no parts.
    """
    if not parts:
        raise ValueError("no parts to join")
    arrays = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("error", "std", "moved", "group", "labels", "scores", "right")
    }
    return HeldOut(
        **arrays, products=np.sum([p.products for p in parts], 0), pairs=np.sum([p.pairs for p in parts], 0),
        found={name: d for p in parts for name, d in p.found.items()},
        recordings=[r for p in parts for r in p.recordings],
    )  # fmt: skip


def by_group(held: HeldOut) -> list[HeldOut]:
    """A part for every group; only the boundaries are split, what is about scores and lags stays whole."""
    columns = ("error", "std", "moved", "group", "labels")
    return [
        dataclasses.replace(held, **{name: getattr(held, name)[held.group == group] for name in columns})
        for group in np.unique(held.group)
    ]


def last_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run's folder: the best one was chosen on the very recordings that are to be judged."""
    last = Path(run) / "checkpoints" / "last.ckpt"
    return last if last.is_file() else run_checkpoint(Path(run))


def _folder(run: Path) -> Path:
    return (run if run.is_dir() else run.parent) / "calibration"


def _trained_folds(
    config: ExperimentConfig, data: Path, folds: int, group: str | None, out: Path, device: str, progress: bool,
    say: Callable[[str], None],
) -> list[Path]:  # fmt: skip
    annotations = load_split_annotations(data, config.data)
    everyone = [r.id for r in annotations.subset(config.data.train_subset)]
    groups = recording_groups(data / config.data.annotations, everyone, group)
    parts = group_folds(groups, folds)
    say(f"{len(everyone)} training recordings of {len(set(groups.values()))} groups in {folds} folds: {out}")
    training = config.training.replace(validate_every=0)
    if training.teacher is not None:
        say("fold models learn without the run's teacher, which has seen every group")
        training = training.replace(teacher=None)
    runs = []
    for i, part in enumerate(parts):
        run = out / f"fold{i}"
        held = config.data.replace(validation=tuple(glob.escape(name) for name in part))
        wanted = dataclasses.replace(config, data=held, training=training)
        finished, last = (run / "run.json").is_file(), run / "checkpoints" / "last.ckpt"
        if not finished:
            say(f"fold {i + 1} of {folds}: without {len({groups[name] for name in part})} groups")
            train(wanted, data, run, resume=last.is_file(), accelerator=device, progress=progress)
        runs.append(run)
    return runs


def _same(config: ExperimentConfig, run: Path) -> ExperimentConfig:
    """The configuration of a fold run: that of the run but for what is held out.

    Raises:
        ConfigError: another model or other settings that matter to its errors.
    """
    fold = uncalibrated(load_checkpoint(last_checkpoint(run)))
    mine, theirs = config_to_dict(config), config_to_dict(fold)
    for section in ("model", "actionformer", "inference", "data"):
        for name, value in theirs.get(section, {}).items():
            wanted = mine.get(section, {}).get(name)
            if wanted != value and (section, name) not in DIFFERENT:
                raise ConfigError(f"{run}: {section}.{name} is {value}, but the run to calibrate has {wanted}")
    if not fold.data.validation:
        raise ConfigError(f"{run}: held no recordings out (data.validation), so it says nothing about new groups")
    return dataclasses.replace(config, data=fold.data)


# What a fold may have of its own; max_segments follows its recordings where nobody set it, a threshold is chosen later.
DIFFERENT = {("data", "validation"), ("data", "usual_fps"), ("inference", "max_segments"), ("inference", "threshold")}


def _check_disjoint(parts: Sequence[HeldOut]) -> None:
    seen: set[str] = set()
    for part in parts:
        again = seen & {r.id for r in part.recordings}
        if again:
            raise ConfigError(f"recording {min(again)!r} is held out by two fold runs; expected each once")
        seen |= {r.id for r in part.recordings}


def _share(error: np.ndarray, std: np.ndarray, group: np.ndarray, factor: float) -> float:
    return _group_mean(error <= factor * std, group)


def _group_mean(values: np.ndarray, group: np.ndarray) -> float:
    """Mean over the groups of their means."""
    member = np.unique(group, return_inverse=True)[1]
    return float((np.bincount(member, values) / np.bincount(member)).mean()) if len(values) else math.nan

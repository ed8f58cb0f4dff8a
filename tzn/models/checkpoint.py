"""Checkpoints of trained localizers: weights, configuration and class names, loadable with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tzn.calibration import Calibration
from tzn.config_loading import config_from_dict
from tzn.errors import CheckpointError, ConfigError
from tzn.models import Localizer, build_model
from tzn.models.checkpoint_file import read_checkpoint, write_checkpoint

FORMAT = 1
REQUIRED = {"format": int, "config": dict, "classes": list, "feature_mean": Tensor, "feature_std": Tensor}
LISTED = 3  # weights named in a message


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A localizer ready to run, on the CPU and in evaluation mode.

    Attributes:
        model: the network with its weights.
        classes: names in label order.
        config: the whole experiment as plain data, see :func:`tzn.config_loading.config_from_dict`.
        score_threshold: score that maximises F1 at tIoU 0.5 on the recordings ``score_threshold_split`` names; None:
            training has not measured it (or written by an earlier tzn).
        score_threshold_split: "validation", "training", or as :attr:`Calibration.source` says.
        calibration: what ``tzn calibrate`` measured; None: nothing. Its ``std_scale`` is part of ``config`` then.
    """

    model: Localizer
    classes: tuple[str, ...]
    config: dict[str, Any]
    score_threshold: float | None = None
    score_threshold_split: str | None = None
    calibration: Calibration | None = None


def checkpoint_header(model: Localizer, config: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint carries besides weights: plain data and the standardisation."""
    return {
        "format": FORMAT,
        "config": config,
        "classes": list(classes),
        "feature_mean": model.feature_mean.detach().cpu().clone(),
        "feature_std": model.feature_std.detach().cpu().clone(),
    }


def save_checkpoint(path: str | Path, model: Localizer, config: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Write weights, configuration and classes so that :func:`load_checkpoint` and every command read them."""
    weights = {f"model.{name}": tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    write_checkpoint(path, {"tzn": checkpoint_header(model, config, classes), "state_dict": weights})


def load_checkpoint(path: str | Path) -> LoadedCheckpoint:
    """Read a checkpoint written by ``tzn train`` (the averaged weights, where the run averaged them).

    Raises:
        CheckpointError: missing or damaged file, one that holds code, another kind of checkpoint, classes or weights that
            do not fit the configuration.
    """
    path = Path(path)
    if path.suffix in (".onnx", ".pt2"):
        raise CheckpointError(
            f"{path}: an exported program, which 'tzn predict' and tzn.load run; expected the checkpoint it was made from"
        )
    content = read_checkpoint(path)
    header = checked_header(content, path)
    weights = content["state_dict"]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: its state_dict is a {type(weights).__name__}, expected weights by name")
    weights = {str(k).removeprefix("model."): v for k, v in weights.items() if str(k).startswith("model.")}
    try:
        model = localizer(header["config"], header["classes"], weights)
        with torch.no_grad():
            model.feature_mean.copy_(header["feature_mean"])
            model.feature_std.copy_(header["feature_std"])
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        raise CheckpointError(f"{path}: standardisation does not fit: {' '.join(str(error).split())[:200]}") from None
    threshold, split = header.get("score_threshold"), header.get("score_threshold_split")
    if not isinstance(threshold, float):
        threshold = split = None
    try:
        config, calibration = with_calibration(header["config"], header.get("calibration"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return LoadedCheckpoint(model, tuple(header["classes"]), config, threshold, split, calibration)


def with_calibration(config: dict[str, Any], content: Any) -> tuple[dict[str, Any], Calibration | None]:
    """The configuration of a checkpoint with what its calibration corrects, and the calibration; ``content``: its plain data.

    Raises:
        CheckpointError: damaged content; without the name of the file.
    """
    if content is None:
        return config, None
    try:
        calibration = Calibration.from_dict(content)
    except ValueError as error:
        raise CheckpointError(f"damaged calibration: {error}") from None
    inference = {**config.get("inference", {}), "std_scale": list(calibration.std_scale)}
    return {**config, "inference": inference}, calibration


def checked_header(content: Any, path: Path) -> dict[str, Any]:
    """The header of what :func:`read_checkpoint` returned, with values of the right types."""
    header = content.get("tzn") if isinstance(content, dict) else None
    if not isinstance(header, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a tzn checkpoint (it has no configuration); expected one from 'tzn train'")
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise CheckpointError(f"{path}: header without {', '.join(missing)}: written by an unfinished version of tzn")
    for key, kind in REQUIRED.items():
        if not isinstance(header[key], kind):
            raise CheckpointError(
                f"{path}: damaged header: {key} is a {type(header[key]).__name__}, expected a {kind.__name__}"
            )
    if header["format"] > FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {header['format']} is newer than this tzn reads ({FORMAT})")
    return header


def localizer(config: dict[str, Any], classes: list[Any], weights: Mapping[str, Any]) -> Localizer:
    """The network of a configuration with these weights, on the CPU and in evaluation mode.

    Raises:
        ConfigError, CheckpointError: something does not fit; without the name of the file.
    """
    settings = config_from_dict(config).model
    if len(classes) != settings.num_classes or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(
            f"names {len(classes)} classes, expected the {settings.num_classes} texts of {settings.section}.num_classes"
        )
    try:
        # Shapes only: a hostile configuration takes no memory before its weights are seen to fit.
        with torch.device("meta"):
            expected = build_model(settings).state_dict()
    except RuntimeError as error:
        raise CheckpointError(f"configuration of an impossible network: {' '.join(str(error).split())[:200]}") from None
    problems = _misfits(weights, expected)
    if problems:
        raise CheckpointError(f"weights do not fit their configuration: {'; '.join(problems)}")
    model = build_model(settings)
    model.load_state_dict(weights)
    return model.eval()


def _misfits(weights: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    strange = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if isinstance(weights.get(name), Tensor) and weights[name].shape != tensor.shape
    ]
    found = {"no tensors": strange, "missing": missing, "unknown": unknown, "of another shape": misshapen}
    return [
        f"{len(names)} {what}: {', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''}"
        for what, names in found.items()
        if names
    ]


def run_checkpoint(path: Path) -> Path:
    """A checkpoint file as it is; for the folder of a run its checkpoint: best on validation, else last.

    Without validation recordings "best" means lowest training loss, which says little, so the last one stands.
    """
    if not path.is_dir():
        return path
    folder = path / "checkpoints"
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    if not last.is_file():
        raise CheckpointError(
            f"{path}: no checkpoints/last.ckpt in this folder; expected the folder of a 'tzn train' run"
        )
    if best.is_file():
        data = checked_header(read_checkpoint(best), best)["config"].get("data")
        if isinstance(data, dict) and data.get("validation"):
            return best
    return last

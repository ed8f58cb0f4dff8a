"""Checkpoints of trained localizers: weights, configuration and class names, loadable with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tzn.errors import CheckpointError
from tzn.files import atomic_write
from tzn.models import Localizer, build_model
from tzn.models.checkpoint_file import read_checkpoint
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A localizer ready to run, on the CPU and in evaluation mode."""

    model: Localizer
    classes: tuple[str, ...]
    config: dict[str, Any]  # the whole experiment as plain data, see tzn.config_loading.config_from_dict


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
    with atomic_write(path, "wb") as file:
        torch.save({"tzn": checkpoint_header(model, config, classes), "state_dict": weights}, file)


def load_checkpoint(path: str | Path) -> LoadedCheckpoint:
    """Read a checkpoint written by ``tzn train`` (the averaged weights, where the run averaged them).

    Raises:
        CheckpointError: missing or damaged file, another kind of checkpoint, weights that do not fit the configuration.
    """
    path = Path(path)
    content = read_checkpoint(path)
    header = content.get("tzn") if isinstance(content, dict) else None
    if not isinstance(header, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a tzn checkpoint (it has no configuration); expected one from 'tzn train'")
    missing = [key for key in ("format", "config", "classes", "feature_mean", "feature_std") if key not in header]
    if missing:
        raise CheckpointError(f"{path}: header without {', '.join(missing)}: written by an unfinished version of tzn")
    if header["format"] > FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {header['format']} is newer than this tzn reads ({FORMAT})")
    model = build_model(model_config(header["config"]))
    weights = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path}: weights do not fit their configuration: {text}") from None
    model.feature_mean.copy_(header["feature_mean"])
    model.feature_std.copy_(header["feature_std"])
    return LoadedCheckpoint(model.eval(), tuple(header["classes"]), header["config"])


def model_config(config: dict[str, Any]) -> TemporalZoomNetConfig | ActionFormerConfig:
    """The model's section of a configuration stored as plain data, lists back to tuples."""
    kind = ActionFormerConfig if "actionformer" in config else TemporalZoomNetConfig
    section = config["actionformer" if "actionformer" in config else "model"]
    return kind(**{name: _tuples(value) for name, value in section.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


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
        held_out = read_checkpoint(best).get("tzn", {}).get("config", {}).get("data", {}).get("validation")
        if held_out:
            return best
    return last

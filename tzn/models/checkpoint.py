"""Checkpoints of trained localizers: weights, configuration and class names, loadable with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from tzn.errors import CheckpointError
from tzn.models.config import TemporalZoomNetConfig
from tzn.models.temporal_zoom_net import TemporalZoomNet

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
    """A localizer ready to run, on the CPU and in evaluation mode."""

    model: TemporalZoomNet
    classes: tuple[str, ...]
    config: dict[str, Any]  # the whole experiment as plain data, see tzn.config_loading.config_from_dict


def checkpoint_header(config: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint carries besides weights: plain data only."""
    return {"format": FORMAT, "config": config, "classes": list(classes)}


def load_checkpoint(path: str | Path) -> LoadedCheckpoint:
    """Read a checkpoint written by ``tzn train`` (the averaged weights, where the run averaged them).

    Raises:
        CheckpointError: missing or damaged file, another kind of checkpoint, weights that do not fit the configuration.
    """
    path = Path(path)
    content = _read(path)
    header = content.get("tzn") if isinstance(content, dict) else None
    if not isinstance(header, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a tzn checkpoint (it has no configuration); expected one from 'tzn train'")
    if header["format"] > FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {header['format']} is newer than this tzn reads ({FORMAT})")
    shape = dict(header["config"]["model"])
    shape["regression_ranges"] = tuple(tuple(r) for r in shape["regression_ranges"])
    model = TemporalZoomNet(TemporalZoomNetConfig(**shape))
    weights = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit their configuration: {' '.join(str(error).split())}"
        ) from None
    return LoadedCheckpoint(model.eval(), tuple(header["classes"]), header["config"])


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; 'tzn train' writes checkpoints/best.ckpt and last.ckpt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from None


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
        held_out = _read(best).get("tzn", {}).get("config", {}).get("data", {}).get("validation")
        if held_out:
            return best
    return last

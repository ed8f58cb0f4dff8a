"""Models that come with the package: weights as safetensors, with everything needed to run them in the file's header."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save

from tzn.errors import CheckpointError, ConfigError
from tzn.files import atomic_write
from tzn.models.checkpoint import LoadedCheckpoint, localizer, with_calibration

FOLDER = Path(__file__).resolve().parent.parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class RawSignal:
    """The recording a pretrained model was made for, before it is cut into feature steps.

    Attributes:
        channels: names of the columns, in order, with their units.
        rate: samples a second.
        samples_per_step: consecutive samples that make one feature step, flattened sample by sample.
    """

    channels: tuple[str, ...]
    rate: float
    samples_per_step: int


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that comes with the package."""

    checkpoint: LoadedCheckpoint
    signal: RawSignal


def pretrained_names() -> list[str]:
    """What ``--pretrained`` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(name: str) -> Pretrained:
    """A model of this package by name; its card is ``tzn/pretrained/NAME.md``.

    Raises:
        CheckpointError: unknown name, or weights that do not fit.
    """
    if name not in pretrained_names():
        raise CheckpointError(f"pretrained model {name!r}: expected one of {', '.join(pretrained_names()) or 'none'}")
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["tzn"])
        weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dict)
    try:
        model = localizer(header["config"], header["classes"], weights)
        config, calibration = with_calibration(header["config"], header.get("calibration"))
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"pretrained model {name!r}: {error}") from None
    signal = RawSignal(**{**header["signal"], "channels": tuple(header["signal"]["channels"])})
    threshold = (header.get("score_threshold"), header.get("score_threshold_split"))
    return Pretrained(LoadedCheckpoint(model, tuple(header["classes"]), config, *threshold, calibration), signal)


def read_card(name: str) -> tuple[dict[str, Any], str]:
    """Facts and text of a model's card, ``tzn/pretrained/NAME.md``.

    The facts are the lines of YAML between two lines ``---`` at its top, as model cards have them elsewhere: ``license``,
    ``data``, ``input``, ``metrics`` (texts), ``seconds`` of CPU time to train.

    Raises:
        CheckpointError: unknown name, or a damaged card.
    """
    if name not in pretrained_names():
        raise CheckpointError(f"pretrained model {name!r}: expected one of {', '.join(pretrained_names()) or 'none'}")
    try:
        _, head, text = (FOLDER / f"{name}.md").read_text(encoding="utf-8").split("---\n", 2)
        facts = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"card of {name!r}: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"card of {name!r}: expected names and values at its top")
    return facts, text.strip() + "\n"


def describe_pretrained() -> dict[str, dict[str, Any]]:
    """By name what a user chooses by: the card's facts, ``classes`` (names, by commas), ``parameters``, ``size`` and whether
    ``calibrated``."""
    found = {}
    for name in pretrained_names():
        facts, _ = read_card(name)
        checkpoint = load_pretrained(name).checkpoint
        count = sum(p.numel() for p in checkpoint.model.parameters())
        size = f"{count / 1e6:.2f} million parameters, {(FOLDER / f'{name}.safetensors').stat().st_size / 1e6:.1f} MB"
        found[name] = {
            **facts, "classes": ", ".join(checkpoint.classes), "parameters": count, "size": size,
            "calibrated": checkpoint.calibration is not None,
        }  # fmt: skip
    return found


def save_pretrained(path: Path, checkpoint: LoadedCheckpoint, signal: RawSignal) -> None:
    """Write a checkpoint as a model that comes with the package (float16 weights; statistics stay float32)."""
    state = checkpoint.model.state_dict()
    weights = {
        name: tensor.contiguous() if name.startswith("feature_") else tensor.to(torch.float16).contiguous()
        for name, tensor in state.items()
    }
    header: dict[str, Any] = {
        "config": checkpoint.config, "classes": checkpoint.classes, "signal": dataclasses.asdict(signal),
        "score_threshold": checkpoint.score_threshold, "score_threshold_split": checkpoint.score_threshold_split,
        "calibration": None if checkpoint.calibration is None else checkpoint.calibration.to_dict(),
    }  # fmt: skip
    with atomic_write(path, "wb") as file:
        file.write(save(weights, metadata={"tzn": json.dumps(header)}))

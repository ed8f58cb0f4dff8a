"""Training that starts from the weights of a trained model: what fits is taken over, the rest begins anew.

The network has the sizes of the one it starts from; only the input and the classes are those of the new data. A class of
the same name keeps what was learned of it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict
from tzn.errors import CheckpointError, ConfigError
from tzn.models.any_source import load_model
from tzn.models.exported_file import is_exported

# Weights with a row a class: of a TemporalZoomNet, and of an ActionFormer.
CLASS_ROWS = (
    "class_head.output.weight", "class_head.output.bias", "cls_head.cls_head.conv.weight", "cls_head.cls_head.conv.bias",
)  # fmt: skip
STATISTICS = ("feature_mean", "feature_std")  # those of the new data
LEAST = 0.5  # share of the weights that must fit for it to be a start at all
LISTED = 4


class Started(NamedTuple):
    """What a network took over.

    Attributes:
        source: as named.
        share: of its weights, in [0, 1].
        anew: weights that begin anew, by name.
        classes: classes whose weights were taken over; new_classes: those that begin anew.
    """

    source: str
    share: float
    anew: tuple[str, ...]
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]

    def text(self) -> str:
        """One line for a user."""
        names = ", ".join(self.anew[:LISTED]) + (", …" if len(self.anew) > LISTED else "")
        parts = [f"{100 * self.share:.1f} % of the weights start from {self.source}"]
        parts += [f"{len(self.anew)} begin anew: {names}"] if self.anew else []
        if self.new_classes:
            known = f"{len(self.classes)} classes keep their weights, " if self.classes else ""
            listed = ", ".join(self.new_classes[:LISTED]) + (", …" if len(self.new_classes) > LISTED else "")
            parts.append(f"{known}{len(self.new_classes)} begin anew: {listed}")
        return "; ".join(parts)


def sized_like(config: ExperimentConfig, source: str) -> ExperimentConfig:
    """``config`` with the network of ``source`` in its place, for this data's input and classes; ``training.start`` names it.

    Args:
        source: a model that comes with tzn, the folder of a run, or a checkpoint.

    Raises:
        CheckpointError: there is no such thing. ConfigError: an ActionFormer whose input was projected in parts.
    """
    there = config_from_dict(_loaded(source).config).model
    width = config.model.feature_dim
    if there.feature_dim != width and not isinstance(there.input_dim, int):
        raise ConfigError(f"--from {source}: its input of {there.input_dim} channels cannot become one of {width}")
    same = there.feature_dim == width
    model = there.replace(num_classes=config.model.num_classes, **({} if same else {"input_dim": width}))
    return dataclasses.replace(config, model=model, training=config.training.replace(start=source))


@torch.no_grad()
def start_from(source: str, model: nn.Module, classes: tuple[str, ...]) -> Started:
    """Copy the weights of ``source`` that fit into ``model``.

    Args:
        classes: names in label order, of the new data.

    Raises:
        CheckpointError: there is no such source. ConfigError: less than half of the weights fit.
    """
    there = _loaded(source)
    weights, mine = there.model.state_dict(), model.state_dict()
    anew, taken, total = [], 0, 0
    row_of = {name: i for i, name in enumerate(there.classes)}
    known = [(i, row_of[name]) for i, name in enumerate(classes) if name in row_of]
    for name, value in mine.items():
        if name in STATISTICS:
            continue
        total += value.numel()
        old = weights.get(name)
        if name in CLASS_ROWS:
            if old is None or old.shape[1:] != value.shape[1:]:
                anew.append(name)
                continue
            for here, row in known:
                value[here] = old[row]
            taken += value.numel() * len(known) // max(len(classes), 1)
        elif old is not None and old.shape == value.shape:
            value.copy_(old)
            taken += value.numel()
        else:
            anew.append(name)
    share = taken / max(total, 1)
    if share < LEAST:
        raise ConfigError(
            f"training.start = {source}: only {100 * share:.0f} % of the weights fit this network (such as not "
            f"{', '.join(anew[:LISTED])}); 'tzn train --from' gives the network its sizes"
        )
    kept = tuple(classes[i] for i, _ in known)
    return Started(source, share, tuple(anew), kept, tuple(c for c in classes if c not in row_of))


def _loaded(source: str):  # type: ignore[no-untyped-def]
    try:
        if is_exported(source):
            raise CheckpointError("an exported model; expected a checkpoint, the folder of a run or a model of tzn")
        return load_model(source).checkpoint
    except CheckpointError as error:
        raise CheckpointError(f"--from {source}: {error}") from None

"""Tables of picks with fixed capacity, as suppression on a GPU writes them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Picks:
    """Picks of every row in their order; past ``count``: index -1, score -inf."""

    index: Tensor  # [R, C, K] int32, candidate of the recording
    score: Tensor  # [R, C, K] float32 when picked
    count: Tensor  # [R, C] int32


def best_picks(picks: Picks, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best ``limit`` picks of each recording over its classes by falling score, ties by class, then order of picking.

    Returns index (-1: none), score (-inf: none), class ``[R, K]`` and count ``[R]``, all on the device.
    """
    capacity = picks.index.shape[2]
    score, order = picks.score.flatten(1).sort(dim=1, descending=True, stable=True)
    score, order = score[:, :limit], order[:, :limit]
    index = picks.index.flatten(1).gather(1, order)
    count = picks.count.sum(1, dtype=torch.int64).clamp(max=limit)
    group = order // max(capacity, 1)
    return index, score, torch.where(index >= 0, group, -1), count

"""Definition of the selection of candidates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """Points and classes that may be an action, level by level by falling score."""

    point: Tensor  # [N] int64, index into the points
    label: Tensor  # [N] int64
    score: Tensor  # [N]


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    """Entries of ``scores`` ``[P, C]`` above ``min_score``, at most the best ``topk`` of each level (``level`` ``[P]``)."""
    points, labels = (scores > min_score).nonzero(as_tuple=True)
    values = scores[points, labels]
    order = values.argsort(descending=True, stable=True)
    order = order[level[points[order]].argsort(stable=True)]
    points, labels, values = points[order], labels[order], values[order]
    levels = level[points]
    first = torch.searchsorted(levels, levels)
    keep = torch.arange(levels.numel(), device=levels.device) - first < topk
    return Candidates(points[keep], labels[keep], values[keep])

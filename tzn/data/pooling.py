"""Several stored feature steps as one grid step, for features that are much finer than the actions are long."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.config import DataConfig


def pooled(stored: Tensor, config: DataConfig) -> Tensor:
    """Stored features ``[T, C]`` as grid steps: ``[T // pool, C]`` means, or ``[T // pool, pool * C]`` side by side.

    Rows of an incomplete last step are left out; a recording of less than one step is filled up with its last row.
    """
    size = config.pool
    if size == 1:
        return stored
    if stored.shape[0] < size:
        stored = torch.cat([stored, stored[-1:].expand(size - stored.shape[0], -1)])
    steps = stored.shape[0] // size
    parts = stored[: steps * size].reshape(steps, size, -1)
    return parts.mean(1) if config.pool_kind == "mean" else parts.flatten(1)

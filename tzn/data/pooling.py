"""From stored features to grid steps: large values tamed, several steps as one where they are finer than actions are long."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.config import DataConfig
from tzn.errors import DataError


def tamed(stored: Tensor, config: DataConfig) -> Tensor:
    """Stored features ``[T, C]`` with ``asinh(x / scale)`` in place of ``config.log_channels``.

    Raises:
        DataError: a channel that the features do not have.
    """
    if not config.log_channels:
        return stored
    if max(config.log_channels) >= stored.shape[1]:
        raise DataError(f"data.log_channels: {max(config.log_channels)}, expected channels below {stored.shape[1]}")
    made = stored.clone()
    channels = list(config.log_channels)
    made[:, channels] = torch.asinh(made[:, channels] / made.new_tensor(config.log_scales))
    return made


def pooled(stored: Tensor, config: DataConfig) -> Tensor:
    """Stored features ``[T, C]``, tamed, as grid steps: ``[T // pool, C]`` means, or ``[T // pool, pool * C]`` side by side.

    Rows of an incomplete last step are left out; a recording of less than one step is filled up with its last row.
    """
    size, stored = config.pool, tamed(stored, config)
    if size == 1:
        return stored
    if stored.shape[0] < size:
        stored = torch.cat([stored, stored[-1:].expand(size - stored.shape[0], -1)])
    steps = stored.shape[0] // size
    parts = stored[: steps * size].reshape(steps, size, -1)
    return parts.mean(1) if config.pool_kind == "mean" else parts.flatten(1)

"""How back ends compute ops: Triton device code with its launchers, and in ``cpu`` what puts compiled CPU kernels together.

A file has the name of its op. Imported only by implementations of ops; knows nothing of autograd or modules.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Dial(NamedTuple):
    """When a step of a boundary stream goes on, see :class:`tzn.nn.zoom.BoundaryStream`."""

    least: float  # of a scale
    settled: float  # logarithm of the threshold
    ramp: float
    reach: tuple[float, float]
    full: bool  # whether every step does


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels add up in, and in which they take biases, gates and norms."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def adjacent(x: Tensor) -> Tensor:
    """``x`` with adjacent elements in its last dimension, which is all that the kernels ask of strides."""
    if x.stride(-1) == 1 or x.shape[-1] <= 1:
        return x
    return x.clone(memory_format=torch.contiguous_format)  # contiguous() leaves an empty tensor's strides as they are

"""Definition of the depth gates (docs/design.md section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_gates(tau: Tensor, num_layers: int) -> Tensor:
    """g_l(tau) = clamp(L * tau - l, 0, 1) for l = 0 … L - 1, stacked in a new last dimension."""
    layer = torch.arange(num_layers, device=tau.device, dtype=tau.dtype)
    return (num_layers * tau.unsqueeze(-1) - layer).clamp(0, 1)

"""Definition of the depth gates and of which tokens a variable-depth layer touches (docs/design.md section 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ActiveTokens(NamedTuple):
    """Which rows of the flattened ``[B * T]`` token axis one layer works on, both in ascending order.

    ``active`` are the tokens that are updated; ``halo`` contains them and every valid token within
    ``window // 2`` steps of one, because those are the keys that the active tokens attend to.
    """

    active: Tensor  # [A] int64
    halo: Tensor  # [S] int64


def depth_gates(tau: Tensor, num_layers: int) -> Tensor:
    """g_l(tau) = clamp(L * tau - l, 0, 1) for l = 0 … L - 1, stacked in a new last dimension."""
    layer = torch.arange(num_layers, device=tau.device, dtype=tau.dtype)
    return (num_layers * tau.unsqueeze(-1) - layer).clamp(0, 1)


def active_tokens(gate: Tensor, window: int, mask: Tensor | None = None) -> ActiveTokens:
    """Tokens with a positive gate, and the halo of keys that they need."""
    active = gate > 0
    if mask is not None:
        active = active & mask
    window = min(window, 2 * gate.shape[1] + 1)  # a wider one reaches every step as well, and takes longer
    if window > 1 and active.numel():
        near = F.max_pool1d(active.float().unsqueeze(1), window, stride=1, padding=window // 2).squeeze(1) > 0
    else:
        near = active
    halo = near if mask is None else near & mask
    return ActiveTokens(active.flatten().nonzero().squeeze(1), halo.flatten().nonzero().squeeze(1))

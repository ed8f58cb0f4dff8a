"""Definition of the variable-depth transformer block (docs/design.md section 2), compacted: inactive tokens cost nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.reference.depth import ActiveTokens, active_tokens
from tzn.reference.local_attention import packed_local_attention

NORM_EPS = 1e-5


class BlockWeights(NamedTuple):
    """Parameters of one block: D channels, M hidden channels, H heads, window w. Linear weights are ``[out, in]``."""

    norm1_weight: Tensor  # [D]
    norm1_bias: Tensor  # [D]
    query_weight: Tensor  # [D, D]
    query_bias: Tensor  # [D]
    key_value_weight: Tensor  # [2 D, D], keys first
    key_value_bias: Tensor  # [2 D]
    position_bias: Tensor  # [H, w]
    output_weight: Tensor  # [D, D]
    output_bias: Tensor  # [D]
    norm2_weight: Tensor  # [D]
    norm2_bias: Tensor  # [D]
    up_weight: Tensor  # [M, D]
    up_bias: Tensor  # [M]
    down_weight: Tensor  # [D, M]
    down_bias: Tensor  # [D]


def variable_depth_block(
    x: Tensor,
    gate: Tensor | None,
    weights: BlockWeights,
    *,
    mask: Tensor | None = None,
    tokens: ActiveTokens | None = None,
) -> Tensor:
    """y = x + g * Attn(LN1 x), z = y + g * MLP(LN2 y) on the active rows of ``x`` ``[B, T, D]``; the others are copied.

    ``gate`` is ``[B, T]`` (None: 1 everywhere), ``tokens`` the rows of ``active_tokens(gate, window, mask)`` when known.
    """
    batch, steps, width = x.shape
    heads, window = weights.position_bias.shape
    if tokens is None:
        ones = torch.ones(batch, steps, device=x.device) if gate is None else gate
        tokens = active_tokens(ones, window, mask)
    active, halo = tokens
    rows = x.reshape(batch * steps, width)
    if active.numel() == 0:
        return x.clone()
    all_halo = halo.numel() == rows.shape[0]
    all_active = active.numel() == halo.numel()

    normed = F.layer_norm(
        rows if all_halo else rows[halo], (width,), weights.norm1_weight, weights.norm1_bias, NORM_EPS
    )
    slot = torch.arange(active.numel(), device=x.device) if all_active else torch.searchsorted(halo, active)
    query = F.linear(normed if all_active else normed[slot], weights.query_weight, weights.query_bias)
    key, value = F.linear(normed, weights.key_value_weight, weights.key_value_bias).chunk(2, dim=-1)
    # A gap of one radius between recordings keeps their windows apart on the flattened time axis.
    position = halo + (halo // max(steps, 1)) * (window // 2)
    split = (-1, heads, width // heads)
    attended = packed_local_attention(
        query.view(split), key.view(split), value.view(split), window,
        slot=slot, position=position, bias=weights.position_bias,
    )  # fmt: skip
    branch = F.linear(attended.reshape(-1, width), weights.output_weight, weights.output_bias)
    everything = all_halo and all_active
    current = rows if everything else rows[active]
    scale = None if gate is None else gate.reshape(-1, 1)[active].to(x.dtype)
    y = current + (branch if scale is None else scale * branch)
    hidden = F.layer_norm(y, (width,), weights.norm2_weight, weights.norm2_bias, NORM_EPS)
    hidden = F.gelu(F.linear(hidden, weights.up_weight, weights.up_bias))
    branch = F.linear(hidden, weights.down_weight, weights.down_bias)
    z = y + (branch if scale is None else scale * branch)
    return (z if everything else rows.index_copy(0, active, z)).view(batch, steps, width)

"""The variable-depth block on CPU: compacted rows, products by PyTorch's BLAS, attention by the compiled kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.ops.native_attention import packed_local_attention
from tzn.reference import BlockWeights
from tzn.reference.variable_depth_block import NORM_EPS


def variable_depth_block(x: Tensor, gate: Tensor | None, weights: BlockWeights, mask: Tensor | None) -> Tensor:
    """``[B, T, D]``; arguments as in :func:`tzn.ops.variable_depth_block`. Differentiable in x, gate and weights."""
    w = weights
    batch, steps, width = x.shape
    heads, window = w.position_bias.shape
    ones = torch.ones(batch, steps) if gate is None else gate.detach()
    active, halo = torch.ops.tzn_native.active_tokens(ones, window, mask)
    if active.numel() == 0:
        return x.clone()
    rows = x.reshape(batch * steps, width)
    everything = active.numel() == rows.shape[0]
    normed = F.layer_norm(
        rows if halo.numel() == rows.shape[0] else rows[halo], (width,), w.norm1_weight, w.norm1_bias, NORM_EPS
    )
    slot = torch.searchsorted(halo, active)
    query = F.linear(normed if active.numel() == halo.numel() else normed[slot], w.query_weight, w.query_bias)
    key, value = F.linear(normed, w.key_value_weight, w.key_value_bias).unflatten(-1, (2, heads, -1)).unbind(1)
    # A gap of one radius between recordings keeps their windows apart on the flattened time axis.
    position = halo + (halo // max(steps, 1)) * (window // 2)
    attended = packed_local_attention(
        query.unflatten(-1, (heads, -1)), key, value, window, slot, position, w.position_bias
    )
    scale = None if gate is None else gate.reshape(-1, 1)[active].to(x.dtype)
    current = rows if everything else rows[active]
    y = _added(current, F.linear(attended.flatten(1), w.output_weight, w.output_bias), scale)
    hidden = F.layer_norm(y, (width,), w.norm2_weight, w.norm2_bias, NORM_EPS)
    hidden = F.gelu(F.linear(hidden, w.up_weight, w.up_bias))
    z = _added(y, F.linear(hidden, w.down_weight, w.down_bias), scale)
    return (z if everything else rows.index_copy(0, active, z)).view(batch, steps, width)


def _added(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return x + branch if scale is None else torch.addcmul(x, branch, scale)

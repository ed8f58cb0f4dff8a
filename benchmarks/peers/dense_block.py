"""The ordinary pre-norm transformer block in plain PyTorch: every token, attention over overlapping chunks of keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.ops import BlockWeights

CHUNK = 64  # queries that share their keys


def dense_block(x: Tensor, w: BlockWeights) -> Tensor:
    """``x`` ``[B, T, D]`` to ``[B, T, D]``; T a multiple of 64."""
    batch, steps, width = x.shape
    heads, window = w.position_bias.shape
    radius = window // 2
    n = F.layer_norm(x, (width,), w.norm1_weight, w.norm1_bias)
    q = F.linear(n, w.query_weight, w.query_bias).view(batch, -1, CHUNK, heads, width // heads).transpose(2, 3)
    spans = []
    for part in F.linear(n, w.key_value_weight, w.key_value_bias).chunk(2, -1):
        spread = F.pad(part, (0, 0, radius, radius)).unfold(1, CHUNK + 2 * radius, CHUNK)
        spans.append(spread.unflatten(2, (heads, -1)).transpose(-1, -2))
    key = torch.arange(CHUNK + 2 * radius, device=x.device)
    offset = key[None] - torch.arange(CHUNK, device=x.device)[:, None]
    bias = w.position_bias[:, offset.clamp(0, 2 * radius)].masked_fill((offset < 0) | (offset > 2 * radius), -torch.inf)
    time = key[None] + CHUNK * torch.arange(steps // CHUNK, device=x.device)[:, None] - radius
    outside = ((time < 0) | (time >= steps))[:, None, None]
    bias = bias[None].expand(steps // CHUNK, -1, -1, -1).masked_fill(outside, -torch.inf).to(q.dtype)
    attended = F.scaled_dot_product_attention(q, *spans, attn_mask=bias).transpose(2, 3).reshape(batch, steps, width)
    y = x + F.linear(attended, w.output_weight, w.output_bias)
    n = F.layer_norm(y, (width,), w.norm2_weight, w.norm2_bias)
    return y + F.linear(F.gelu(F.linear(n, w.up_weight, w.up_bias)), w.down_weight, w.down_bias)

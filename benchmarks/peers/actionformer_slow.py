"""ActionFormer as its published program computes it: padded, channels first, chunked attention with masks.

Written anew from the description of the method (sliding chunks as in Longformer, Beltagy et al. 2020), for benchmarks only.
It computes with the parameters of a :class:`tzn.models.ActionFormer`, so both give the same outputs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.models import ActionFormer
from tzn.models.actionformer import ActionFormerOutputs

PADDED_KEY = -1e4  # what a padded key adds to a logit


class ActionFormerSlow(nn.Module):
    """The forward pass over a batch padded to the model's maximum length, or to its multiple beyond.

    Args:
        model: THUMOS-style: local attention without relative positions, identity neck, one input projection.
    """

    def __init__(self, model: ActionFormer) -> None:
        super().__init__()
        c = model.config
        if c.use_rel_pe or c.use_abs_pe or c.fpn_type != "identity" or c.backbone_type != "convTransformer":
            raise ValueError(f"model.config = {c}: expected local attention, no positions, identity neck")
        self.model = model

    def padded(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, C]`` and ``[B, T]`` to the length that the original pads to, batch by batch."""
        extra = self.model.config.original_length(features.shape[1]) - features.shape[1]
        return F.pad(features, (0, 0, 0, extra)), F.pad(mask, (0, extra))

    def forward(self, features: Tensor, mask: Tensor) -> ActionFormerOutputs:
        """Padded features and mask to outputs per level, laid out as those of :class:`tzn.models.ActionFormer`."""
        model = self.model
        x = torch.where(mask.unsqueeze(-1), (features - model.feature_mean) / model.feature_std, features)
        x, mask = x.transpose(1, 2), mask.unsqueeze(1)
        for conv, norm in zip(model.backbone.embd, model.backbone.embd_norm, strict=True):
            x = F.relu(channel_norm(norm, masked_conv(conv, x, mask)[0]))
        for block in model.backbone.stem:
            x, mask = transformer_block(block, x, mask)
        levels, masks = [x], [mask]
        for block in model.backbone.branch:
            x, mask = transformer_block(block, x, mask)
            levels.append(x)
            masks.append(mask)
        levels = [channel_norm(norm, level) for norm, level in zip(model.neck.fpn_norms, levels, strict=True)]
        logits = [head(model.cls_head, model.cls_head.cls_head, x, m) for x, m in zip(levels, masks, strict=True)]
        offsets = [
            F.relu(head(model.reg_head, model.reg_head.offset_head, x, m) * scale.scale)
            for x, m, scale in zip(levels, masks, model.reg_head.scale, strict=True)
        ]
        return ActionFormerOutputs(
            [x.transpose(1, 2) for x in logits], [x.transpose(1, 2) for x in offsets], [m.squeeze(1) for m in masks],
            [x.transpose(1, 2) for x in levels],
        )  # fmt: skip


def masked_conv(layer: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``Conv1d`` on ``[B, C, T]``, then the mask, resampled for a stride."""
    conv = layer.conv
    out = conv(x)
    if conv.stride[0] > 1:
        mask = F.interpolate(mask.to(x.dtype), size=out.shape[-1], mode="nearest").bool()
    return out * mask.to(out.dtype), mask


def channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm over the middle dimension, in elementary operations as in the original."""
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias


def transformer_block(block: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    branch, small = attention(block.attn, channel_norm(block.ln1, x), mask)
    keep = small.to(x.dtype)
    skip = x if block.stride == 1 else F.max_pool1d(x, block.stride + 1, block.stride, (block.stride + 1) // 2)
    x = skip * keep + scaled(block.drop_path_attn, branch)
    return x + scaled(block.drop_path_mlp, block.mlp(channel_norm(block.ln2, x)) * keep), small


def scaled(path: nn.Module, x: Tensor) -> Tensor:
    return x * path.scale if hasattr(path, "scale") else x


def attention(layer: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Windowed attention over overlapping chunks, masks added as logits."""
    parts = []
    for name in ("query", "key", "value"):
        hidden, small = masked_conv(getattr(layer, f"{name}_conv"), x, mask)
        parts.append(getattr(layer, name)(channel_norm(getattr(layer, f"{name}_norm"), hidden)))
    batch, channels, steps = parts[0].shape
    heads, reach = layer.heads, layer.window // 2
    query, key, value = (p.view(batch, heads, -1, steps).transpose(2, 3).flatten(0, 1) for p in parts)
    logits = banded_products(query / math.sqrt(channels // heads), key, reach)  # [B * H, T, 2 reach + 1]
    logits = logits.view(batch, heads, steps, -1)
    padded_key = torch.zeros_like(small, dtype=x.dtype).masked_fill(~small, PADDED_KEY).transpose(1, 2)
    logits = logits + banded_products(torch.ones_like(padded_key), padded_key, reach).unsqueeze(1)
    weights = logits.softmax(dim=-1).masked_fill(~small.unsqueeze(-1), 0.0)
    out = banded_sums(weights.flatten(0, 1), value, reach)
    out = out.view(batch, heads, steps, -1).transpose(2, 3).reshape(batch, channels, steps)
    return layer.dropout(layer.proj(out)) * small.to(x.dtype), small


def banded_products(query: Tensor, key: Tensor, reach: int) -> Tensor:
    """``[N, T, D]`` twice to the products within +-reach, ``[N, T, 2 reach + 1]``, -inf outside the recording.

    Chunks of 2 reach that overlap by half are multiplied whole; half of what that computes is thrown away.
    """
    rows, steps, _ = query.shape
    products = chunked(query, reach) @ chunked(key, reach).transpose(2, 3)  # [N, chunks, 2 reach, 2 reach]
    chunks, size = products.shape[1], 2 * reach
    # One more column per row shears the matrix: its diagonals become columns.
    sheared = F.pad(products, (0, 0, 0, 1)).reshape(rows, chunks, size, size + 1)
    band = query.new_full((rows, chunks + 1, reach, 2 * reach + 1), -torch.inf)
    band[:, :-1, :, reach:] = sheared[:, :, :reach, : reach + 1]
    band[:, -1, :, reach:] = sheared[:, -1, reach:, : reach + 1]
    band[:, 1:, :, :reach] = sheared[:, :, reach - 1 : -1, reach + 1 :]
    band[:, 0, 1:reach, 1:reach] = sheared[:, 0, : reach - 1, 1 - reach :]
    band = band.reshape(rows, steps, 2 * reach + 1)
    outside = torch.ones(reach, reach + 1, dtype=torch.bool, device=query.device).tril().flip(0)
    band[:, :reach, : reach + 1].masked_fill_(outside, -torch.inf)
    band[:, -reach:, -(reach + 1) :].masked_fill_(outside.flip(0, 1), -torch.inf)
    return band


def banded_sums(weights: Tensor, value: Tensor, reach: int) -> Tensor:
    """``[N, T, 2 reach + 1]`` times ``[N, T, D]``: sums over each window, ``[N, T, D]``."""
    rows, steps, band = weights.shape
    padded = F.pad(value, (0, 0, reach, reach))
    chunks = steps // reach
    windows = padded.as_strided(
        (rows, chunks, 3 * reach, value.shape[2]),
        (padded.stride(0), reach * padded.stride(1), padded.stride(1), padded.stride(2)),
    )
    # The inverse shear: row i of a chunk starts i columns further right, in a matrix of 3 reach columns.
    sheared = F.pad(weights.reshape(rows, chunks, reach, band), (0, reach))
    sheared = sheared.reshape(rows, chunks, -1)[:, :, :-reach].reshape(rows, chunks, reach, -1)[..., : 3 * reach]
    return (sheared @ windows).reshape(rows, steps, -1)


def chunked(x: Tensor, reach: int) -> Tensor:
    """Overlapping chunks ``[N, T / reach - 1, 2 reach, D]`` of ``[N, T, D]``, without a copy."""
    x = x.contiguous()
    rows, steps, width = x.shape
    return x.as_strided(
        (rows, steps // reach - 1, 2 * reach, width), (x.stride(0), reach * x.stride(1), x.stride(1), x.stride(2))
    )


def head(trunk: nn.Module, output: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    for conv, norm in zip(trunk.head, trunk.norm, strict=True):
        x = F.relu(channel_norm(norm, masked_conv(conv, x, mask)[0]))
    return masked_conv(output, x, mask)[0]

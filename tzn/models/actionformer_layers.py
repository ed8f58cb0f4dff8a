"""Layers of ActionFormer with its parameter names and shapes, computing on ``[B, T, C]``.

Parameters keep the layout of the released checkpoints (``Conv1d`` weights ``[out, in, k]``, norms ``[1, C, 1]``); the
arithmetic runs as matrix products over rows, which on CPU is faster than ``Conv1d`` for kernels of 1. Facts:
docs/actionformer.md sections 1 to 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn import ops


class MaskedConv1d(nn.Module):
    """Convolution of odd kernel with zero padding; the output is zero where the (strided) mask is False."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, in]``, ``[B, T]`` to ``[B, T / stride, out]`` and the strided mask."""
        conv, stride = self.conv, self.conv.stride[0]
        mask = mask[:, ::stride]
        if conv.groups == 1:
            out = dense_conv(x, conv.weight, conv.bias, stride)
        else:
            out = depthwise_conv(x, conv.weight, conv.bias, stride)
        return out * mask.unsqueeze(-1), mask


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``[B, T, in]`` * ``[out, in, k]`` with zero padding as one matrix product over stacked neighbours."""
    kernel = weight.shape[2]
    if kernel == 1:
        return F.linear(x[:, ::stride], weight.squeeze(-1), bias)
    stacked = torch.cat(_shifted(x, kernel, stride), dim=-1)
    return F.linear(stacked, weight.permute(0, 2, 1).flatten(1), bias)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``[B, T, C]`` * ``[C, 1, k]`` per channel with zero padding."""
    taps = weight[:, 0].unbind(-1)
    shifted = _shifted(x, len(taps), stride)
    out = shifted[0] * taps[0]
    for part, tap in zip(shifted[1:], taps[1:], strict=True):
        out = torch.addcmul(out, part, tap)
    return out if bias is None else out + bias


def _shifted(x: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """The input seen by each tap of the kernel."""
    steps = -(-x.shape[1] // stride)
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2 + stride - 1))
    return [padded[:, tap : tap + (steps - 1) * stride + 1 : stride] for tap in range(kernel)]


class ChannelNorm(nn.Module):
    """LayerNorm over channels, at every position, valid or not; parameters ``[1, C, 1]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.flatten(), self.bias.flatten(), 1e-5)


class AffineDropPath(nn.Module):
    """A learned scale per channel on a residual branch, and stochastic depth per recording in training."""

    def __init__(self, channels: int, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.scale = nn.Parameter(torch.full((1, channels, 1), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale.flatten()
        if not self.training:
            return x
        keep = 1 - self.probability
        kept = (keep + torch.rand(x.shape[0], 1, 1, device=x.device)).floor()
        return x / keep * kept


class Attention(nn.Module):
    """Local (window > 1) or global attention whose q, k and v start with a depthwise convolution."""

    def __init__(self, channels: int, heads: int, window: int, stride: int, dropout: float, relative: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        for name in ("query", "key", "value"):
            conv = MaskedConv1d(
                channels, channels, stride + 1 if stride > 1 else 3, stride=stride, groups=channels, bias=False
            )
            setattr(self, f"{name}_conv", conv)
            setattr(self, f"{name}_norm", ChannelNorm(channels))
            setattr(self, name, nn.Conv1d(channels, channels, 1))
        self.proj = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.rel_pe = nn.Parameter(torch.zeros(1, 1, heads, window)) if relative and window > 1 else None
        if self.rel_pe is not None:
            nn.init.trunc_normal_(self.rel_pe, std=math.sqrt(2 / channels))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, C]`` to ``[B, T / stride, C]``, zero where masked."""
        parts = []
        for name in ("query", "key", "value"):
            hidden, small = getattr(self, f"{name}_conv")(x, mask)
            hidden = getattr(self, f"{name}_norm")(hidden)
            projection = getattr(self, name)
            hidden = F.linear(hidden, projection.weight.squeeze(-1), projection.bias)
            parts.append(hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        query, key, value = parts
        if self.window > 1:
            span = 2 * (self.window // 2) + 1
            bias = None if self.rel_pe is None else self.rel_pe[0, 0]
            out = ops.local_attention(query, key, value, span, mask=small, bias=bias)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=small[:, None, None, :])
        out = out.transpose(1, 2).flatten(2)
        out = self.dropout(F.linear(out, self.proj.weight.squeeze(-1), self.proj.bias))
        return out * small.unsqueeze(-1), small


class TransformerBlock(nn.Module):
    """Pre-norm block; ``stride`` 2 halves the sequence, with max pooling on the residual path."""

    def __init__(
        self, channels: int, heads: int, window: int, *, stride: int = 1, dropout: float = 0.0, drop_path: float = 0.0,
        relative: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride = stride
        self.ln1, self.ln2 = ChannelNorm(channels), ChannelNorm(channels)
        self.attn = Attention(channels, heads, window, stride, dropout, relative)
        self.mlp = nn.Sequential(
            nn.Conv1d(channels, 4 * channels, 1), nn.GELU(), nn.Dropout(dropout),
            nn.Conv1d(4 * channels, channels, 1), nn.Dropout(dropout),
        )  # fmt: skip
        if drop_path > 0:
            self.drop_path_attn: nn.Module = AffineDropPath(channels, drop_path)
            self.drop_path_mlp: nn.Module = AffineDropPath(channels, drop_path)
        else:
            self.drop_path_attn = self.drop_path_mlp = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        branch, small = self.attn(self.ln1(x), mask)
        keep = small.unsqueeze(-1)
        x = self._pooled(x) * keep + self.drop_path_attn(branch)
        return x + self.drop_path_mlp(self._mlp(self.ln2(x)) * keep), small

    def _pooled(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.max_pool1d(x.transpose(1, 2), self.stride + 1, self.stride, (self.stride + 1) // 2).transpose(1, 2)

    def _mlp(self, x: Tensor) -> Tensor:
        up, act, drop, down, last = self.mlp
        assert isinstance(up, nn.Conv1d) and isinstance(down, nn.Conv1d)
        hidden = drop(act(F.linear(x, up.weight.squeeze(-1), up.bias)))
        return last(F.linear(hidden, down.weight.squeeze(-1), down.bias))


class ConvBlock(nn.Module):
    """Residual block of two convolutions (the "conv" backbone)."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = MaskedConv1d(channels, 2 * channels, 3, stride=stride)
        self.conv2 = MaskedConv1d(2 * channels, channels, 3)
        self.downsample = MaskedConv1d(channels, channels, 1, stride=stride) if stride > 1 else None

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden, small = self.conv1(x, mask)
        hidden, _ = self.conv2(F.relu(hidden), small)
        skip = x if self.downsample is None else self.downsample(x, mask)[0]
        return F.relu(skip + hidden), small


class Scale(nn.Module):
    """One learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

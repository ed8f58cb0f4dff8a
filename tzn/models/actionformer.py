"""ActionFormer (Zhang, Wu, Li, ECCV 2022), re-implemented on tzn's ops with the released checkpoints' names and shapes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.models.actionformer_layers import ChannelNorm, ConvBlock, MaskedConv1d, Scale, TransformerBlock
from tzn.models.config import ActionFormerConfig
from tzn.nn.pyramid import Points, flatten_levels, point_grid


class ActionFormerOutputs(NamedTuple):
    """Per pyramid level, fine to coarse."""

    class_logits: list[Tensor]  # [B, T_l, C], 0 where padded
    offsets: list[Tensor]  # [B, T_l, 2] >= 0, (left, right) in units of the level's stride
    masks: list[Tensor]  # [B, T_l] bool
    features: list[Tensor]  # [B, T_l, D] after the neck


class ActionFormer(nn.Module):
    """Backbone, neck and two heads shared over the pyramid levels.

    ``forward`` takes ``features`` ``[B, T, input_dim]`` and ``mask`` ``[B, T]``; T must be divisible by the coarsest
    stride. :meth:`padded` brings any batch there and keeps the original's results without its padding to a maximum length.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        self.config = config
        # Not in the state dict, whose keys are those of the released checkpoints; tzn's own carry them beside it.
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim), persistent=False)
        self.register_buffer("feature_std", torch.ones(config.feature_dim), persistent=False)
        self.backbone = Backbone(config)
        self.neck = IdentityNeck(config) if config.fpn_type == "identity" else TopDownNeck(config)
        self.cls_head = ClassHead(config)
        self.reg_head = OffsetHead(config)

    def forward(self, features: Tensor, mask: Tensor) -> ActionFormerOutputs:
        # What is padded stays as it is: zeros, and the original reads them as such.
        standard = torch.where(mask.unsqueeze(-1), (features - self.feature_mean) / self.feature_std, features)
        levels, masks = self.backbone(standard, mask)
        levels = self.neck(levels, masks)
        return ActionFormerOutputs(self.cls_head(levels, masks), self.reg_head(levels, masks), masks, levels)

    depth_predictor = None
    receptive_radius = None  # positions and global attention reach everywhere: a recording is read as a whole

    def depth_logits(self, features: Tensor, mask: Tensor) -> Tensor:
        raise ValueError("ActionFormer has no depth to budget: every token runs every layer")

    def points(
        self, features: Tensor, mask: Tensor, *, budget: float | None = None, depth_shift: Tensor | None = None
    ) -> Points:
        """What inference decodes. Every token has the depth 1: ``budget`` and ``depth_shift`` change nothing."""
        return self.points_of(self(*self.padded(features, mask)), mask)

    def points_of(self, outputs: ActionFormerOutputs, mask: Tensor) -> Points:
        """Points of outputs; ``mask`` ``[B, T]`` of the recordings before they were padded."""
        logits, valid = flatten_levels(outputs.class_logits, outputs.masks)
        offsets, _ = flatten_levels(outputs.offsets, outputs.masks)
        lengths = [level.shape[1] for level in outputs.masks]
        grid = point_grid(lengths, self.config.strides, self.config.regression_range, mask.device)
        offsets = offsets.float() * grid.stride.unsqueeze(-1)

        def at(rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            return offsets if rows is None else offsets.flatten(0, 1)[rows], None

        scores = logits.float().sigmoid() * valid.unsqueeze(-1)
        return Points(grid, valid, scores, torch.ones(mask.shape, device=mask.device), at, None)

    def padded(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-pad so that each level ends as it does in the original, which pads to ``max_seq_len`` or its multiple.

        Padding is not neutral in ActionFormer: a padded step holds the norms' biases, and the next convolution reads it.
        How much there is beyond what a kernel reads does not matter: every convolution zeroes what is padded, so nothing
        travels from one padded step to another. Nothing is padded where the original has no padding.
        """
        extra = padded_length(self.config, features.shape[1]) - features.shape[1]
        return F.pad(features, (0, 0, 0, extra)), F.pad(mask, (0, extra))


class Backbone(nn.Module):
    """Embedding, full-rate stem and halving branch."""

    pe: Tensor

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        self.config = c = config
        width = c.width
        inputs, widths = c.input_dims, c.embd_dims
        self.proj = (
            nn.ModuleList(MaskedConv1d(i, w, 1) for i, w in zip(inputs, widths, strict=True))
            if len(inputs) > 1
            else None
        )
        first = width if len(inputs) > 1 else inputs[0]
        layers, stem, branch = c.backbone_arch
        self.embd = nn.ModuleList(
            MaskedConv1d(first if i == 0 else width, width, c.embd_kernel_size, bias=not c.embd_with_ln)
            for i in range(layers)
        )
        self.embd_norm = nn.ModuleList(ChannelNorm(width) if c.embd_with_ln else nn.Identity() for _ in range(layers))
        windows = c.windows
        self.stem = nn.ModuleList(self._block(windows[0], 1) for _ in range(stem))
        self.branch = nn.ModuleList(self._block(windows[1 + i], c.scale_factor) for i in range(branch))
        if c.use_abs_pe:
            self.register_buffer("pe", sinusoids(c.max_seq_len, width) / math.sqrt(width), persistent=False)

    def _block(self, window: int, stride: int) -> nn.Module:
        c = self.config
        if c.backbone_type == "conv":
            return ConvBlock(c.width, stride=stride)
        return TransformerBlock(
            c.width, c.n_head, window, stride=stride, dropout=c.dropout, drop_path=c.droppath, relative=c.use_rel_pe
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if self.proj is not None:
            parts = x.split(list(self.config.input_dims), dim=-1)
            x = torch.cat([proj(part, mask)[0] for proj, part in zip(self.proj, parts, strict=True)], dim=-1)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))
        if self.config.use_abs_pe:
            x = x + self._positions(x.shape[1]) * mask.unsqueeze(-1)
        for block in self.stem:
            x, mask = block(x, mask)
        levels, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask)
            levels.append(x)
            masks.append(mask)
        return levels, masks

    def _positions(self, steps: int) -> Tensor:
        """Table of positions ``[1, T, D]``, stretched at inference for recordings longer than those of training."""
        c = self.config
        if self.training or steps < c.max_seq_len:
            if steps > c.max_seq_len:
                raise ValueError(f"features: {steps} steps, expected at most max_seq_len = {c.max_seq_len} in training")
            return self.pe[:, :steps]
        length = c.original_length(steps)
        table = F.interpolate(self.pe.transpose(1, 2), length, mode="linear", align_corners=False)
        return table.transpose(1, 2)[:, :steps]


class IdentityNeck(nn.Module):
    """A norm per level."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        norms = (ChannelNorm(config.fpn_dim) if config.fpn_with_ln else nn.Identity() for _ in config.strides)
        self.fpn_norms = nn.ModuleList(norms)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [norm(x) for norm, x in zip(self.fpn_norms, levels, strict=True)]


class TopDownNeck(nn.Module):
    """Feature pyramid network: lateral projections, nearest up-sampling, depthwise smoothing, norm."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        width, bias = config.fpn_dim, not config.fpn_with_ln
        self.scale = config.scale_factor
        count = len(config.strides)
        self.lateral_convs = nn.ModuleList(MaskedConv1d(config.width, width, 1, bias=bias) for _ in range(count))
        self.fpn_convs = nn.ModuleList(MaskedConv1d(width, width, 3, groups=width, bias=bias) for _ in range(count))
        self.fpn_norms = nn.ModuleList(
            ChannelNorm(width) if config.fpn_with_ln else nn.Identity() for _ in range(count)
        )

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        laterals = [conv(x, m)[0] for conv, x, m in zip(self.lateral_convs, levels, masks, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + laterals[i].repeat_interleave(self.scale, dim=1)
        smooth = [conv(x, m)[0] for conv, x, m in zip(self.fpn_convs, laterals, masks, strict=True)]
        return [norm(x) for norm, x in zip(self.fpn_norms, smooth, strict=True)]


class HeadTrunk(nn.Module):
    """Hidden layers of a head, shared by all levels."""

    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__()
        c = config
        widths = [c.fpn_dim] + [c.head_dim] * (c.head_num_layers - 1)
        self.head = nn.ModuleList(
            MaskedConv1d(widths[i], widths[i + 1], c.head_kernel_size, bias=not c.head_with_ln)
            for i in range(c.head_num_layers - 1)
        )
        self.norm = nn.ModuleList(ChannelNorm(w) if c.head_with_ln else nn.Identity() for w in widths[1:])

    def hidden(self, x: Tensor, mask: Tensor) -> Tensor:
        for conv, norm in zip(self.head, self.norm, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))
        return x


class ClassHead(HeadTrunk):
    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__(config)
        self.cls_head = MaskedConv1d(config.head_dim, config.num_classes, config.head_kernel_size)
        prior = torch.full((config.num_classes,), _prior_logit(config.cls_prior_prob))
        prior[list(config.head_empty_cls)] = _prior_logit(1e-6)
        self.cls_head.conv.bias = nn.Parameter(prior)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [self.cls_head(self.hidden(x, m), m)[0] for x, m in zip(levels, masks, strict=True)]


class OffsetHead(HeadTrunk):
    def __init__(self, config: ActionFormerConfig) -> None:
        super().__init__(config)
        self.scale = nn.ModuleList(Scale() for _ in config.strides)
        self.offset_head = MaskedConv1d(config.head_dim, 2, config.head_kernel_size)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        return [
            F.relu(scale(self.offset_head(self.hidden(x, m), m)[0]))
            for scale, x, m in zip(self.scale, levels, masks, strict=True)
        ]


def padded_length(config: ActionFormerConfig, steps: int) -> int:
    """Length that :meth:`ActionFormer.padded` brings ``steps`` steps to, a multiple of the coarsest stride."""
    coarsest = config.strides[-1]
    # What a kernel of k reads beyond the last valid step is k // 2; blocks and neck have kernels of 3 or scale + 1.
    read = max(config.head_kernel_size // 2, config.scale_factor // 2, 1)
    needed = max((-(-steps // stride) + read) * stride for stride in config.strides)
    if config.backbone_arch[0]:
        needed = max(needed, steps + config.embd_kernel_size // 2)
    return min(config.original_length(steps), -(-needed // coarsest) * coarsest)


def sinusoids(length: int, width: int) -> Tensor:
    """Sine and cosine table ``[1, T, D]``: channel j of position p has the angle p / 10000^(2 (j // 2) / D)."""
    channel = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


def _prior_logit(probability: float) -> float:
    return -math.log((1 - probability) / probability)

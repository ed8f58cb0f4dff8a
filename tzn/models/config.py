"""Typed configuration of the models: plain dataclasses, no logic beyond their own checks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class TemporalZoomNetConfig:
    """Shape of a :class:`tzn.models.TemporalZoomNet`.

    Lengths are in grid steps (one step = one feature vector) unless said otherwise.

    Attributes:
        input_dim: channels of the input features.
        num_classes: number of action classes.
        width: channels inside the network.
        num_heads: attention heads; must divide ``width``.
        window: odd attention window; a token attends to ``window // 2`` steps on either side.
        mlp_ratio: hidden width of the block MLPs over ``width``.
        embedding_layers: masked k = 3 convolutions after the per-step input projection.
        shallow_layers: full-depth blocks before the depth predictor (every token runs them).
        refinement_layers: L, the number of variable-depth blocks; 0 switches ATR off.
        first_stride: stride of the finest pyramid level that carries a class and offset head.
        num_levels: pyramid levels; level i has stride ``first_stride * 2**i``.
        pyramid_mlp_ratio: hidden width of the pyramid blocks over ``width``.
        regression_ranges: per level, the (low, high) range of ``max(left, right)`` offsets it answers for.
        head_layers: hidden layers of the class and offset heads.
        head_width: channels of the heads.
        boundary_fields: "start_end" (two fields), "region" (the paper's single field) or "none" (BDR off).
        boundary_layers: hidden layers of the boundary distance head.
        boundary_width: channels of the boundary distance head.
        boundary_radius: R, distances are clipped to +-R steps.
        dropout: dropout inside the block MLPs and on the embedded features.
        drop_path: stochastic depth per recording on the residual branches.
        prior_prob: initial class probability of the class head.
    """

    input_dim: int
    num_classes: int
    width: int = 512
    num_heads: int = 4
    window: int = 19
    mlp_ratio: float = 4.0
    embedding_layers: int = 1
    shallow_layers: int = 1
    refinement_layers: int = 3
    first_stride: int = 1
    num_levels: int = 6
    pyramid_mlp_ratio: float = 2.0
    regression_ranges: tuple[tuple[float, float], ...] = (
        (0, 4),
        (4, 8),
        (8, 16),
        (16, 32),
        (32, 64),
        (64, 10000),
    )
    head_layers: int = 2
    head_width: int = 256
    boundary_fields: str = "start_end"
    boundary_layers: int = 2
    boundary_width: int = 256
    boundary_radius: float = 8.0
    dropout: float = 0.0
    drop_path: float = 0.1
    prior_prob: float = 0.01

    def __post_init__(self) -> None:
        positive = ("input_dim", "num_classes", "width", "num_heads", "num_levels", "first_stride", "head_width")
        for name in positive:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"model.{name} = {value}: expected a positive integer")
        if self.width % self.num_heads:
            raise ValueError(f"model.width = {self.width} is not divisible by model.num_heads = {self.num_heads}")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"model.window = {self.window}: expected an odd positive number")
        if self.first_stride & (self.first_stride - 1):
            raise ValueError(f"model.first_stride = {self.first_stride}: expected a power of two")
        if len(self.regression_ranges) != self.num_levels:
            raise ValueError(
                f"model.regression_ranges has {len(self.regression_ranges)} entries, "
                f"expected one per level (model.num_levels = {self.num_levels})"
            )
        for low, high in self.regression_ranges:
            if not 0 <= low < high:
                raise ValueError(f"model.regression_ranges: ({low}, {high}) is not a range with 0 <= low < high")
        if self.boundary_fields not in ("start_end", "region", "none"):
            raise ValueError(
                f"model.boundary_fields = {self.boundary_fields!r}: expected 'start_end', 'region' or 'none'"
            )
        if self.boundary_radius <= 1:
            raise ValueError(f"model.boundary_radius = {self.boundary_radius}: expected more than 1 step")
        for name in ("dropout", "drop_path", "prior_prob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"model.{name} = {value}: expected a number in [0, 1)")

    @property
    def feature_dim(self) -> int:
        """Channels of the input features."""
        return self.input_dim

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of every pyramid level with heads, in grid steps."""
        return tuple(self.first_stride << level for level in range(self.num_levels))

    def replace(self, **changes: object) -> TemporalZoomNetConfig:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ActionFormerConfig:
    """Shape of an :class:`tzn.models.ActionFormer`, with the original's option names.

    Attributes:
        input_dim: channels of the features; several: split in this order and projected on their own.
        embd_dim: width of the backbone; several: widths of those projections, their sum is the width.
        backbone_arch: (embedding convolutions, full-rate blocks, halving blocks).
        n_mha_win_size: attention window for all levels, or one per level; below 2: global attention.
        max_seq_len: length that training pads to, and the table of positions has.
        fpn_type: "identity" or "fpn" (top-down).
        head_empty_cls: classes without training data; their initial probability is 1e-6.
        Others as in the original configuration files.
    """

    input_dim: int | tuple[int, ...]
    num_classes: int
    embd_dim: int | tuple[int, ...] = 512
    backbone_type: str = "convTransformer"
    backbone_arch: tuple[int, int, int] = (2, 2, 5)
    scale_factor: int = 2
    n_head: int = 4
    n_mha_win_size: int | tuple[int, ...] = 19
    max_seq_len: int = 2304
    embd_kernel_size: int = 3
    embd_with_ln: bool = True
    use_abs_pe: bool = False
    use_rel_pe: bool = False
    fpn_type: str = "identity"
    fpn_dim: int = 512
    fpn_with_ln: bool = True
    head_dim: int = 512
    head_num_layers: int = 3
    head_kernel_size: int = 3
    head_with_ln: bool = True
    regression_range: tuple[tuple[float, float], ...] = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000))
    cls_prior_prob: float = 0.01
    head_empty_cls: tuple[int, ...] = ()
    dropout: float = 0.0
    droppath: float = 0.1

    def __post_init__(self) -> None:
        levels = 1 + self.backbone_arch[2]
        if len(self.regression_range) != levels or len(self.windows) != levels:
            raise ValueError(
                f"model.regression_range has {len(self.regression_range)} and model.n_mha_win_size {len(self.windows)} "
                f"entries, expected one per level: {levels}"
            )
        if len(self.input_dims) != len(self.embd_dims):
            raise ValueError(f"model.input_dim = {self.input_dim} and model.embd_dim = {self.embd_dim}: numbers differ")
        if self.width % self.n_head:
            raise ValueError(f"model.embd_dim: width {self.width} is not divisible by model.n_head = {self.n_head}")
        if self.fpn_type not in ("identity", "fpn"):
            raise ValueError(f"model.fpn_type = {self.fpn_type!r}: expected 'identity' or 'fpn'")
        if self.fpn_type == "identity" and self.fpn_dim != self.width:
            raise ValueError(f"model.fpn_dim = {self.fpn_dim}: the identity neck keeps the width {self.width}")
        if self.backbone_type not in ("convTransformer", "conv"):
            raise ValueError(f"model.backbone_type = {self.backbone_type!r}: expected 'convTransformer' or 'conv'")

    @property
    def feature_dim(self) -> int:
        """Channels of the input features."""
        return sum(self.input_dims)

    @property
    def input_dims(self) -> tuple[int, ...]:
        return self.input_dim if isinstance(self.input_dim, tuple) else (self.input_dim,)

    @property
    def embd_dims(self) -> tuple[int, ...]:
        return self.embd_dim if isinstance(self.embd_dim, tuple) else (self.embd_dim,)

    @property
    def width(self) -> int:
        return sum(self.embd_dims)

    @property
    def windows(self) -> tuple[int, ...]:
        many = isinstance(self.n_mha_win_size, tuple)
        return self.n_mha_win_size if many else (self.n_mha_win_size,) * (1 + self.backbone_arch[2])  # type: ignore[return-value]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.scale_factor**level for level in range(1 + self.backbone_arch[2]))

    @property
    def max_div_factor(self) -> int:
        """What the original's padded lengths are multiples of: its chunked attention needs stride * 2 * (window // 2)."""
        factors = [s * 2 * (w // 2) if w > 1 else s for s, w in zip(self.strides, self.windows, strict=True)]
        return max(factors)

    def original_length(self, steps: int) -> int:
        """Length that the original pads a recording of ``steps`` steps to at inference."""
        if steps <= self.max_seq_len:
            return self.max_seq_len
        return -(-steps // self.max_div_factor) * self.max_div_factor

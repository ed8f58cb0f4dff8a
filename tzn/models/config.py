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
    def strides(self) -> tuple[int, ...]:
        """Stride of every pyramid level with heads, in grid steps."""
        return tuple(self.first_stride << level for level in range(self.num_levels))

    def replace(self, **changes: object) -> TemporalZoomNetConfig:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

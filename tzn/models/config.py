"""Typed configuration of the models: dataclasses, no logic beyond their own checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, Interval, Predicate

from tzn.checked import Checked, Count, CountOrZero, Positive, Range, ShareBelowOne

OddWindow = Annotated[int, Predicate(lambda w: w >= 1 and w % 2 == 1), "an odd integer >= 1"]
PowerOfTwo = Annotated[int, Predicate(lambda n: n >= 1 and not n & (n - 1)), "a power of two"]
Prior = Annotated[float, Interval(gt=0, lt=1), "a number in (0, 1)"]
Radius = Annotated[float, Gt(1), "a number of steps > 1"]


@dataclass(frozen=True)
class TemporalZoomNetConfig(Checked):
    """Shape of a :class:`tzn.models.TemporalZoomNet`.

    Lengths are in grid steps (one step = one feature vector) unless said otherwise.

    Attributes:
        input_dim: channels of the input features.
        num_classes: number of action classes.
        width: channels inside the network.
        num_heads: attention heads; must divide ``width``.
        window: odd attention window; a token attends to ``window // 2`` steps on either side.
        mlp_ratio: hidden width of the block MLPs over ``width``.
        embedding_stride: steps that the embedding puts side by side, so that all but the boundary stream runs at that
            stride or above; needs ``zoom_layers``.
        embedding_layers: masked k = 3 convolutions after the input projection.
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
        zoom_layers: blocks of the boundary stream, which refines boundary fields at full rate where that pays, in place of
            the boundary distance head, see :mod:`tzn.nn.zoom`; 0: the head.
        zoom_window: its attention window.
        zoom_threshold: Laplace scale in steps above which a boundary is not settled, so that its steps go on.
        front_end: what raw signals pass before the network: "conv" (strided convolutions), "spectrogram" (log-spectrogram
            beside the samples) or "none" (features as they are), see :mod:`tzn.nn.front_end`.
        front_end_samples: consecutive samples in the features of a step, flattened sample by sample; divides ``input_dim``.
        front_end_width: channels that the front end makes of a step.
        front_end_layers, front_end_kernel: of "conv": convolutions at the samples' rate before the strided ones, and their
            odd kernel.
        front_end_window: of "spectrogram": samples of its window.
        front_end_squeeze: steps on each side over which squeeze-excitation gates look; 0: no gates.
        dropout: dropout on the embedded features (blocks have none, so that a skipped token stays as it is).
        drop_path: stochastic depth per recording on the residual branches.
        prior_prob: initial class probability of the class head.
    """

    section: ClassVar[str] = "model"

    input_dim: Count
    num_classes: Count
    width: Count = 512
    num_heads: Count = 4
    window: OddWindow = 19
    mlp_ratio: Positive = 4.0
    embedding_stride: PowerOfTwo = 1
    embedding_layers: CountOrZero = 1
    shallow_layers: CountOrZero = 1
    refinement_layers: CountOrZero = 3
    first_stride: PowerOfTwo = 1
    num_levels: Count = 6
    pyramid_mlp_ratio: Positive = 2.0
    regression_ranges: tuple[Range, ...] = (
        (0, 4),
        (4, 8),
        (8, 16),
        (16, 32),
        (32, 64),
        (64, 10000),
    )
    head_layers: CountOrZero = 2
    head_width: Count = 256
    boundary_fields: Literal["start_end", "region", "none"] = "start_end"
    boundary_layers: CountOrZero = 2
    boundary_width: Count = 256
    boundary_radius: Radius = 8.0
    zoom_layers: CountOrZero = 0
    zoom_window: OddWindow = 19
    zoom_threshold: Positive = 1.0
    front_end: Literal["none", "conv", "spectrogram"] = "none"
    front_end_samples: Count = 1
    front_end_width: Count = 64
    front_end_layers: CountOrZero = 2
    front_end_kernel: OddWindow = 5
    front_end_window: Count = 32
    front_end_squeeze: CountOrZero = 0
    dropout: ShareBelowOne = 0.0
    drop_path: ShareBelowOne = 0.1
    prior_prob: Prior = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        samples = self.front_end_samples
        self.require(
            self.input_dim % samples == 0, "front_end_samples", f"a divisor of model.input_dim = {self.input_dim}"
        )
        self.require(
            self.front_end != "none" or (samples == 1 and self.front_end_squeeze == 0), "front_end",
            "'conv' or 'spectrogram' with model.front_end_samples or model.front_end_squeeze",
        )  # fmt: skip
        self.require(
            self.front_end != "conv" or self.front_end_layers + samples > 1, "front_end_layers",
            "at least 1 where a step is one sample",
        )  # fmt: skip
        self.require(
            self.front_end != "spectrogram"
            or (self.front_end_window >= samples and (self.front_end_window - samples) % 2 == 0),
            "front_end_window", f"model.front_end_samples = {samples} or more by an even number",
        )  # fmt: skip
        self.require(
            self.first_stride % self.embedding_stride == 0, "embedding_stride",
            f"at most model.first_stride = {self.first_stride}",
        )  # fmt: skip
        self.require(
            self.zoom_layers == 0 or self.boundary_fields != "none",
            "zoom_layers",
            "0 with model.boundary_fields = none",
        )
        self.require(
            self.zoom_layers == 0 or self.refinement_layers == 0, "zoom_layers",
            f"0 with model.refinement_layers = {self.refinement_layers}: depth goes to the one or to the other",
        )  # fmt: skip
        self.require(
            self.zoom_layers == 0 or self.boundary_width % self.num_heads == 0, "boundary_width",
            f"a number divisible by model.num_heads = {self.num_heads} with model.zoom_layers",
        )  # fmt: skip
        self.require(
            self.embedding_stride == 1 or (self.front_end == "none" and (self.zoom_layers > 0 or not self.num_fields)),
            "embedding_stride",
            "1 with a model.front_end, or without model.zoom_layers",
        )
        self.require(
            self.width % self.num_heads == 0, "width", f"a number divisible by model.num_heads = {self.num_heads}"
        )
        self.require(
            len(self.regression_ranges) == self.num_levels, "regression_ranges",
            f"one range per level (model.num_levels = {self.num_levels})",
        )  # fmt: skip

    @property
    def feature_dim(self) -> int:
        """Channels of the input features."""
        return self.input_dim

    @property
    def step_dim(self) -> int:
        """Channels of a step behind the front end."""
        return self.input_dim if self.front_end == "none" else self.front_end_width

    @property
    def num_fields(self) -> int:
        """Boundary fields: F."""
        return {"start_end": 2, "region": 1, "none": 0}[self.boundary_fields]

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of every pyramid level with heads, in grid steps."""
        return tuple(self.first_stride << level for level in range(self.num_levels))


@dataclass(frozen=True)
class ActionFormerConfig(Checked):
    """Shape of an :class:`tzn.models.ActionFormer`, with the original's option names.

    Attributes:
        input_dim: channels of the features; several: split in this order and projected on their own.
        num_classes: number of action classes.
        embd_dim: width of the backbone; several: widths of those projections, their sum is the width.
        backbone_type: blocks of the backbone: "convTransformer" (windowed attention) or "conv" (convolutions only).
        backbone_arch: (embedding convolutions, full-rate blocks, halving blocks).
        scale_factor: stride of a level over that of the level below.
        n_head: attention heads; must divide the width.
        n_mha_win_size: attention window for all levels, or one per level; below 2: global attention.
        max_seq_len: length that training pads to, and the table of positions has.
        embd_kernel_size: odd width of the embedding convolutions, in steps.
        embd_with_ln: layer normalisation after the embedding convolutions.
        use_abs_pe: sinusoidal positions are added to the embedded features.
        use_rel_pe: attention has a learned bias per head and offset.
        fpn_type: "identity" or "fpn" (top-down).
        fpn_dim: channels of the levels that the heads see.
        fpn_with_ln: layer normalisation of those levels.
        head_dim: channels of the class and offset heads.
        head_num_layers: layers of the heads, the output included.
        head_kernel_size: odd width of the heads' convolutions, in steps.
        head_with_ln: layer normalisation inside the heads.
        regression_range: per level, the (low, high) range of offsets, in grid steps, that it answers for.
        cls_prior_prob: initial class probability of the class head.
        head_empty_cls: classes without training data; their initial probability is 1e-6.
        dropout: dropout in the blocks' MLPs and on the output of attention.
        droppath: stochastic depth per recording on the residual branches.
    """

    section: ClassVar[str] = "actionformer"

    input_dim: Count | tuple[Count, ...]
    num_classes: Count
    embd_dim: Count | tuple[Count, ...] = 512
    backbone_type: Literal["convTransformer", "conv"] = "convTransformer"
    backbone_arch: tuple[CountOrZero, CountOrZero, CountOrZero] = (2, 2, 5)
    scale_factor: Count = 2
    n_head: Count = 4
    n_mha_win_size: int | tuple[int, ...] = 19
    max_seq_len: Count = 2304
    embd_kernel_size: OddWindow = 3
    embd_with_ln: bool = True
    use_abs_pe: bool = False
    use_rel_pe: bool = False
    fpn_type: Literal["identity", "fpn"] = "identity"
    fpn_dim: Count = 512
    fpn_with_ln: bool = True
    head_dim: Count = 512
    head_num_layers: Count = 3
    head_kernel_size: OddWindow = 3
    head_with_ln: bool = True
    regression_range: tuple[Range, ...] = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000))
    cls_prior_prob: Prior = 0.01
    head_empty_cls: tuple[int, ...] = ()
    dropout: ShareBelowOne = 0.0
    droppath: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = 1 + self.backbone_arch[2]
        self.require(len(self.regression_range) == levels, "regression_range", f"one range per level: {levels}")
        self.require(len(self.windows) == levels, "n_mha_win_size", f"a window, or one per level: {levels}")
        self.require(
            len(self.input_dims) == len(self.embd_dims), "embd_dim",
            f"as many widths as actionformer.input_dim = {self.input_dim}",
        )  # fmt: skip
        self.require(
            self.width % self.n_head == 0, "embd_dim", f"a width divisible by actionformer.n_head = {self.n_head}"
        )
        self.require(
            self.fpn_type != "identity" or self.fpn_dim == self.width, "fpn_dim",
            f"the width {self.width}, which the identity neck keeps",
        )  # fmt: skip

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

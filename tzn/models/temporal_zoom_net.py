"""TemporalZoomNet: embedding, shallow blocks, variable-depth blocks, pyramid, heads (docs/design.md section 5)."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn import ops
from tzn.models.config import TemporalZoomNetConfig
from tzn.nn import BoundaryDistanceHead, DepthPredictor, VariableDepthBlock, budget_shift, depth_from_logits
from tzn.nn.conv import Conv3, ConvTower, conv_layers
from tzn.nn.depth import STRETCH
from tzn.nn.front_end import FrontEnd
from tzn.nn.pyramid import LAPLACE_STD, PointGrid, Points, Pyramid, TopDown, double, point_grid
from tzn.nn.zoom import BoundaryStream, Exit, random_depths, training_shift
from tzn.ops._fused import fused

# Strides; keeps the likelihood bounded where offsets can be exact. Below what models learn: the smallest scale that the
# pretrained HAPT model gives at any point of four recordings is 0.054.
MIN_OFFSET_SCALE = 0.02
# Of all rows: from this share on a head that is asked for some computes all. Picking rows and their neighbours costs a
# convolution as much again as its product.
DENSE_SHARE = 0.75


class Depths(NamedTuple):
    tau: Tensor  # [B, T] in [0, 1]
    gates: Tensor  # [B, T, L]
    logits: Tensor | None = None  # [B, T] of tau before any shift, where it was predicted


class Trunk(NamedTuple):
    """Shared features that all heads read."""

    points: PointGrid
    point_features: Tensor  # [B, P, D]
    point_mask: Tensor  # [B, P]
    boundary_features: Tensor | None  # [B, T, W], None with boundary_fields="none"
    mask: Tensor  # [B, T]
    depths: Depths
    exits: tuple[Exit, ...] = ()  # of the boundary stream, where there is one


class Outputs(NamedTuple):
    """Everything the losses look at."""

    trunk: Trunk
    class_logits: Tensor  # [B, P, C]
    offsets: Tensor  # [B, P, 2] in strides
    offset_scale: Tensor  # [B, P, 2] Laplace scale of the offsets in strides
    distance: Tensor | None  # [B, F, T] in grid steps
    distance_scale: Tensor | None  # [B, F, T]


class TemporalZoomNet(nn.Module):
    """Temporal action localizer with a transformer depth per token and boundary distance regression.

    Inputs are raw features; standardisation (``feature_mean``, ``feature_std``) is part of the model and its checkpoint.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: TemporalZoomNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("feature_mean", torch.zeros(c.input_dim))
        self.register_buffer("feature_std", torch.ones(c.input_dim))
        self.front_end = None
        if c.front_end != "none":
            self.front_end = FrontEnd(
                c.front_end, c.front_end_samples, c.input_dim // c.front_end_samples, c.front_end_width,
                layers=c.front_end_layers, kernel=c.front_end_kernel, window=c.front_end_window,
                squeeze=c.front_end_squeeze,
            )  # fmt: skip
        self.embedding = Embedding(c)
        block = (c.width, c.num_heads, c.window, c.mlp_ratio, c.drop_path)
        self.shallow = nn.ModuleList(VariableDepthBlock(*block) for _ in range(c.shallow_layers))
        self.refinement = nn.ModuleList(VariableDepthBlock(*block) for _ in range(c.refinement_layers))
        self.depth_predictor = DepthPredictor(c.width) if c.refinement_layers else None
        levels = {"first_stride": c.first_stride // c.embedding_stride, "num_levels": c.num_levels}
        self.pyramid = Pyramid(
            c.width, c.num_heads, c.window, mlp_ratio=c.pyramid_mlp_ratio, drop_path=c.drop_path, **levels
        )
        self.training_depth: Literal["learned", "random"] = "learned"
        self.class_head = ConvTower(c.width, c.head_width, c.num_classes, c.head_layers)
        nn.init.constant_(self.class_head.output.bias, -math.log((1 - c.prior_prob) / c.prior_prob))
        self.offset_head = OffsetHead(c)
        self.top_down = self.boundary_head = self.boundary_stream = None
        if c.boundary_fields != "none":
            self.top_down = TopDown(c.width, c.boundary_width, **levels)
        if c.zoom_layers:
            self.boundary_stream = BoundaryStream(
                c.step_dim, c.boundary_width, c.num_fields, layers=c.zoom_layers, num_heads=c.num_heads,
                window=c.zoom_window, mlp_ratio=c.mlp_ratio, stem_layers=c.boundary_layers, radius=c.boundary_radius,
                threshold=c.zoom_threshold,
            )  # fmt: skip
        elif c.num_fields:
            self.boundary_head = BoundaryDistanceHead(
                c.boundary_width, c.num_fields, c.boundary_width, c.boundary_layers, c.boundary_radius
            )

    def forward(self, features: Tensor, mask: Tensor, tau: Tensor | None = None) -> Outputs:
        """Dense outputs for training. ``features`` ``[B, T, input_dim]``, ``mask`` ``[B, T]`` bool (True: valid); ``tau``
        as in :meth:`trunk`.
        """
        trunk = self.trunk(features, mask, tau=tau)
        class_logits = self.class_head(trunk.point_features, trunk.point_mask)
        offsets, offset_scale = self.offset_head(trunk)
        distance = scale = None
        if trunk.exits:
            distance, scale, _ = trunk.exits[-1]
        elif self.boundary_head is not None:
            distance, scale = self.boundary_head(trunk.boundary_features, mask)
        return Outputs(trunk, class_logits, offsets, offset_scale, distance, scale)

    def points(
        self, features: Tensor, mask: Tensor, *, budget: float | None = None, depth_shift: Tensor | None = None
    ) -> Points:
        """Class scores everywhere, the other heads where inference asks for them. Arguments as in :meth:`trunk`."""
        return self.points_of(self.trunk(features, mask, budget=budget, depth_shift=depth_shift, last_exit=True))

    def points_of(self, trunk: Trunk) -> Points:
        """The same of a trunk that has run."""
        head, mask = self.class_head, trunk.point_mask
        if (kernels := fused(trunk.point_features, head.output.weight)) is not None:
            hidden = head.hidden(trunk.point_features, mask)
            scores = kernels.class_scores(hidden, head.output.weight, head.output.bias, mask)
        else:
            scores = head(trunk.point_features, mask).float().sigmoid() * mask.unsqueeze(-1)
        return Points(
            trunk.points,
            mask,
            scores,
            trunk.depths.tau,
            partial(self._offsets, trunk),
            None if self.top_down is None else partial(self._boundary_fields, trunk),
        )

    def _offsets(self, trunk: Trunk, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        stride, head = trunk.points.stride, self.offset_head
        if rows is not None and rows.numel() >= DENSE_SHARE * trunk.point_mask.numel():
            every = self._offsets(trunk)
            return tuple(None if x is None else x.flatten(0, 1)[rows] for x in every)  # type: ignore[return-value]
        if rows is None and (kernels := fused(trunk.point_features, head.scale.weight)) is not None:
            hidden, output = head.tower.hidden(trunk.point_features, trunk.point_mask), head.tower.output
            return kernels.offsets(  # type: ignore[no-any-return]
                hidden, output.weight, output.bias, head.scale.weight, head.scale.bias, head.level_scale, trunk.points.level,
                stride, MIN_OFFSET_SCALE, LAPLACE_STD,
            )  # fmt: skip
        if rows is None:
            offset, scale = self.offset_head(trunk)
        else:
            offset, scale = self.offset_head.at(trunk, rows)
            stride = stride[rows % stride.shape[0]]
        return offset * stride.unsqueeze(-1), LAPLACE_STD * scale * stride.unsqueeze(-1)

    def _boundary_fields(self, trunk: Trunk, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        head, features, mask = self.boundary_head, trunk.boundary_features, trunk.mask
        if trunk.exits:  # the stream has run where it pays, whoever asks
            distance, scale, _ = trunk.exits[-1]
        elif rows is None or rows.numel() >= DENSE_SHARE * mask.numel():
            assert head is not None
            distance, scale = head(features, mask)
            if rows is not None:
                others = torch.ones_like(mask).flatten().index_fill_(0, rows, False).view_as(mask).unsqueeze(1)
                distance, scale = (x.masked_fill(others, float("nan")) for x in (distance, scale))
        else:
            assert head is not None and features is not None
            packed = torch.stack(head.at(features, mask, rows))
            fields = packed.new_full((2, mask.numel(), packed.shape[2]), float("nan"))
            fields[:, rows] = packed
            distance, scale = fields.unflatten(1, mask.shape).transpose(2, 3)
        if (
            distance.shape[1] == 1
        ):  # region field: negative inside, so starts are its falling and ends its rising crossings
            distance, scale = torch.cat([-distance, distance], dim=1), scale.expand(-1, 2, -1)
        return distance, scale

    def trunk(
        self, features: Tensor, mask: Tensor, *, budget: float | None = None, depth_shift: Tensor | None = None,
        tau: Tensor | None = None, last_exit: bool = False,
    ) -> Trunk:  # fmt: skip
        """Everything before the heads.

        Args:
            budget: mean depth of each recording to run at; None: as trained.
            depth_shift: ``[B, 1]``, added to the logits of tau; what the budget dial turns, for callers that see only a
                part of a recording (see :meth:`depth_logits`). Of a boundary stream: divides its threshold by exp of it.
            tau: ``[B, T]`` in [0, 1], depths given in place of the predictor's (the boundary stream's, where there is
                one); ``budget`` and ``depth_shift`` have no meaning then.
            last_exit: of a boundary stream's exits only the last is wanted.

        Raises:
            ValueError: ``budget`` for a model with a boundary stream.
        """
        stream = self.boundary_stream
        if stream is not None and budget is not None:
            raise ValueError(
                f"budget = {budget}: this model refines where refinement pays; its dial is inference.threshold"
            )
        layers = self.config.zoom_layers or self.config.refinement_layers
        if self.training and self.training_depth == "random" and layers:
            tau = random_depths(mask.shape[0], mask.shape[1], layers, mask.device)
        steps = self._steps(features, mask)
        coarse = self._coarse(mask)
        x = self._shallow_features(steps, coarse)
        # A boundary stream spends all depth behind the pyramid.
        depths = self._depths(x, coarse, budget, depth_shift, None if stream else tau)
        for layer, block in enumerate(self.refinement):
            x = block(x, coarse, depths.gates[..., layer])
        point_features, point_mask, levels, masks = self.pyramid.points(x, coarse)
        points = point_grid(
            [level.shape[1] for level in levels], self.config.strides, self.config.regression_ranges, x.device
        )
        boundary = None if self.top_down is None else self.top_down(x, coarse, levels, masks)
        if stream is None:
            return Trunk(points, point_features, point_mask, boundary, mask, depths)
        assert boundary is not None
        gates = None if tau is None else ops.depth_gates(tau, self.config.zoom_layers)
        if self.training and gates is None and depth_shift is None:
            depth_shift = training_shift(mask.shape[0], mask.device)
        zoomed = stream(
            steps, self._full_rate(boundary, mask), mask, gates=gates, shift=depth_shift, last_only=last_exit
        )
        depths = Depths(zoomed.gates.mean(-1), zoomed.gates)
        return Trunk(points, point_features, point_mask, boundary, mask, depths, zoomed.exits)

    def depth_logits(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of tau ``[B, T]`` from the shallow part alone, for solving the budget dial."""
        if self.depth_predictor is None:
            raise ValueError("model.refinement_layers = 0: this model has no depth to budget")
        return self.depth_predictor(self._shallow_features(self._steps(features, mask), self._coarse(mask)))

    def _steps(self, features: Tensor, mask: Tensor) -> Tensor:
        """What the network sees of every step, ``[B, T, step_dim]``, zero where padded."""
        if (kernels := fused(features, self.feature_mean)) is not None:
            x = kernels.standardise(features, self.feature_mean, self.feature_std, mask)
        else:
            x = (features - self.feature_mean) / self.feature_std * mask.unsqueeze(-1)
        return x if self.front_end is None else self.front_end(x, mask)

    def _coarse(self, mask: Tensor) -> Tensor:
        """``mask`` at the embedding's stride."""
        stride = self.config.embedding_stride
        return mask if stride == 1 else mask[:, ::stride].contiguous()

    def _full_rate(self, coarse: Tensor, mask: Tensor) -> Tensor:
        """Linear interpolation from the embedding's stride to every step."""
        for pool in reversed(range(self.config.embedding_stride.bit_length() - 1)):
            valid = mask[:, :: 1 << pool]
            coarse = double(coarse, valid.shape[1]) * valid.unsqueeze(-1)
        return coarse

    def _shallow_features(self, steps: Tensor, mask: Tensor) -> Tensor:
        """``steps`` of :meth:`_steps`; ``mask`` and result at the embedding's stride."""
        stride = self.config.embedding_stride
        if stride > 1:
            missing = mask.shape[1] * stride - steps.shape[1]
            steps = F.pad(steps, (0, 0, 0, missing)).unflatten(1, (-1, stride)).flatten(2)
        x = self.embedding(steps, mask)
        for block in self.shallow:
            x = block(x, mask)
        return x

    def _depths(
        self, x: Tensor, mask: Tensor, budget: float | None, shift: Tensor | None, tau: Tensor | None
    ) -> Depths:
        logits = None
        if tau is None and self.depth_predictor is None:
            tau = torch.ones(x.shape[:2], device=x.device)
        if tau is None:
            assert self.depth_predictor is not None
            kernels = fused(x, self.depth_predictor.logit.weight)
            if kernels is not None and self.refinement:
                raw = self.depth_predictor.raw(x)
                if budget is not None:
                    shift = budget_shift(raw.float(), mask, budget)
                logits, tau, gates = kernels.gates(raw, shift, len(self.refinement), STRETCH)
                return Depths(tau, gates, logits)
            logits = self.depth_predictor(x)
            if budget is not None:
                shift = budget_shift(logits, mask, budget)
            tau = depth_from_logits(logits if shift is None else logits + shift)
        if not self.refinement:
            return Depths(tau, tau.unsqueeze(-1)[..., :0], logits)
        return Depths(tau, ops.depth_gates(tau, self.config.refinement_layers), logits)

    @property
    def receptive_radius(self) -> int:
        """Steps on either side of an output that can change it; a multiple of the coarsest stride."""
        c = self.config
        half = c.window // 2
        first = c.embedding_stride
        reach = first - 1
        reach += first * (c.embedding_layers + (c.shallow_layers + c.refinement_layers) * half)
        coarsest = c.strides[-1]
        stride = first
        while stride < coarsest:  # pooling reaches one step of the finer level, then a block at the coarser one
            reach += stride
            stride *= 2
            reach += stride * half if stride >= c.first_stride else 0
        heads = (c.head_layers + 1) * coarsest
        boundary = 2 * coarsest + c.boundary_layers + 1  # interpolation down the levels, then the tower
        if self.boundary_stream is not None:
            boundary = 2 * coarsest + self.boundary_stream.receptive_radius
        reach += max(heads, boundary)
        reach += 0 if self.front_end is None else self.front_end.radius
        return -(-reach // coarsest) * coarsest


class Embedding(nn.Module):
    """Per-step projection, then ``embedding_layers`` x [Conv3, LayerNorm, ReLU, mask].

    The wide input meets a matrix product per step instead of ActionFormer's k = 3 convolution: a third of its cost.
    """

    def __init__(self, config: TemporalZoomNetConfig) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Linear(config.step_dim * config.embedding_stride, width)
        self.norm = nn.LayerNorm(width)
        self.convs = nn.ModuleList(Conv3(width, width, bias=False) for _ in range(config.embedding_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.embedding_layers))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, norm = self.project(x), self.norm
        if (kernels := fused(x, norm.weight)) is not None:
            x = kernels.norm_rows(x, norm.weight, norm.bias, mask, norm.eps, relu=True)
        else:
            x = F.relu(norm(x)) * mask.unsqueeze(-1)
        return self.dropout(conv_layers(x, mask, self.convs, self.norms))


class OffsetHead(nn.Module):
    """Distances from a point to the segment's ends, in strides, and how uncertain they are."""

    def __init__(self, config: TemporalZoomNetConfig) -> None:
        super().__init__()
        self.tower = ConvTower(config.width, config.head_width, 2, config.head_layers)
        self.scale = Conv3(config.head_width if config.head_layers else config.width, 2)
        self.level_scale = nn.Parameter(torch.ones(config.num_levels))

    def forward(self, trunk: Trunk) -> tuple[Tensor, Tensor]:
        """Offsets and their Laplace scales at every point: ``[B, P, 2]`` each, in strides."""
        hidden = self.tower.hidden(trunk.point_features, trunk.point_mask)
        # The uncertainty only observes: its gradient must not bend the features that the offsets live on.
        return self._decode(self.tower.output(hidden), self.scale(hidden.detach()), trunk.points.level)

    def at(self, trunk: Trunk, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same ``[N, 2]`` at flattened ``[B * P]`` points only."""
        hidden, neighbours = self.tower.hidden_neighbours(trunk.point_features, trunk.point_mask, rows)
        level = trunk.points.level[rows % trunk.point_mask.shape[1]]
        return self._decode(self.tower.output.at(hidden, neighbours), self.scale.at(hidden, neighbours), level)

    def _decode(self, raw: Tensor, spread: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        offsets = F.softplus(raw.float() * self.level_scale[level].unsqueeze(-1))
        return offsets, F.softplus(spread.float()) + MIN_OFFSET_SCALE

"""From scored points to segments: what inference step by step (``localize``) and with fixed capacity (``fixed``) share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.errors import ConfigError
from tzn.models import Localizer, TemporalZoomNetConfig
from tzn.nn.pyramid import LAPLACE_STD, Points
from tzn.ops import Crossings

LIMIT_STEPS = 16384  # pre_nms_topk and max_segments hold for every started stretch of this length


def dial_of(model: Localizer, config: InferenceConfig) -> Tensor | None:
    """``depth_shift`` of a model with a boundary stream for ``config.threshold``; None: as trained.

    Raises:
        ConfigError: a budget for such a model, a threshold for another one.
    """
    c = model.config
    if not isinstance(c, TemporalZoomNetConfig) or c.zoom_layers == 0:
        if config.threshold is not None:
            raise ConfigError(
                f"inference.threshold = {config.threshold:g}: this model has no model.zoom_layers to dial"
            )
        return None
    if config.budget is not None:
        raise ConfigError(
            f"inference.budget = {config.budget:g}: this model refines where that pays; turn inference.threshold instead "
            f"(trained with {c.zoom_threshold:g})"
        )
    if config.threshold is None:
        return None
    return torch.full((1, 1), math.log(c.zoom_threshold / config.threshold), device=model.feature_mean.device)


def limit_for(limit: int, steps: int) -> int:
    """Scales a limit with every started LIMIT_STEPS steps."""
    return limit * max(-(-steps // LIMIT_STEPS), 1)


def mode_for(points: Points, config: InferenceConfig) -> str:
    """How segments are found: without boundary fields from the anchor-free offsets alone."""
    return "anchor" if points.fields is None else config.mode


def find_crossings(
    distance: Tensor, scale: Tensor, mask: Tensor, config: InferenceConfig
) -> tuple[Crossings, Crossings]:
    """Start and end crossings of ``[B, 2, T]`` fields where ``mask`` ``[B, T]`` is True."""
    votes = 1 if config.estimator == "crossing" else 2 * config.vote_window + 1
    inflation = (1 + (votes - 1) * config.vote_correlation) ** 0.5
    starts, ends = (
        ops.boundary_crossings(
            distance[:, side], scale[:, side], estimator=config.estimator, vote_window=config.vote_window,
            min_slope=config.min_slope, mask=mask,
        )
        for side in range(2)
    )  # fmt: skip
    return starts._replace(std=starts.std * inflation), ends._replace(std=ends.std * inflation)


def decode(
    position: Tensor, offset: Tensor, offset_std: Tensor | None, crossings: tuple[Crossings, Crossings] | None,
    config: InferenceConfig,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Segments ``[..., N, 2]`` of points and offsets, refined by crossings, with standard errors."""
    starts, ends = crossings or (None, None)
    std = torch.zeros_like(offset) if offset_std is None else offset_std
    segments, std = ops.decode_segments(position, offset, std, starts, ends, snap_sigmas=config.snap_sigmas)
    return segments, None if offset_std is None else std


def rated(segments: Tensor, std: Tensor | None, scores: Tensor, config: InferenceConfig) -> tuple[Tensor, Tensor]:
    """Scores with the quality of the ends in them, and which segments are long enough, each ``[..., N]``."""
    length = segments[..., 1] - segments[..., 0]
    if config.quality > 0 and std is not None:
        # Expected overlap with the truth: the share of the length that the ends' mean absolute errors leave.
        overlap = (length / (length + std.sum(-1) / LAPLACE_STD)).clamp(0, 1)
        scores = scores * overlap**config.quality
    return scores, length > config.duration_thresh


def rescaled(std: Tensor | None, offset_std: Tensor | None, config: InferenceConfig) -> Tensor | None:
    """Standard errors ``[..., N, 2]`` of :func:`decode` times ``config.std_scale``.

    The last step, after snapping and rating, so that calibrated and uncalibrated detections differ in nothing else.

    Args:
        std: of the segments; None: unknown.
        offset_std: of the offsets that they were decoded from; None: both ends are crossings (mode "pair").
    """
    moved, others = config.std_scale
    if std is None or (moved, others) == (1.0, 1.0):
        return std
    if offset_std is None:
        return std * moved
    # An end that no crossing moved has the very standard error of its offset; one that was has a smaller one.
    return std * torch.where(std == offset_std, others, moved)


def in_seconds(
    segments: Tensor, scores: Tensor, labels: Tensor, std: Tensor | None, grid: TimeGrid, duration: float
) -> Detections:
    """Detections in grid steps as those of a recording of ``duration`` seconds, which they are clipped to."""
    seconds = grid.to_seconds(segments.double().cpu().numpy())
    errors = None if std is None else std.double().cpu().numpy() * grid.step
    return Detections(
        np.clip(seconds, 0.0, duration), scores.double().cpu().numpy(), labels.long().cpu().numpy(), errors
    )


def suppression_settings(config: InferenceConfig) -> dict[str, Any]:
    """Keywords of :func:`tzn.ops.batched_nms` and of the ops like it."""
    return {
        "use_soft_nms": config.nms in ("soft", "linear"),
        "method": "linear" if config.nms == "linear" else "gaussian",
        "overlap": "diou" if config.nms == "diou" else "iou",
        "multiclass": config.multiclass,
        "sigma": config.sigma,
        "voting_thresh": config.voting_thresh,
        "per_class_voting": config.per_class_voting,
        "vote_weight": config.vote_weight,
    }

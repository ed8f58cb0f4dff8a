"""Features in, detections out, without the host in between: fixed capacities, counts on the device, CUDA graphs.

The same candidates, refinement and suppression as :func:`tzn.inference.localize.localize`, for a whole batch at once. Heads
run at every point, because which points have candidates is known to the device only. Needs the Triton back end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.inference.localize import LAPLACE_STD, limit_for
from tzn.models import ActionFormer, Localizer, TemporalZoomNet
from tzn.nn.pyramid import PointGrid, flatten_levels, point_grid
from tzn.ops import padded
from tzn.reference import Crossings

WARM_UP = 3  # runs before a capture: kernels are compiled, libraries make their handles


class FixedDetections(NamedTuple):
    """Detections of B recordings by falling score, K places each; past ``count``: score -inf, label -1."""

    segments: Tensor  # [B, K, 2] grid steps
    std: Tensor | None  # [B, K, 2] of the candidates picked, in grid steps; None: the model knows none
    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K] int32
    count: Tensor  # type: ignore[assignment]  # [B] int64

    def recording(self, row: int, grid: TimeGrid, duration: float) -> Detections:
        """One recording's detections in seconds, clipped to its ``duration``; waits for the device."""
        number = int(self.count[row])
        seconds = grid.to_seconds(self.segments[row, :number].double().cpu().numpy())
        std = None if self.std is None else self.std[row, :number].double().cpu().numpy() * grid.step
        scores, labels = (x[row, :number].cpu() for x in (self.scores, self.labels))
        return Detections(np.clip(seconds, 0.0, duration), scores.double().numpy(), labels.long().numpy(), std)


class _Heads(NamedTuple):
    points: PointGrid
    levels: int
    scores: Tensor  # [B, P, C] float32, 0 where padded
    offset: Tensor  # [B, P, 2] grid steps
    offset_std: Tensor | None
    starts: Crossings | None
    ends: Crossings | None


@torch.no_grad()
def detect(model: Localizer, features: Tensor, mask: Tensor, config: InferenceConfig) -> FixedDetections:
    """Detections of a batch.

    Args:
        model: in evaluation mode.
        features: ``[B, T, input_dim]``, padded at the end; mask: ``[B, T]`` bool, True = valid.
        config: as for ``localize``; ``chunk`` is ignored (one pass), mode "pair" is not supported.

    Raises:
        ValueError: mode "pair", or tensors that do not run on the Triton back end.
    """
    padded.check_backend(features.device)
    heads = (
        _actionformer(model, features, mask)
        if isinstance(model, ActionFormer)
        else _zoom(model, features, mask, config)
    )
    steps, classes = features.shape[1], heads.scores.shape[2]
    found = padded.select_candidates(
        heads.scores, heads.points.level, heads.levels, min_score=config.pre_nms_thresh,
        topk=limit_for(config.pre_nms_topk, steps),
    )  # fmt: skip
    both = found.point.unsqueeze(-1).expand(-1, -1, 2)
    offset = heads.offset.gather(1, both)
    std = offset if heads.offset_std is None else heads.offset_std.gather(1, both)
    segments, std = padded.decode_segments(
        heads.points.position[found.point], offset, std, heads.starts, heads.ends, snap_sigmas=config.snap_sigmas
    )
    length = segments[..., 1] - segments[..., 0]
    score = found.score
    if config.quality > 0 and heads.offset_std is not None:
        overlap = (length / (length + std.sum(-1) / LAPLACE_STD)).clamp(0, 1)
        score = score * overlap**config.quality
    score = torch.where((length > config.duration_thresh) & (found.label >= 0), score, -torch.inf)
    picks = padded.batched_nms(
        segments, score, found.label, classes, limit_for(config.segment_limit, steps),
        method={"soft": "gaussian"}.get(config.nms, config.nms), multiclass=config.multiclass,
        iou_threshold=config.iou_threshold, sigma=config.sigma, min_score=config.min_score,
        voting_thresh=config.voting_thresh,
    )  # fmt: skip
    chosen = None if heads.offset_std is None else std.gather(1, picks.index.unsqueeze(-1).expand(-1, -1, 2))
    return FixedDetections(picks.segments, chosen, picks.score, picks.label, picks.count)


def _zoom(model: TemporalZoomNet, features: Tensor, mask: Tensor, config: InferenceConfig) -> _Heads:
    mode = config.mode if model.boundary_head is not None else "anchor"
    if mode == "pair":
        raise ValueError("inference.mode = 'pair': expected 'refine' or 'anchor' for inference of fixed capacity")
    trunk = model.trunk(features, mask, budget=config.budget)
    logits = model.class_head(trunk.point_features, trunk.point_mask)
    offset, scale = model.offset_head(trunk)
    stride = trunk.points.stride.unsqueeze(-1)
    starts = ends = None
    if mode == "refine":
        assert model.boundary_head is not None and trunk.boundary_features is not None
        distance, spread = model.boundary_head(trunk.boundary_features, mask)
        starts, ends = _crossings(distance, spread, mask, config)
    scores = logits.float().sigmoid() * trunk.point_mask.unsqueeze(-1)
    return _Heads(
        trunk.points, model.config.num_levels, scores, offset * stride, LAPLACE_STD * scale * stride, starts, ends
    )


def _crossings(distance: Tensor, scale: Tensor, mask: Tensor, config: InferenceConfig) -> tuple[Crossings, Crossings]:
    """Start and end crossings of ``[B, F, T]`` fields."""
    if distance.shape[1] == 1:  # region field: negative inside, so its falling crossings are starts
        distance, scale = torch.cat([-distance, distance], dim=1), scale.expand(-1, 2, -1)
    votes = 1 if config.estimator == "crossing" else 2 * config.vote_window + 1
    inflation = (1 + (votes - 1) * config.vote_correlation) ** 0.5
    found = []
    for side in range(2):
        crossings = padded.boundary_crossings(
            distance[:, side], scale[:, side], estimator=config.estimator, vote_window=config.vote_window,
            min_slope=config.min_slope, mask=mask,
        )  # fmt: skip
        found.append(crossings._replace(std=crossings.std * inflation))
    return found[0], found[1]


def _actionformer(model: ActionFormer, features: Tensor, mask: Tensor) -> _Heads:
    outputs = model(*model.padded(features, mask))
    logits, valid = flatten_levels(outputs.class_logits, outputs.masks)
    offsets, _ = flatten_levels(outputs.offsets, outputs.masks)
    lengths = [level.shape[1] for level in outputs.masks]
    points = point_grid(lengths, model.config.strides, model.config.regression_range, features.device)
    scores = logits.float().sigmoid() * valid.unsqueeze(-1)
    return _Heads(points, len(lengths), scores, offsets.float() * points.stride.unsqueeze(-1), None, None, None)


class GraphedDetector:
    """:func:`detect` captured as one CUDA graph for one batch shape: no Python, no launches one by one.

    Args:
        model: on a CUDA device, in evaluation mode; its weights may change in place, but not their shapes.
        batch, steps: shape of every call; shorter recordings are padded and masked.
        config: fixed at capture.
        dtype: of the features.

    Raises:
        ValueError: the model is not on a CUDA device.
    """

    def __init__(
        self, model: Localizer, batch: int, steps: int, config: InferenceConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"model: got device {device}, expected a CUDA device")
        self.features = torch.zeros(batch, steps, model.config.feature_dim, dtype=dtype, device=device)
        self.mask = torch.ones(batch, steps, dtype=torch.bool, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                detect(model, self.features, self.mask, config)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.detections = detect(model, self.features, self.mask, config)

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> FixedDetections:
        """Detections; the same tensors every time, valid until the next call."""
        self.features.copy_(features, non_blocking=True)
        self.mask.fill_(True) if mask is None else self.mask.copy_(mask, non_blocking=True)
        self.graph.replay()
        return self.detections

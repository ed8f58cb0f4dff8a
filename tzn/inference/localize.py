"""From features to detections: trunk, candidates, heads where candidates need them, refinement, suppression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.data.dataset import Batch
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.inference.localize_actionformer import actionformer_candidates
from tzn.models import ActionFormer, Localizer, TemporalZoomNet
from tzn.models.temporal_zoom_net import Trunk
from tzn.nn import budget_shift
from tzn.nn.pyramid import PointGrid

LIMIT_STEPS = 16384  # pre_nms_topk and max_segments hold for every started stretch of this length
NEAREST_PAIRS = 1 << 20  # (detection, candidate) pairs compared at once
LAPLACE_STD = 2**0.5  # standard deviation of a Laplace variable of scale 1


class Trace(NamedTuple):
    """What the network saw along one recording, in grid steps; NaN where the distance head did not need to run."""

    depth: Tensor  # [T]
    distance: Tensor | None  # [2, T] start and end field
    scale: Tensor | None  # [2, T]
    starts: ops.Crossings | None
    ends: ops.Crossings | None


class Raw(NamedTuple):
    """Candidates of one recording before suppression, in grid steps."""

    segments: Tensor  # [N, 2]
    std: Tensor | None  # [N, 2]; None: the model knows none
    scores: Tensor  # [N]
    labels: Tensor  # [N]
    trace: Trace


class _Found(NamedTuple):
    """Anchor-free candidates of one stretch of a recording, grid steps."""

    position: Tensor
    level: Tensor
    label: Tensor
    score: Tensor
    offset: Tensor
    offset_std: Tensor
    step_scores: Tensor | None  # [T, C], only for pairing


def localize(
    model: Localizer, features: Tensor, grid: TimeGrid, duration: float, config: InferenceConfig
) -> tuple[Detections, Trace]:
    """Detections of one recording.

    Args:
        model: in evaluation mode.
        features: ``[T, input_dim]`` raw features.
        grid: maps grid steps to seconds.
        duration: length of the recording in seconds; detections are clipped to it.
        config: thresholds, estimator, suppression, budget.

    Recordings longer than ``config.chunk`` steps are processed in overlapping chunks; the result is the one-pass result.
    """
    raw = candidates(model, features, config)
    return suppress(raw, grid, duration, config), raw.trace


def localize_batch(model: Localizer, batch: Batch, config: InferenceConfig) -> dict[str, Detections]:
    """Detections of every recording of a batch; padding has no influence, so each runs at its own length."""
    was_training = model.training
    model.eval()
    found = {}
    for i, name in enumerate(batch.ids):
        features = batch.features[i, batch.mask[i]]
        found[name], _ = localize(model, features, batch.grids[i], batch.durations[i], config)
    model.train(was_training)
    return found


@torch.no_grad()
def candidates(model: Localizer, features: Tensor, config: InferenceConfig) -> Raw:
    """Refined (or paired) candidates of one recording ``[T, input_dim]`` before suppression."""
    steps = features.shape[0]
    if isinstance(model, ActionFormer):
        segments, scores, labels = actionformer_candidates(
            model, features, config, limit_for(config.pre_nms_topk, steps)
        )
        long = segments[:, 1] - segments[:, 0] > config.duration_thresh
        trace = Trace(torch.ones(steps), None, None, None, None)
        return Raw(segments[long], None, scores[long], labels[long], trace)
    mode = config.mode if model.boundary_head is not None else "anchor"
    whole = steps <= config.chunk
    parts, depths, fields = [], [], []
    for trunk, keep in _trunks(model, features, config):
        found = _anchor_candidates(model, trunk, keep, config, steps, per_step=mode == "pair")
        depths.append(trunk.depths.tau[0, keep.low : keep.high])
        if mode != "anchor":
            rows = _wanted_rows(found, steps, config) if whole and mode == "refine" else None
            fields.append(_boundary_fields(model, trunk, rows)[:, :, keep.low : keep.high])
        parts.append(found)
    topk = limit_for(config.pre_nms_topk, steps)
    found = _merge(parts, topk)
    depth = torch.cat(depths)
    if mode == "anchor":
        decoded = ops.decode_segments(found.position, found.offset, found.offset_std)
        return _finish(decoded, found.score, found.label, Trace(depth, None, None, None, None), config)
    distance, scale = torch.cat(fields, dim=2)
    starts, ends = _crossings(distance, scale, config)
    trace = Trace(depth, distance, scale, starts, ends)
    if mode == "pair":
        assert found.step_scores is not None
        paired, labels, scores = ops.pair_segments(starts, ends, found.step_scores, topk=topk)
        strong = scores > config.pre_nms_thresh
        decoded = ops.Segments(paired.segments[strong], paired.std[strong])
        return _finish(decoded, scores[strong], labels[strong], trace, config)
    decoded = ops.decode_segments(
        found.position, found.offset, found.offset_std, starts, ends, snap_sigmas=config.snap_sigmas
    )
    return _finish(decoded, found.score, found.label, trace, config)


class _Keep(NamedTuple):
    """Which steps [low, high) of a chunk belong to the result, and the time of the chunk's step 0."""

    low: int
    high: int
    origin: int


def _trunks(model: TemporalZoomNet, features: Tensor, config: InferenceConfig) -> Iterator[tuple[Trunk, _Keep]]:
    """The trunk over the whole recording, or chunk by chunk with the receptive field as overlap."""
    spans = list(_spans(features.shape[0], config.chunk, model.receptive_radius))
    if len(spans) == 1:
        mask = torch.ones(1, features.shape[0], dtype=torch.bool, device=features.device)
        yield model.trunk(features.unsqueeze(0), mask, budget=config.budget), _Keep(0, features.shape[0], 0)
        return
    # The dial is set by the whole recording: one pass over the shallow part first.
    shift = _depth_shift(model, features, spans, config.budget)
    for low, high, first, last in spans:
        part = features[first:last].unsqueeze(0)
        mask = torch.ones(part.shape[:2], dtype=torch.bool, device=part.device)
        yield model.trunk(part, mask, depth_shift=shift), _Keep(low - first, high - first, first)


def _spans(steps: int, chunk: int, radius: int) -> Iterator[tuple[int, int, int, int]]:
    """(low, high) to keep and (first, last) to read; all but the end are multiples of the coarsest stride."""
    if steps <= chunk:
        yield 0, steps, 0, steps
        return
    size = max(chunk // radius, 1) * radius  # radius is a multiple of the coarsest stride
    for low in range(0, steps, size):
        high = min(low + size, steps)
        yield low, high, max(low - radius, 0), min(high + radius, steps)


def _depth_shift(
    model: TemporalZoomNet, features: Tensor, spans: list[tuple[int, int, int, int]], budget: float | None
) -> Tensor | None:
    if budget is None or model.depth_predictor is None:
        return None
    logits = []
    for low, high, first, last in spans:
        part = features[first:last].unsqueeze(0)
        mask = torch.ones(part.shape[:2], dtype=torch.bool, device=part.device)
        logits.append(model.depth_logits(part, mask)[:, low - first : high - first])
    whole = torch.cat(logits, dim=1)
    return budget_shift(whole, torch.ones_like(whole, dtype=torch.bool), budget)


def _anchor_candidates(
    model: TemporalZoomNet, trunk: Trunk, keep: _Keep, config: InferenceConfig, steps: int, *, per_step: bool
) -> _Found:
    points = trunk.points
    scores = model.class_head(trunk.point_features, trunk.point_mask)[0].float().sigmoid()
    inside = (points.position >= keep.low) & (points.position < keep.high) & trunk.point_mask[0]
    kept = scores * inside.unsqueeze(-1)
    chosen = ops.select_candidates(
        kept, points.level, min_score=config.pre_nms_thresh, topk=limit_for(config.pre_nms_topk, steps)
    )
    rows, back = chosen.point.unique(return_inverse=True)
    offset, scale = model.offset_head.at(trunk, rows)
    stride = points.stride[chosen.point].unsqueeze(-1)
    step_scores = _step_scores(scores, points, keep) if per_step else None
    return _Found(
        points.position[chosen.point] + keep.origin,
        points.level[chosen.point],
        chosen.label,
        chosen.score,
        offset[back] * stride,
        LAPLACE_STD * scale[back] * stride,
        step_scores,
    )


def _step_scores(scores: Tensor, points: PointGrid, keep: _Keep) -> Tensor:
    """Class scores per step ``[T, C]``: the best level's nearest point."""
    time = torch.arange(keep.low, keep.high, device=scores.device)
    best = scores.new_zeros(time.numel(), scores.shape[1])
    for level in range(int(points.level.max()) + 1):
        of_level = (points.level == level).nonzero().squeeze(1)
        stride = points.stride[of_level[0]]
        nearest = torch.div(time + stride / 2, stride, rounding_mode="floor").long().clamp(max=of_level.numel() - 2)
        best = torch.maximum(best, scores[of_level[nearest]])
    return best


def limit_for(limit: int, steps: int) -> int:
    """Scales a limit with every started LIMIT_STEPS steps."""
    return limit * max(-(-steps // LIMIT_STEPS), 1)


def _merge(parts: list[_Found], topk: int) -> _Found:
    """Chunks together; each level again cut to its best ``topk``."""
    if len(parts) == 1:
        return parts[0]
    joined = [None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)]
    whole = _Found(*joined)  # type: ignore[arg-type]
    order = whole.score.argsort(descending=True, stable=True)
    order = order[whole.level[order].argsort(stable=True)]
    levels = whole.level[order]
    rank = torch.arange(levels.numel(), device=levels.device) - torch.searchsorted(levels, levels)
    order = order[rank < topk]
    cut = [x[order] for x in whole[:-1] if x is not None]
    return _Found(cut[0], cut[1], cut[2], cut[3], cut[4], cut[5], whole.step_scores)


def _wanted_rows(found: _Found, steps: int, config: InferenceConfig) -> Tensor:
    """Steps whose distance can matter: around each candidate end, as far as it may snap, plus the votes there."""
    ends = torch.stack([found.position - found.offset[:, 0], found.position + found.offset[:, 1]], 1)
    # A crossing is used within snap_sigmas * hypot(offset std, its own std), the latter being the smaller of the two.
    # Votes move it by up to vote_window and come from as far again.
    reach = config.snap_sigmas * 2**0.5 * found.offset_std + 2 * config.vote_window + 2
    low = (ends - reach).floor().clamp(0, steps - 1).long().flatten()
    high = (ends + reach).ceil().clamp(0, steps - 1).long().flatten()
    edges = torch.zeros(steps + 1, dtype=torch.long, device=ends.device)
    edges.index_add_(0, low, torch.ones_like(low))
    edges.index_add_(0, high + 1, -torch.ones_like(high))
    return (edges.cumsum(0)[:steps] > 0).nonzero().squeeze(1)


def _boundary_fields(model: TemporalZoomNet, trunk: Trunk, rows: Tensor | None) -> Tensor:
    """Start and end distance and scale ``[2 (distance, scale), 2 (start, end), T]``; NaN at steps that were not asked for."""
    assert model.boundary_head is not None and trunk.boundary_features is not None
    if rows is None:
        distance, scale = model.boundary_head(trunk.boundary_features, trunk.mask)
        fields = torch.stack([distance[0], scale[0]])
    else:
        steps = trunk.mask.shape[1]
        packed = torch.stack(model.boundary_head.at(trunk.boundary_features, trunk.mask, rows))
        fields = packed.new_full((2, packed.shape[2], steps), float("nan"))
        fields[:, :, rows] = packed.transpose(1, 2)
    if fields.shape[1] == 1:  # region field: negative inside, so starts are its falling and ends its rising crossings
        sign = fields.new_tensor([[-1.0, 1.0], [1.0, 1.0]]).unsqueeze(-1)
        fields = fields.expand(-1, 2, -1) * sign
    return fields


def _crossings(distance: Tensor, scale: Tensor, config: InferenceConfig) -> tuple[ops.Crossings, ops.Crossings]:
    computed = ~distance.isnan()
    votes = 1 if config.estimator == "crossing" else 2 * config.vote_window + 1
    inflation = (1 + (votes - 1) * config.vote_correlation) ** 0.5
    found = [
        ops.boundary_crossings(
            distance[i : i + 1].nan_to_num(), scale[i : i + 1].nan_to_num(1.0), estimator=config.estimator,
            vote_window=config.vote_window, min_slope=config.min_slope, mask=computed[i : i + 1],
        )
        for i in range(2)
    ]  # fmt: skip
    starts, ends = (crossings._replace(std=crossings.std * inflation) for crossings in found)
    return starts, ends


def _finish(decoded: ops.Segments, scores: Tensor, labels: Tensor, trace: Trace, config: InferenceConfig) -> Raw:
    length = decoded.segments[:, 1] - decoded.segments[:, 0]
    if config.quality > 0:
        # Expected overlap with the truth: the share of the length that the ends' mean absolute errors leave.
        missing = decoded.std.sum(1) / LAPLACE_STD
        overlap = (length / (length + missing)).clamp(0, 1)
        scores = scores * overlap**config.quality
    keep = length > config.duration_thresh
    return Raw(decoded.segments[keep], decoded.std[keep], scores[keep], labels[keep], trace)


def suppress(raw: Raw, grid: TimeGrid, duration: float, config: InferenceConfig) -> Detections:
    """Non-maximum suppression in grid steps, then seconds clipped to the recording."""
    # Where no kernel suppresses on the device, the CPU's does it faster than one operator after the other.
    home = raw.segments.device if ops.choose_backend(raw.segments.device) == "triton" else torch.device("cpu")
    segments, scores, labels = raw.segments.to(home), raw.scores.to(home), raw.labels.to(home)
    most = limit_for(config.segment_limit, raw.trace.depth.shape[0])
    if config.nms != "none":
        segments, scores, labels = ops.batched_nms(
            segments, scores, labels, config.iou_threshold, config.min_score, most,
            use_soft_nms=config.nms != "hard", multiclass=config.multiclass, sigma=config.sigma,
            voting_thresh=config.voting_thresh, method="linear" if config.nms == "linear" else "gaussian",
        )  # fmt: skip
    else:
        order = scores.argsort(descending=True, stable=True)[:most]
        segments, scores, labels = segments[order], scores[order], labels[order]
    segments, scores, labels = segments.cpu(), scores.cpu(), labels.cpu()
    std = None if raw.std is None else _std_of(segments, labels, raw, raw.std).double().numpy() * grid.step
    seconds = grid.to_seconds(segments.double().numpy())
    return Detections(np.clip(seconds, 0.0, duration), scores.double().numpy(), labels.numpy(), std)


def _std_of(segments: Tensor, labels: Tensor, raw: Raw, std: Tensor) -> Tensor:
    """Standard errors of detections: those of the nearest candidate of the class (voting moves a segment a little)."""
    result = segments.new_zeros(segments.shape[0], 2)
    all_segments, all_labels, all_std = raw.segments.cpu(), raw.labels.cpu(), std.cpu()
    for label in labels.unique():
        mine, source = (labels == label).nonzero().squeeze(1), all_labels == label
        of_class, of_class_std = all_segments[source], all_std[source]
        for rows in mine.split(max(NEAREST_PAIRS // of_class.shape[0], 1)):
            apart = (segments[rows, None] - of_class[None]).abs().sum(-1)
            result[rows] = of_class_std[apart.argmin(1)]
    return result

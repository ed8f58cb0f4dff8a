"""From features to detections: scored points, candidates, heads where candidates need them, refinement, suppression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.data.dataset import Batch
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.errors import LimitWarning
from tzn.inference.decode import (
    LIMIT_STEPS,
    decode,
    dial_of,
    find_crossings,
    in_seconds,
    limit_for,
    mode_for,
    rated,
    rescaled,
    suppression_settings,
)
from tzn.models import Localizer
from tzn.nn import budget_shift
from tzn.nn.pyramid import PointGrid, Points

# A limit that cuts what scores less than this share of the best is not worth a word: soft suppression leaves a long tail of
# such detections (of the pretrained HAPT model some 3,500 a recording, of which the limit cuts those below 0.05).
WORTH_A_WARNING = 0.1

Progress = Callable[[int, int], None]  # (steps done, steps in all)


class Trace(NamedTuple):
    """What the network saw along one recording, in grid steps; NaN where the distance head did not need to run."""

    depth: Tensor  # [T]
    distance: Tensor | None  # [2, T] start and end field
    scale: Tensor | None  # [2, T]
    starts: ops.Crossings | None
    ends: ops.Crossings | None


class Candidates(NamedTuple):
    """Segments of one recording before suppression, in grid steps."""

    segments: Tensor  # [N, 2]
    std: Tensor | None  # [N, 2]; None: the model knows none
    scores: Tensor  # [N]
    labels: Tensor  # [N]
    trace: Trace


class Selection(NamedTuple):
    """Points and classes that may be an action, in grid steps of the recording; level by level by falling score."""

    position: Tensor  # [N]
    level: Tensor  # [N]
    label: Tensor  # [N]
    score: Tensor  # [N]
    offset: Tensor  # [N, 2]
    offset_std: Tensor | None  # [N, 2]


class Chunk(NamedTuple):
    """Steps [low, high) of a chunk belong to the result; its step 0 is step ``origin`` of the recording."""

    low: int
    high: int
    origin: int


def localize(
    model: Localizer,
    features: Tensor,
    grid: TimeGrid,
    duration: float,
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
    computed: Points | None = None,
) -> tuple[Detections, Trace]:
    """Detections of one recording.

    Args:
        model: in evaluation mode.
        features: ``[T, input_dim]`` raw features.
        grid: maps grid steps to seconds.
        duration: length of the recording in seconds; detections are clipped to it.
        config: thresholds, estimator, suppression, budget.
        progress: called after every chunk with the steps done and the steps to do (twice the recording's where a budget
            takes a first pass), for a progress bar of the caller's.
        computed: the network's outputs for these features, where they are known (:mod:`tzn.inference.localize_many`).

    Recordings longer than ``config.chunk`` steps are processed in overlapping chunks; the result is the one-pass result.
    Memory is that of one chunk, of the candidates (``pre_nms_topk`` per level and LIMIT_STEPS steps) and of the trace.

    Warns:
        LimitWarning: ``config.max_segments`` cut detections that score a tenth of the best or more.
    """
    found = candidates(model, features, config, progress=progress, computed=computed)
    return suppress(found, grid, duration, config), found.trace


def localize_batch(model: Localizer, batch: Batch, config: InferenceConfig) -> dict[str, Detections]:
    """Detections of every recording of a batch; padding has no influence, so each runs at its own length."""
    was_training = model.training
    model.eval()
    found = {}
    for i, name in enumerate(batch.ids):
        features = batch.features[i, batch.mask[i]]
        with warnings.catch_warnings():  # training validates the same recordings every epoch
            warnings.simplefilter("ignore", LimitWarning)
            found[name], _ = localize(model, features, batch.grids[i], batch.durations[i], config)
    model.train(was_training)
    return found


@torch.no_grad()
def candidates(
    model: Localizer,
    features: Tensor,
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
    computed: Points | None = None,
) -> Candidates:
    """Refined (or paired) candidates of one recording ``[T, input_dim]`` before suppression; arguments of :func:`localize`."""
    steps = features.shape[0]
    topk = limit_for(config.pre_nms_topk, steps)
    best = _BestOfLevels(topk, len(model.config.strides))
    depths, fields, step_scores = [], [], []
    mode: str = config.mode
    chunks = _chunks(model, features, config, progress) if computed is None else [(computed, Chunk(0, steps, 0))]
    for points, chunk in chunks:
        mode = mode_for(points, config)
        selection = select(points, chunk, config, topk)
        best.add(selection)
        depths.append(points.depth[0, chunk.low : chunk.high])
        if points.fields is not None and mode != "anchor":
            # Which steps matter is known once all candidates are: after the only chunk.
            whole = chunk.high - chunk.low == steps
            rows = None
            if whole and mode == "refine":
                assert selection.offset_std is not None
                place = selection.position, selection.offset, selection.offset_std
                rows = wanted_steps(*place, steps - 1, 0, steps, config)
            fields.append(torch.cat(points.fields(rows))[:, :, chunk.low : chunk.high])
        if mode == "pair":
            step_scores.append(_step_scores(points.scores[0], points.grid, chunk))
    trace, crossings = Trace(torch.cat(depths), None, None, None, None), None
    if fields:
        distance, scale = torch.cat(fields, dim=2)
        crossings = _crossings(distance, scale, config)
        trace = Trace(trace.depth, distance, scale, *crossings)
    if mode == "pair":
        assert crossings is not None
        paired, labels, scores = ops.pair_segments(*crossings, torch.cat(step_scores), topk=topk)
        strong = scores > config.pre_nms_thresh
        segments, scores, labels = paired.segments[strong], scores[strong], labels[strong]
        std: Tensor | None = paired.std[strong]
        offset_std = None
    else:
        chosen = best.merged()
        scores, labels = chosen.score, chosen.label
        segments, std = decode(chosen.position, chosen.offset, chosen.offset_std, crossings, config)
        offset_std = chosen.offset_std
    scores, long = rated(segments, std, scores, config)
    std = rescaled(std, offset_std, config)
    return Candidates(segments[long], None if std is None else std[long], scores[long], labels[long], trace)


def _chunks(
    model: Localizer, features: Tensor, config: InferenceConfig, progress: Progress | None
) -> Iterator[tuple[Points, Chunk]]:
    """The points of the whole recording, or chunk by chunk with the receptive field as overlap."""
    steps = features.shape[0]
    spans = list(_spans(steps, config.chunk, model.receptive_radius))
    # The dial is set by the whole recording: where that comes in chunks, one pass over the shallow part first.
    dialled = config.budget is not None and model.depth_predictor is not None
    passes = 2 if dialled and len(spans) > 1 else 1

    def done(high: int, first_pass: bool = False) -> None:
        if progress is not None:
            progress(high + (0 if first_pass else (passes - 1) * steps), passes * steps)

    budget, shift = config.budget, dial_of(model, config)
    if budget is not None and passes == 2:
        logits = []
        for low, high, first, last in spans:
            logits.append(model.depth_logits(*alone(features, first, last))[:, low - first : high - first])
            done(high, first_pass=True)
        whole = torch.cat(logits, dim=1)
        shift = budget_shift(whole, torch.ones_like(whole, dtype=torch.bool), budget)
        budget = None
    for low, high, first, last in spans:
        points = model.points(*alone(features, first, last), budget=budget, depth_shift=shift)
        yield points, Chunk(low - first, high - first, first)
        done(high)


def alone(features: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Steps [first, last) of a recording as a batch of one, and its mask."""
    part = features[None, first:last]
    return part, torch.ones(part.shape[:2], dtype=torch.bool, device=part.device)


def _spans(steps: int, chunk: int, radius: int | None) -> Iterator[tuple[int, int, int, int]]:
    """(low, high) to keep and (first, last) to read; all but the end are multiples of the coarsest stride."""
    if steps <= chunk or radius is None:
        yield 0, steps, 0, steps
        return
    size = max(chunk // radius, 1) * radius  # radius is a multiple of the coarsest stride
    for low in range(0, steps, size):
        high = min(low + size, steps)
        yield low, high, max(low - radius, 0), min(high + radius, steps)


def select(points: Points, chunk: Chunk, config: InferenceConfig, topk: int) -> Selection:
    grid = points.grid
    inside = (grid.position >= chunk.low) & (grid.position < chunk.high) & points.mask[0]
    scores = points.scores[0] * inside.unsqueeze(-1)
    chosen = ops.select_candidates(scores, grid.level, min_score=config.pre_nms_thresh, topk=topk)
    offset, std = offsets_at(points, chosen.point)
    return Selection(
        grid.position[chosen.point] + chunk.origin, grid.level[chosen.point], chosen.label, chosen.score, offset, std
    )


def offsets_at(points: Points, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
    """Offsets ``[N, 2]`` and their standard deviations at points in any order, of the flattened ``[B * P]``."""
    rows, inverse = chosen.unique(return_inverse=True)
    offset, std = points.offsets(rows)
    return offset[inverse], None if std is None else std[inverse]


class _BestOfLevels:
    """Selections of chunks, of which the best ``topk`` per level are kept: at most twice as many at any time."""

    def __init__(self, topk: int, levels: int) -> None:
        self.topk, self.capacity = topk, topk * levels
        self.parts: list[Selection] = []

    def add(self, part: Selection) -> None:
        self.parts.append(part)
        if sum(p.score.numel() for p in self.parts) > 2 * self.capacity:
            self.parts = [self.merged()]

    def merged(self) -> Selection:
        if len(self.parts) == 1:
            return self.parts[0]
        whole = [None if part[0] is None else torch.cat(part) for part in zip(*self.parts, strict=True)]
        level, score = whole[1], whole[3]
        assert level is not None and score is not None
        order = score.argsort(descending=True, stable=True)
        order = order[level[order].argsort(stable=True)]
        levels = level[order]
        rank = torch.arange(levels.numel(), device=levels.device) - torch.searchsorted(levels, levels)
        order = order[rank < self.topk]
        return Selection(*(None if x is None else x[order] for x in whole))  # type: ignore[arg-type]


def _step_scores(scores: Tensor, grid: PointGrid, chunk: Chunk) -> Tensor:
    """Class scores per step ``[T, C]``: the best level's nearest point."""
    time = torch.arange(chunk.low, chunk.high, device=scores.device)
    best = scores.new_zeros(time.numel(), scores.shape[1])
    for level in range(int(grid.level.max()) + 1):
        of_level = (grid.level == level).nonzero().squeeze(1)
        stride = grid.stride[of_level[0]]
        nearest = torch.div(time + stride / 2, stride, rounding_mode="floor").long().clamp(max=of_level.numel() - 2)
        best = torch.maximum(best, scores[of_level[nearest]])
    return best


def wanted_steps(
    position: Tensor, offset: Tensor, offset_std: Tensor, last: Tensor | int, begin: Tensor | int, total: int,
    config: InferenceConfig,
) -> Tensor:  # fmt: skip
    """Steps whose distance can matter: around each candidate end, as far as it may snap, plus the votes there.

    Args:
        position, offset, offset_std: ``[N]``, ``[N, 2]``, ``[N, 2]`` of candidates, in steps of their recording.
        last: the recording's last step, or each candidate's ``[N, 1]``.
        begin: likewise, where its first step lies among all ``total``.

    Returns:
        Ascending places among ``total`` steps.
    """
    ends = torch.stack([position - offset[:, 0], position + offset[:, 1]], 1)
    # A crossing is used within snap_sigmas * hypot(offset std, its own std), the latter being the smaller of the two.
    # Votes move it by up to vote_window and come from as far again.
    reach = config.snap_sigmas * 2**0.5 * offset_std + 2 * config.vote_window + 2
    low = (
        (ends - reach).floor().long().clamp(min=0).minimum(torch.as_tensor(last, device=ends.device)) + begin
    ).flatten()
    high = (
        (ends + reach).ceil().long().clamp(min=0).minimum(torch.as_tensor(last, device=ends.device)) + begin
    ).flatten()
    edges = torch.zeros(total + 1, dtype=torch.long, device=ends.device)
    edges.index_add_(0, low, torch.ones_like(low))
    edges.index_add_(0, high + 1, -torch.ones_like(high))
    return (edges.cumsum(0)[:total] > 0).nonzero().squeeze(1)


def _crossings(distance: Tensor, scale: Tensor, config: InferenceConfig) -> tuple[ops.Crossings, ops.Crossings]:
    computed = ~distance[:1].isnan()  # both fields are computed at the same steps
    return find_crossings(distance.nan_to_num()[None], scale.nan_to_num(1.0)[None], computed, config)


def suppress(candidates: Candidates, grid: TimeGrid, duration: float, config: InferenceConfig) -> Detections:
    """:func:`suppress_many` of one recording."""
    return suppress_many([candidates], [grid], [duration], config)[0]


def suppress_many(
    candidates: Sequence[Candidates], grids: Sequence[TimeGrid], durations: Sequence[float], config: InferenceConfig
) -> list[Detections]:
    """Non-maximum suppression of recordings in one call, in grid steps, then seconds clipped to each recording.

    Standard errors are those of the candidates that were picked, whatever voting makes of their ends.
    """
    # Where no kernel suppresses on the device, the CPU's does it faster than one operator after the other.
    device = candidates[0].segments.device
    home = device if ops.choose_backend(device) == "triton" else torch.device("cpu")
    segments, scores, labels = (
        torch.cat([getattr(c, name) for c in candidates]).to(home) for name in ("segments", "scores", "labels")
    )
    counts = torch.tensor([c.scores.shape[0] for c in candidates])
    limits = [limit_for(config.segment_limit, c.trace.depth.shape[0]) for c in candidates]
    most = max(limits) + 1  # one more than wanted, to know whether the limit cut
    if config.nms == "none":
        begins = (counts.cumsum(0) - counts).tolist()
        parts = [
            begin + part.argsort(descending=True, stable=True)[:most]
            for begin, part in zip(begins, scores.split(counts.tolist()), strict=True)
        ]
        index, num_kept = torch.cat(parts), [len(part) for part in parts]
        segments, scores, labels = segments[index], scores[index], labels[index]
    else:
        segments, scores, labels, kept, index = ops.batched_nms_many(
            segments, scores, labels, counts, config.iou_threshold, config.min_score, most, return_index=True,
            **suppression_settings(config),
        )  # fmt: skip
        num_kept = kept.tolist()
    stds = [c.std for c in candidates]
    std = None if any(s is None for s in stds) else torch.cat([s for s in stds if s is not None])[index.to(device)]
    detections, begin = [], 0
    for limit, number, grid, duration in zip(limits, num_kept, grids, durations, strict=True):
        of = slice(begin, begin + min(number, limit))
        if number > limit and scores[begin + limit] >= WORTH_A_WARNING * scores[begin]:
            warnings.warn(
                f"inference.max_segments = {config.segment_limit} (for every started {LIMIT_STEPS} steps) cut detections "
                f"with scores up to {float(scores[begin + limit]):.3g}; to keep them, raise it",
                LimitWarning,
                stacklevel=3,
            )
        detections.append(
            in_seconds(segments[of], scores[of], labels[of], None if std is None else std[of], grid, duration)
        )
        begin += number
    return detections

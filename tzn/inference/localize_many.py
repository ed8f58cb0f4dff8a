"""Several recordings in one pass from features to detections, for those too short to fill a CPU one by one.

What :mod:`tzn.inference.localize` does of one: an operator for all of them costs little more than for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tzn import ops
from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.inference.decode import decode, dial_of, find_crossings, limit_for, mode_for, rated, rescaled
from tzn.inference.localize import Candidates, Trace, candidates, offsets_at, suppress_many, wanted_steps
from tzn.models import ActionFormer, Localizer
from tzn.models.exported import ExportedNetwork
from tzn.nn.pyramid import PointGrid, Points


def localize_many(
    model: Localizer,
    features: Sequence[Tensor],
    grids: Sequence[TimeGrid],
    durations: Sequence[float],
    config: InferenceConfig,
) -> list[tuple[Detections, Trace]]:
    """:func:`tzn.inference.localize.localize` of every recording, with one padded pass for all.

    Args:
        model: in evaluation mode.
        features: ``[T_i, input_dim]`` per recording, best of similar length; none longer than ``config.chunk`` unless alone.
        grids, durations: per recording.

    Returns:
        As of ``localize``, in the order of ``features``; padding has no influence but on rounding.
    """
    found = _candidates_many(model, features, config)
    kept = suppress_many(found, grids, durations, config) if found else []
    return [(detections, one.trace) for detections, one in zip(kept, found, strict=True)]


@torch.no_grad()
def _candidates_many(model: Localizer, features: Sequence[Tensor], config: InferenceConfig) -> list[Candidates]:
    # ActionFormer's absolute positions are stretched by the padded length, so it is not the same alone; an exported program
    # takes one recording.
    separate = isinstance(model, ExportedNetwork) or (isinstance(model, ActionFormer) and model.config.use_abs_pe)
    if separate or len(features) < 2:
        return [candidates(model, x, config) for x in features]
    lengths = [x.shape[0] for x in features]
    together = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    steps = torch.tensor(lengths, device=together.device)
    mask = torch.arange(together.shape[1], device=together.device) < steps.unsqueeze(1)
    points = model.points(together, mask, budget=config.budget, depth_shift=dial_of(model, config))
    if mode_for(points, config) == "pair":  # every start with every end, and no candidates of points
        own = (_points_of(points, row, length) for row, length in enumerate(lengths))
        return [candidates(model, x, config, computed=one) for x, one in zip(features, own, strict=True)]
    return _refined(points, mask, steps, lengths, config)


def _refined(
    points: Points, mask: Tensor, steps: Tensor, lengths: Sequence[int], config: InferenceConfig
) -> list[Candidates]:
    """What ``candidates`` finds of every recording of a batch.

    Args:
        mask: ``[B, T]`` bool, of the recordings' steps.
        steps, lengths: ``[B]`` of each, twice.
    """
    device, (batch, most) = mask.device, mask.shape
    selected = [
        ops.select_candidates(
            scores, points.grid.level, min_score=config.pre_nms_thresh, topk=limit_for(config.pre_nms_topk, length)
        )
        for scores, length in zip((points.scores * points.mask.unsqueeze(-1)).unbind(), lengths, strict=True)
    ]
    counts = torch.tensor([one.score.numel() for one in selected], device=device)
    point, labels, scores = (torch.cat(parts) for parts in zip(*selected, strict=True))
    row = torch.repeat_interleave(torch.arange(batch, device=device), counts, output_size=point.numel())
    position = points.grid.position[point]
    offset, offset_std = offsets_at(points, point + row * points.mask.shape[1])
    distance = scale = crossings = None
    if points.fields is not None and mode_for(points, config) == "refine":
        assert offset_std is not None
        of = row.unsqueeze(1)
        rows = wanted_steps(position, offset, offset_std, steps[of] - 1, of * most, batch * most, config)
        distance, scale = points.fields(rows)
        known = mask & ~distance[:, 0].isnan()  # both fields are computed at the same steps
        crossings = find_crossings(distance.nan_to_num(), scale.nan_to_num(1.0), known, config)
    # Decoding wants as many candidates of every recording.
    table = torch.nn.utils.rnn.pad_sequence(list(torch.arange(len(row), device=device).split(counts.tolist())), True)
    place = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
    segments, std = decode(
        position[table], offset[table], None if offset_std is None else offset_std[table], crossings, config
    )
    segments, std = segments[row, place], None if std is None else std[row, place]
    scores, long = rated(segments, std, scores, config)
    std = rescaled(std, offset_std, config)
    row = row[long]
    sizes = torch.bincount(row, minlength=batch).tolist()
    segments, scores, labels = (x[long].split(sizes) for x in (segments, scores, labels))
    stds = [None] * batch if std is None else std[long].split(sizes)
    traces = [_trace(i, length, points.depth, distance, scale, crossings) for i, length in enumerate(lengths)]
    return [Candidates(*one) for one in zip(segments, stds, scores, labels, traces, strict=True)]


def _trace(
    row: int, steps: int, depth: Tensor, distance: Tensor | None, scale: Tensor | None,
    crossings: tuple[ops.Crossings, ops.Crossings] | None,
) -> Trace:  # fmt: skip
    """What the network saw along one recording of a batch."""
    if distance is None or scale is None or crossings is None:
        return Trace(depth[row, :steps], None, None, None, None)
    own = slice(row, row + 1), slice(steps // 2)  # as many places as it has alone
    starts, ends = (
        ops.Crossings(side.position[own], side.std[own], side.slope[own], side.count[own[0]])  # type: ignore[index]
        for side in crossings
    )
    return Trace(depth[row, :steps], distance[row, :, :steps], scale[row, :, :steps], starts, ends)


def _points_of(points: Points, row: int, steps: int) -> Points:
    """Those of one recording, as if it had been alone: its own steps, and its own points with a pad after each level."""
    grid = points.grid
    own, (places, padded) = slice(row, row + 1), (points.mask.shape[1], points.depth.shape[1])
    chosen = (grid.position - grid.stride < steps).nonzero().squeeze(1)

    def offsets(rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        wanted = chosen if rows is None else chosen[rows]
        return points.offsets(wanted + row * places)

    def fields(rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert points.fields is not None
        wanted = torch.arange(steps, device=chosen.device) if rows is None else rows
        distance, scale = points.fields(wanted + row * padded)
        return distance[own, :, :steps], scale[own, :, :steps]

    return Points(
        PointGrid(grid.position[chosen], grid.stride[chosen], grid.level[chosen], grid.ranges[chosen]),
        points.mask[own, chosen], points.scores[own, chosen],
        points.depth[own, :steps], offsets, None if points.fields is None else fields,
    )  # fmt: skip

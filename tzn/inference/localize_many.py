"""Several recordings in one forward pass, for those too short to fill a CPU one by one.

:mod:`tzn.inference.localize` does the rest for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tzn.config import InferenceConfig
from tzn.data.grid import TimeGrid
from tzn.detections import Detections
from tzn.inference.decode import dial_of
from tzn.inference.localize import Trace, candidates, suppress_many
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
    """:func:`tzn.inference.localize.localize` of every recording, with one padded pass through the trunk for all.

    Args:
        model: in evaluation mode.
        features: ``[T_i, input_dim]`` per recording, best of similar length; none longer than ``config.chunk`` unless alone.
        grids, durations: per recording.

    Returns:
        As of ``localize``, in the order of ``features``; padding has no influence but on rounding.
    """
    shared = _side_by_side(model, features, config) if len(features) > 1 else [None]
    found = [candidates(model, x, config, computed=own) for x, own in zip(features, shared, strict=True)]
    kept = suppress_many(found, grids, durations, config) if found else []
    return [(detections, one.trace) for detections, one in zip(kept, found, strict=True)]


@torch.no_grad()
def _side_by_side(model: Localizer, features: Sequence[Tensor], config: InferenceConfig) -> Sequence[Points | None]:
    """What the network says of every recording."""
    # ActionFormer's absolute positions are stretched by the padded length, so it is not the same alone; an exported program
    # takes one recording.
    if isinstance(model, ExportedNetwork) or (isinstance(model, ActionFormer) and model.config.use_abs_pe):
        return [None] * len(features)
    lengths = [x.shape[0] for x in features]
    together = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    device = together.device
    mask = torch.arange(together.shape[1], device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
    points = model.points(together, mask, budget=config.budget, depth_shift=dial_of(model, config))
    return [_points_of(points, row, steps) for row, steps in enumerate(lengths)]


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

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
from tzn.inference.localize import Computed, Trace, localize
from tzn.models import ActionFormer, Localizer
from tzn.models.actionformer import ActionFormerOutputs
from tzn.models.temporal_zoom_net import Depths, Trunk
from tzn.nn.pyramid import PointGrid


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
    every = zip(features, grids, durations, shared, strict=True)
    return [localize(model, x, grid, duration, config, computed=own) for x, grid, duration, own in every]


@torch.no_grad()
def _side_by_side(model: Localizer, features: Sequence[Tensor], config: InferenceConfig) -> Sequence[Computed]:
    """What the network computes before it looks for candidates, recording by recording."""
    lengths = [x.shape[0] for x in features]
    together = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    device = together.device
    mask = torch.arange(together.shape[1], device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
    if isinstance(model, ActionFormer):
        # Its absolute positions are stretched by the padded length, so it is not the same alone.
        if model.config.use_abs_pe:
            return [None] * len(lengths)
        outputs = model(*model.padded(together, mask))
        rows = range(len(lengths))
        return [ActionFormerOutputs(*([x[i : i + 1] for x in levels] for levels in outputs)) for i in rows]
    trunk = model.trunk(together, mask, budget=config.budget)
    return [_trunk_of(trunk, row, steps) for row, steps in enumerate(lengths)]


def _trunk_of(trunk: Trunk, row: int, steps: int) -> Trunk:
    """The trunk of one recording, as if it had been alone: its own steps, and its own points with a pad after each level."""
    own = slice(row, row + 1)
    chosen = (trunk.points.position - trunk.points.stride < steps).nonzero().squeeze(1)
    return Trunk(
        PointGrid(*(x[chosen] for x in trunk.points)),
        trunk.point_features[own, chosen],
        trunk.point_mask[own, chosen],
        None if trunk.boundary_features is None else trunk.boundary_features[own, :steps],
        trunk.mask[own, :steps],
        Depths(trunk.depths.tau[own, :steps], trunk.depths.gates[own, :steps]),
    )

"""Definition of the boundary distance targets (docs/design.md section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def signed_distance(boundaries: Tensor, num_steps: int, radius: float) -> Tensor:
    """d(t) = t - b*(t), b* the boundary nearest to t, clipped to +-radius. ``boundaries`` ``[..., K]`` -> ``[..., T]``.

    Non-finite boundaries are padding. Without any boundary every step reads ``radius``, which no loss looks at.
    """
    time = torch.arange(num_steps, device=boundaries.device, dtype=boundaries.dtype)
    absent = ~torch.isfinite(boundaries)
    places, _ = boundaries.masked_fill(absent, float("inf")).sort(dim=-1)
    shape = (*boundaries.shape[:-1], num_steps)
    if boundaries.shape[-1] == 0:
        return time.new_full(shape, radius)
    later = torch.searchsorted(places, time.expand(shape).contiguous())
    last = boundaries.shape[-1] - 1
    before = time - places.gather(-1, (later - 1).clamp(0, last))
    after = time - places.gather(-1, later.clamp(0, last))
    distance = torch.where((after.abs() < before.abs()) | (later == 0), after, before)
    return torch.where(torch.isfinite(distance), distance, radius).clamp(-radius, radius)


def region_distance(segments: Tensor, num_steps: int, radius: float) -> Tensor:
    """The paper's single field: distance to the nearest boundary, negative inside a segment. ``[N, 2]`` -> ``[T]``."""
    time = torch.arange(num_steps, device=segments.device, dtype=segments.dtype)
    magnitude = signed_distance(segments.reshape(-1), num_steps, radius).abs()
    inside = ((time[:, None] > segments[:, 0]) & (time[:, None] < segments[:, 1])).any(1)
    return torch.where(inside, -magnitude, magnitude)

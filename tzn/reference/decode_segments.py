"""Definition of the step from offsets to segments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tzn.reference.boundary_crossings import Crossings


class Segments(NamedTuple):
    """Segments in grid steps and the standard errors of their ends."""

    segments: Tensor  # [N, 2]
    std: Tensor  # [N, 2]


def decode_segments(
    position: Tensor,
    offset: Tensor,
    offset_std: Tensor,
    starts: Crossings | None = None,
    ends: Crossings | None = None,
    *,
    snap_sigmas: float = 3.0,
) -> Segments:
    """Segments (t - left, t + right) with each end fused with the nearest crossing by inverse variance.

    Args:
        position: ``[N]`` grid time of the points, or ``[B, N]`` of B recordings.
        offset: ``[N, 2]`` or ``[B, N, 2]`` left and right distances in grid steps.
        offset_std: their standard deviations in grid steps.
        starts, ends: crossings of the recordings (``[B, K]``, B = 1 for ``[N]``); None leaves the anchor-free segments as
            they are.
        snap_sigmas: a crossing farther off than this many combined standard errors is not the same boundary; nor is
            one used whose standard error exceeds the end's own.
    """
    if position.dim() == 2:
        if position.shape[0] == 0:
            return Segments(offset.clone(), offset_std.clone())
        rows = []
        for row in range(position.shape[0]):
            first, last = (None if c is None else Crossings(*(x[row : row + 1] for x in c)) for c in (starts, ends))
            rows.append(
                decode_segments(position[row], offset[row], offset_std[row], first, last, snap_sigmas=snap_sigmas)
            )
        return Segments(*(torch.stack(x) for x in zip(*rows, strict=True)))
    ends_of = torch.stack([position - offset[:, 0], position + offset[:, 1]], dim=1)
    std = offset_std
    if starts is not None and ends is not None:
        fused = [
            _fuse(ends_of[:, side], std[:, side], crossings, snap_sigmas)
            for side, crossings in enumerate((starts, ends))
        ]
        refined = torch.stack([f[0] for f in fused], dim=1)
        # Ends that cross over would lose the segment: keep the anchor-free ends there.
        ordered = (refined[:, 1] > refined[:, 0])[:, None]
        ends_of = torch.where(ordered, refined, ends_of)
        std = torch.where(ordered, torch.stack([f[1] for f in fused], dim=1), std)
    return Segments(ends_of, std)


def _fuse(place: Tensor, std: Tensor, crossings: Crossings, snap_sigmas: float) -> tuple[Tensor, Tensor]:
    count = int(crossings.count[0])
    if count == 0 or place.numel() == 0:
        return place, std
    positions, errors = crossings.position[0, :count], crossings.std[0, :count]
    later = torch.searchsorted(positions, place.contiguous())
    before, after = (later - 1).clamp(min=0), later.clamp(max=count - 1)
    nearest = torch.where((positions[after] - place).abs() < (positions[before] - place).abs(), after, before)
    found, error = positions[nearest], errors[nearest]
    total = std**2 + error**2
    # A crossing less certain than the end itself has nothing to add; this also bounds how far an end can reach.
    snap = (error <= std) & ((found - place).abs() <= snap_sigmas * total.sqrt())
    share = std**2 / total  # weight of the crossing: the other one's variance over the sum
    return torch.where(snap, place + share * (found - place), place), torch.where(snap, std * error / total.sqrt(), std)

"""Targets of boundary distance regression."""

from __future__ import annotations

from torch import Tensor

from tzn import reference
from tzn.ops.checks import check_count, check_floating, check_shape, checks_values, fail


def signed_distance(boundaries: Tensor, num_steps: int, radius: float) -> Tensor:
    """Signed offset of every step to the nearest boundary, ``d(t) = t - b*(t)`` clipped to +-R (docs/design.md section 3).

    Args:
        boundaries: ``[..., K]`` floating, boundary times in grid steps in any order; inf or NaN entries are padding.
        num_steps: T >= 0.
        radius: R > 0 in grid steps.

    Returns:
        ``[..., T]``; ``radius`` everywhere where there is no boundary.

    Raises:
        ValueError: wrong dtype, negative ``num_steps``, radius not positive.
    """
    check_floating("boundaries", boundaries)
    if boundaries.dim() < 1:
        fail("boundaries", "a scalar", "[..., K]")
    _check_extent(num_steps, radius)
    return reference.signed_distance(boundaries, num_steps, radius)


def region_distance(segments: Tensor, num_steps: int, radius: float) -> Tensor:
    """The paper's single field: distance to the nearest boundary, negative inside a segment, positive outside.

    Args:
        segments: ``[N, 2]`` floating (start, end) in grid steps, start <= end.
        num_steps, radius: as in :func:`signed_distance`.

    Returns:
        ``[T]``. Where segments touch there is no sign change: use separate start and end fields for those.

    Raises:
        ValueError: wrong shape or dtype, a segment with end < start, as in :func:`signed_distance`.
    """
    check_floating("segments", segments)
    check_shape("segments", segments, "[N, 2]", None, 2)
    if checks_values(segments) and bool((segments[:, 1] < segments[:, 0]).any()):
        fail("segments", "a segment with end < start", "start <= end")
    _check_extent(num_steps, radius)
    return reference.region_distance(segments, num_steps, radius)


def _check_extent(num_steps: int, radius: float) -> None:
    check_count("num_steps", num_steps, 0)
    if not radius > 0:
        fail("radius", radius, "> 0")

"""Definition of boundary extraction from a distance field: zero crossings, votes and their standard errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SQRT2 = 2**0.5
ESTIMATORS = (
    "crossing",
    "vote_mean",
    "vote_median",
)  # numbered so in csrc/cpu/boundary_crossings.cpp and in the kernels


class Crossings(NamedTuple):
    """Boundaries found in ``B`` fields, ascending per field; entries past ``count`` are +inf (slope: 0).

    K is a capacity: T // 2, because two crossings lie two steps apart or more.
    """

    position: Tensor  # [B, K] grid steps
    std: Tensor  # [B, K] standard error in grid steps
    slope: Tensor  # [B, K] of the field at the crossing
    count: Tensor  # type: ignore[assignment]  # [B] int64

    def table(self) -> list[Tensor]:
        """What decoding reads of them: position, std, count."""
        return [self.position, self.std, self.count]

    @classmethod
    def of_table(cls, position: Tensor, std: Tensor, count: Tensor) -> Crossings:
        return cls(position, std, torch.zeros_like(position), count)


def boundary_crossings(
    distance: Tensor,
    scale: Tensor,
    *,
    estimator: str = "vote_median",
    vote_window: int = 4,
    min_slope: float = 0.5,
    mask: Tensor | None = None,
) -> Crossings:
    """Boundaries of fields ``distance`` ``[B, T]`` with Laplace scales ``scale`` ``[B, T]`` (both in grid steps).

    A boundary is an up-crossing d(t) < 0 <= d(t + 1) with slope above ``min_slope``, at t - d(t) / slope. Votes are
    t' - d(t') of the steps within ``vote_window`` of it, as far as they land within ``vote_window`` too (a vote that
    lands farther off speaks of another boundary).
    """
    valid = torch.ones_like(distance, dtype=torch.bool) if mask is None else mask
    left, right = distance[:, :-1], distance[:, 1:]
    slope = right - left
    crossing = (left < 0) & (right >= 0) & (slope > min_slope) & valid[:, :-1] & valid[:, 1:]
    field, step = crossing.nonzero(as_tuple=True)
    d0, rise = left[field, step], slope[field, step]
    fraction = -d0 / rise
    position = step + fraction
    if estimator == "crossing":
        b0, b1 = scale[field, step], scale[field, step + 1]
        std = SQRT2 * torch.hypot((1 - fraction) * b0, fraction * b1) / rise
    else:
        votes, spread = _votes(distance, scale, valid, field, position, vote_window)
        combine = _weighted_median if estimator == "vote_median" else _weighted_mean
        position, std = combine(votes, spread)
    return _pad_per_field(field, position, std, rise, *distance.shape)


def _votes(
    distance: Tensor, scale: Tensor, valid: Tensor, field: Tensor, position: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Votes ``[N, 2 W + 2]`` around every crossing and their scales, +inf where no vote is cast."""
    steps = distance.shape[1]
    reach = min(window, steps)  # a wider window reaches every step as well
    around = position.detach().floor().long()[:, None] + torch.arange(-reach, reach + 2, device=distance.device)
    inside = (around >= 0) & (around < steps) & ((around - position[:, None]).abs() <= window)
    around = around.clamp(0, steps - 1)
    row = field[:, None]
    votes = around - distance[row, around]
    cast = inside & valid[row, around] & ((votes - position[:, None]).abs() <= window)
    infinite = torch.full_like(votes, float("inf"))
    return torch.where(cast, votes, position[:, None]), torch.where(cast, scale[row, around], infinite)


def _weighted_median(votes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum likelihood under Laplace noise: median with weights 1 / scale; its Fisher information is sum 1 / scale^2."""
    order = votes.argsort(dim=-1)
    votes, weight = votes.gather(-1, order), (1 / scale).gather(-1, order)
    reached = weight.cumsum(-1)
    half = reached[:, -1:] / 2
    # Where exactly half of the weight lies on either side every point between is a median: take the middle.
    low = votes.gather(-1, (reached >= half * (1 - 1e-6)).to(torch.uint8).argmax(-1, keepdim=True))
    high = votes.gather(-1, (reached > half * (1 + 1e-6)).to(torch.uint8).argmax(-1, keepdim=True))
    return (0.5 * (low + high)).squeeze(-1), scale.pow(-2).sum(-1).rsqrt()


def _weighted_mean(votes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-variance mean; the variance of a Laplace variable is 2 scale^2."""
    weight = scale.pow(-2)
    total = weight.sum(-1)
    return (votes * weight).sum(-1) / total, SQRT2 * total.rsqrt()


def _pad_per_field(field: Tensor, position: Tensor, std: Tensor, slope: Tensor, fields: int, steps: int) -> Crossings:
    """Sort by (field, position) and lay out as ``[B, T // 2]``."""
    order = position.detach().argsort(stable=True)
    order = order[field[order].argsort(stable=True)]
    field, position, std, slope = (x[order] for x in (field, position, std, slope))
    count = torch.bincount(field, minlength=fields)
    column = torch.arange(field.numel(), device=field.device) - (count.cumsum(0) - count)[field]
    infinite = position.new_full((fields, steps // 2), float("inf"))
    return Crossings(
        infinite.index_put((field, column), position),
        infinite.index_put((field, column), std),
        torch.zeros_like(infinite).index_put((field, column), slope),
        count,
    )

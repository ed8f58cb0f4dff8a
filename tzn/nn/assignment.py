"""Which points learn which segment: centre sampling with regression ranges (ActionFormer's rules)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PointTargets(NamedTuple):
    classes: Tensor  # [P, C] float32, multi-hot
    offsets: Tensor  # [P, 2] float32, (left, right) in units of the point's stride; garbage where not positive
    positive: Tensor  # [P] bool


def assign_points(
    position: Tensor,
    stride: Tensor,
    ranges: Tensor,
    segments: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    center_radius: float | None = 1.5,
) -> PointTargets:
    """Targets of ``P`` points for ``N`` segments ``[N, 2]`` (grid steps), labels ``[N]``.

    A point is positive for a segment when it lies strictly inside the centre region (within ``center_radius`` strides of
    the centre; None: anywhere inside) and its larger offset is within the point's range ``ranges`` ``[P, 2]``, both ends
    included. The shortest such segment wins; others within 1e-3 of its length add their classes.
    """
    points, count = position.shape[0], segments.shape[0]
    if count == 0:
        nothing = position.new_zeros(points)
        return PointTargets(position.new_zeros(points, num_classes), position.new_zeros(points, 2), nothing > 0)
    time = position[:, None]
    start, end = segments[:, 0][None], segments[:, 1][None]
    left, right = time - start, end - time
    if center_radius is None:
        inside = (left > 0) & (right > 0)
    else:
        center, reach = 0.5 * (start + end), center_radius * stride[:, None]
        inside = (time - torch.maximum(center - reach, start) > 0) & (torch.minimum(center + reach, end) - time > 0)
    farthest = torch.maximum(left, right)
    fits = (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    length = torch.where(inside & fits, end - start, float("inf"))
    shortest, owner = length.min(dim=1)
    positive = torch.isfinite(shortest)
    shares = (length <= shortest[:, None] + 1e-3) & torch.isfinite(length)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).to(position.dtype)
    classes = (shares.to(position.dtype) @ one_hot).clamp(max=1)
    index = owner[:, None]
    offsets = torch.cat([left.gather(1, index), right.gather(1, index)], dim=1) / stride[:, None]
    return PointTargets(classes, offsets, positive)

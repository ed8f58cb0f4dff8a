"""The head of boundary distance regression (BDR)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tzn.nn.conv import ConvTower
from tzn.ops._fused import fused

MIN_SCALE = 0.05  # grid steps; keeps the likelihood bounded where a boundary is annotated exactly on the grid


class BoundaryDistanceHead(nn.Module):
    """Signed distance and its Laplace scale for ``num_fields`` kinds of boundaries at every step.

    Works on any ``[B, T, C]`` features, so it can be added to another localizer as it stands.

    Args:
        in_channels: channels of the features.
        num_fields: 2 (starts and ends) or 1 (region).
        width, layers: hidden channels and layers of the convolution tower.
        radius: R; distances saturate softly at +-R steps.

    Raises:
        ValueError: no channels, another number of fields, a radius that is not positive; ``x`` that is not ``[B, T, C]``.
    """

    def __init__(self, in_channels: int, num_fields: int = 2, width: int = 256, layers: int = 2, radius: float = 8.0):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected a positive number of channels")
        if num_fields not in (1, 2):
            raise ValueError(f"num_fields: got {num_fields}, expected 2 (starts and ends) or 1 (region)")
        if not radius > 0:
            raise ValueError(f"radius: got {radius}, expected > 0 steps")
        self.in_channels = in_channels
        self.num_fields, self.radius = num_fields, radius
        self.tower = ConvTower(in_channels, width, 2 * num_fields, layers)
        nn.init.normal_(self.tower.output.weight, std=0.01)
        nn.init.zeros_(self.tower.output.bias)
        with torch.no_grad():  # start unsure: a scale of half the radius
            self.tower.output.bias[num_fields:] = math.log(math.expm1(radius / 2))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, C]`` zero outside ``mask`` ``[B, T]`` to distance and scale, each ``[B, F, T]`` float32, in steps."""
        if x.dim() != 3 or x.shape[2] != self.in_channels:
            swapped = x.dim() == 3 and x.shape[1] == self.in_channels
            hint = ": [B, C, T]? transpose(1, 2) gives [B, T, C]" if swapped else ""
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [B, T, C] with C = {self.in_channels}{hint}")
        output = self.tower.output
        if (kernels := fused(x, output.weight)) is not None:
            return kernels.fields(self.tower.hidden(x, mask), output.weight, output.bias, self.radius, MIN_SCALE)  # type: ignore[no-any-return]
        distance, scale = self._fields(self.tower(x, mask))
        return distance.transpose(1, 2), scale.transpose(1, 2)

    def at(self, x: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and scale ``[N, F]`` at flattened ``[B * T]`` steps ``rows`` only."""
        return self._fields(self.tower.at(x, mask, rows))

    def _fields(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        distance, spread = raw.float().split(self.num_fields, dim=-1)
        # tanh keeps a slope of 1 through zero and respects the clipping of the targets.
        return self.radius * torch.tanh(distance / self.radius), nn.functional.softplus(spread) + MIN_SCALE

"""The control for boundary distance regression: offsets as the mean of a distribution over bins.

As TriDet's and GFL's heads do (Shi et al. 2023; Li et al. 2020), each side's offset is sum_k k softmax(logits)_k strides.
Like TriDet's, it is trained by the IoU loss of the offsets alone. For experiments only: a control has no place in the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.models import temporal_zoom_net
from tzn.models.config import TemporalZoomNetConfig
from tzn.models.temporal_zoom_net import MIN_OFFSET_SCALE, OffsetHead
from tzn.nn.conv import Conv3

BINS = 17  # 0 … 16 strides, TriDet's number


class DistributionOffsetHead(OffsetHead):
    """As :class:`tzn.models.temporal_zoom_net.OffsetHead`, offsets read off a distribution."""

    def __init__(self, config: TemporalZoomNetConfig) -> None:
        super().__init__(config)
        width = config.head_width if config.head_layers else config.width
        self.tower.output = Conv3(width, 2 * BINS)

    def _decode(self, raw: Tensor, spread: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        share = raw.float().unflatten(-1, (2, BINS)).softmax(-1)
        mean = share @ torch.arange(BINS, dtype=torch.float32, device=raw.device)
        return mean * F.softplus(self.level_scale[level]).unsqueeze(-1), F.softplus(spread.float()) + MIN_OFFSET_SCALE


@contextlib.contextmanager
def distribution_heads() -> Iterator[None]:
    """Inside, every TemporalZoomNet that is built (also when a checkpoint is loaded) has this head."""
    plain = temporal_zoom_net.OffsetHead
    temporal_zoom_net.OffsetHead = DistributionOffsetHead  # type: ignore[misc]
    try:
        yield
    finally:
        temporal_zoom_net.OffsetHead = plain  # type: ignore[misc]

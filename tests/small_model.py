"""A small random localizer that has something to decode, shared by tests of inference."""

from __future__ import annotations

import torch

from tzn.data.grid import TimeGrid
from tzn.models import TemporalZoomNet, TemporalZoomNetConfig

GRID = TimeGrid(0.1, 0.05)
CONFIG = TemporalZoomNetConfig(
    input_dim=7, num_classes=4, width=16, num_heads=2, window=5, head_width=12, boundary_width=12, first_stride=2,
    num_levels=3, regression_ranges=((0, 4), (4, 8), (8, 10000)), refinement_layers=2, drop_path=0.0, boundary_radius=6,
)  # fmt: skip


def build(**changes) -> TemporalZoomNet:
    """A random network with confident classes and steep distance fields, so that there is something to decode."""
    torch.manual_seed(3)
    model = TemporalZoomNet(CONFIG.replace(**changes)).eval()
    with torch.no_grad():
        model.class_head.output.weight.mul_(4)
        model.class_head.output.bias.fill_(-2.0)
        if model.boundary_head is not None:
            fields = model.boundary_head.num_fields
            rows = model.boundary_head.tower.output.weight[:fields]
            rows.normal_(std=2.0)  # rows without mean: hidden features are positive, distances must take both signs
            rows.sub_(rows.mean(1, keepdim=True))
            model.boundary_head.tower.output.bias[fields:].fill_(-1.0)
        model.offset_head.tower.output.bias.fill_(2.0)
        if model.boundary_stream is not None:
            for exit_ in model.boundary_stream.exits:
                exit_.weight.normal_(std=0.5)
        if model.depth_predictor is not None:
            model.depth_predictor.logit.weight.normal_(std=2.0)
            model.depth_predictor.logit.bias.zero_()
    return model


def features(steps: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, 7, generator=torch.Generator().manual_seed(seed))

"""Block and head in foreign code: what they refuse, and the documented example."""

from __future__ import annotations

import doctest

import pytest
import torch

from tzn import nn
from tzn.nn import block as block_file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 3, 5), "num_heads: got 3, expected a divisor of width = 10"),
        ((8, 2, 4), "window: got 4, expected an odd"),
        ((8, 2, 5, 0.0), "mlp_ratio: got 0.0"),
        ((8, 2, 5, 4.0, 1.0), "drop_path: got 1.0"),
    ],
    ids=["heads", "even-window", "no-hidden-channel", "always-dropped"],
)
def test_a_block_that_cannot_be_is_refused_where_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.VariableDepthBlock(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, "in_channels: got 0"),
        ({"in_channels": 4, "num_fields": 3}, "num_fields: got 3"),
        ({"in_channels": 4, "radius": 0.0}, "radius: got 0.0"),
    ],
    ids=["channels", "fields", "radius"],
)
def test_a_head_that_cannot_be_is_refused_where_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        nn.BoundaryDistanceHead(**settings)


def test_channels_before_time_are_named_as_such():
    """Not as a weight of the wrong shape: who comes from ``[B, C, T]`` code has transposed nothing."""
    mask = torch.ones(2, 11, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 8, 11\).*\[B, C, T\]\? transpose"):
        nn.VariableDepthBlock(8, 2, 5)(torch.randn(2, 8, 11), mask)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 8, 11\).*\[B, C, T\]\? transpose"):
        nn.BoundaryDistanceHead(8, width=4)(torch.randn(2, 8, 11), mask)


def test_the_example_in_the_block_runs():
    failed, tried = doctest.testmod(block_file, extraglobs={"torch": torch})
    assert tried == 4 and not failed


def test_losses_come_with_the_modules():
    error, scale = torch.tensor([0.5, -0.25]), torch.tensor([1.0, 0.5])
    assert nn.laplace_loss(error, scale) == pytest.approx(1.0 + torch.log(4 * scale.prod()).item(), rel=1e-6)
    assert {"focal_loss", "diou_loss", "laplace_loss", "boundary_distance_loss", "depth_budget_loss"} <= set(nn.__all__)

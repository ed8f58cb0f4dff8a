from __future__ import annotations

import math

import pytest
import torch

from tzn import ops
from tzn.nn.losses import boundary_distance_loss, depth_budget_loss, diou_loss, focal_loss, laplace_loss


def test_focal_loss_by_hand():
    logits, targets = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = 0.0
    for z, y in zip(logits.tolist(), targets.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        correct = p if y else 1 - p
        expected -= (0.25 if y else 0.75) * (1 - correct) ** 2 * math.log(correct)
    assert float(focal_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_diou_loss_by_hand():
    offset, target = torch.tensor([[2.0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0]])
    overlap, union, hull = 1 + 3, 5 + 5 - 4, 2 + 4
    shift = 0.5 * ((3 - 2) - (4 - 1))
    expected = 1 - overlap / union + (shift / hull) ** 2  # the second pair is perfect
    assert float(diou_loss(offset, target)) == pytest.approx(expected)


def test_laplace_loss_is_least_at_the_mean_absolute_error():
    error = torch.tensor([0.5, -1.5, 1.0])
    values = {b: float(laplace_loss(error, torch.full((3,), b))) for b in (0.5, 0.9, 1.0, 1.1, 2.0)}
    assert min(values, key=values.get) == 1.0


def test_losses_have_gradients():
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(z.double(), (torch.arange(5) % 2).double()).double(), logits, eps=1e-3, atol=1e-3
    )


def test_boundary_loss_sees_only_steps_near_a_boundary():
    target = ops.signed_distance(torch.tensor([[10.0]]), 30, 4.0)
    mask = torch.ones_like(target, dtype=torch.bool)
    scale = torch.ones_like(target)
    far_wrong = target.clone()
    far_wrong[0, 20:] = -3.0
    value, steps = boundary_distance_loss(far_wrong, scale, target, 4.0, mask, kind="laplace", slope_weight=1.0)
    assert int(steps) == 7  # |t - 10| < 4
    assert float(value) == pytest.approx(7 * math.log(2))
    near_wrong = target.clone()
    near_wrong[0, 10] += 0.5
    worse, _ = boundary_distance_loss(near_wrong, scale, target, 4.0, mask, kind="laplace", slope_weight=0.0)
    assert float(worse) == pytest.approx(7 * math.log(2) + 0.5)
    sloped, _ = boundary_distance_loss(near_wrong, scale, target, 4.0, mask, kind="laplace", slope_weight=1.0)
    assert float(sloped) == pytest.approx(7 * math.log(2) + 0.5 + 2 * 0.25)  # two slopes are off by a half


def test_the_papers_form_is_l1_with_squared_changes():
    target = ops.signed_distance(torch.tensor([[5.0]]), 11, 3.0)
    mask = torch.ones_like(target, dtype=torch.bool)
    value, steps = boundary_distance_loss(target * 0, target * 0 + 1, target, 3.0, mask, kind="l1", slope_weight=0.1)
    assert int(steps) == 5 and float(value) == pytest.approx(2 + 1 + 0 + 1 + 2)
    value, _ = boundary_distance_loss(target, target * 0 + 1, target, 3.0, mask, kind="l1", slope_weight=0.1)
    assert float(value) == pytest.approx(0.1 * 4)


def test_depth_budget_punishes_only_excess_over_valid_steps():
    mask = torch.tensor([[True, True, False]])
    gates = ops.depth_gates(torch.tensor([[1.0, 0.5, 0.0]]), 4)
    assert float(depth_budget_loss(gates, mask, 0.5)) == pytest.approx(0.25**2)
    assert float(depth_budget_loss(gates, mask, 0.8)) == 0.0

from __future__ import annotations

import math

import pytest
import torch

from tzn import ops
from tzn.nn.losses import (
    bernoulli_divergence,
    boundary_distance_loss,
    depth_budget_loss,
    diou_loss,
    focal_loss,
    laplace_divergence,
    laplace_loss,
)


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


def test_bernoulli_divergence_by_hand_and_zero_for_equals():
    p, z = 0.3, 0.8
    q = 1 / (1 + math.exp(-z))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    value = bernoulli_divergence(torch.tensor([z, z]), torch.tensor([p, p]))
    assert float(value) == pytest.approx(2 * expected, rel=1e-5)
    logits = torch.linspace(-30, 30, 13)
    assert float(bernoulli_divergence(logits, logits.sigmoid())) == pytest.approx(0, abs=1e-5)
    certain = torch.tensor([0.0, 1.0])  # 0 log 0 is 0
    assert float(bernoulli_divergence(torch.zeros(2), certain)) == pytest.approx(2 * math.log(2))


def test_bernoulli_divergence_pulls_by_the_difference_of_probabilities():
    logits = torch.tensor([-2.0, 0.5], requires_grad=True)
    bernoulli_divergence(logits, torch.tensor([0.9, 0.1])).backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - torch.tensor([0.9, 0.1]))


def test_laplace_divergence_is_the_integral_of_the_definition():
    d, b, t, s = 1.5, 0.7, 0.2, 1.1
    x = torch.linspace(-60, 60, 1_200_001, dtype=torch.float64)
    p = torch.exp(-(x - t).abs() / s) / (2 * s)
    log_ratio = -(x - t).abs() / s - math.log(2 * s) + (x - d).abs() / b + math.log(2 * b)
    expected = float(torch.trapezoid(p * log_ratio, x))
    numbers = [torch.tensor([v], dtype=torch.float64) for v in (d, b, t, s)]
    assert float(laplace_divergence(*numbers)) == pytest.approx(expected, rel=1e-6)
    assert float(laplace_divergence(*numbers[2:], *numbers[2:])) == 0


def test_an_unsure_target_pulls_less():
    def pull(scale: float) -> float:
        d = torch.tensor([1.0], requires_grad=True)
        laplace_divergence(d, torch.ones(1), torch.zeros(1), torch.tensor([scale])).backward()
        return float(d.grad)

    assert pull(0.05) == pytest.approx(1, abs=1e-6) and pull(8.0) == pytest.approx(1 - math.exp(-1 / 8))

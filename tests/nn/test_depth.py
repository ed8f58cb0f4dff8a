from __future__ import annotations

import pytest
import torch

from tzn.nn import DepthPredictor, budget_shift, depth_from_logits


def test_depth_starts_near_one():
    torch.manual_seed(0)
    tau = depth_from_logits(DepthPredictor(32)(torch.randn(2, 50, 32)))
    assert tau.min() > 0.9


@pytest.mark.parametrize("budget", [0.001, 0.1, 0.5, 0.93, 0.999])
def test_the_dial_sets_the_mean_depth_of_each_recording_and_keeps_the_order(budget):
    torch.manual_seed(1)
    logits = 3 * torch.randn(3, 200)
    mask = torch.arange(200)[None] < torch.tensor([[200], [57], [1]])
    shift = budget_shift(logits, mask, budget)
    tau = depth_from_logits(logits + shift)
    mean = (tau * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(mean, torch.full((3,), budget), atol=1e-5, rtol=0)
    assert (tau[0][logits[0].argsort()].diff() >= 0).all()


def test_a_budget_of_one_is_full_depth():
    logits = torch.randn(1, 9)
    shift = budget_shift(logits, torch.ones(1, 9, dtype=torch.bool), 1.0)
    assert (depth_from_logits(logits + shift) == 1).all()


@pytest.mark.parametrize("budget", [0.0, 1.2, -1.0])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(ValueError, match="budget = "):
        budget_shift(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), budget)


def test_depth_reaches_both_ends_and_rises_between_them():
    tau = depth_from_logits(torch.linspace(-6, 6, 201, dtype=torch.float64))
    assert tau[0] == 0 and tau[-1] == 1
    inside = (tau > 0) & (tau < 1)
    assert inside.any() and (tau.diff()[inside[1:] & inside[:-1]] > 0).all()
    torch.testing.assert_close(tau + tau.flip(0), torch.ones_like(tau))  # deep and shallow are treated alike

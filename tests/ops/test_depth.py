from __future__ import annotations

import pytest
import torch

from tzn import ops


def test_gates_follow_the_formula():
    tau = torch.tensor([0.0, 0.25, 0.3, 0.5, 0.99, 1.0], dtype=torch.float64)
    gates = ops.depth_gates(tau, 4)
    expected = torch.stack([(4 * tau - layer).clamp(0, 1) for layer in range(4)], -1)
    assert torch.equal(gates, expected)
    assert torch.equal(gates[-1], torch.ones(4, dtype=torch.float64))
    assert gates[0].sum() == 0
    # A layer is active exactly where tau exceeds its threshold l / L.
    assert torch.equal(gates > 0, tau[:, None] > torch.arange(4) / 4)
    torch.testing.assert_close(gates.mean(-1), tau)  # the mean gate is the depth


def test_gates_have_gradients():
    tau = torch.rand(5, dtype=torch.float64).clamp(0.05, 0.95).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: ops.depth_gates(t, 3), tau)


@pytest.mark.parametrize("tau", [torch.tensor([1.1]), torch.tensor([-0.1]), torch.tensor([float("nan")])], ids=str)
def test_depths_outside_the_unit_interval_are_refused(tau):
    with pytest.raises(ValueError, match="tau: got values"):
        ops.depth_gates(tau, 2)


def test_no_layers_and_integer_depths_are_refused():
    with pytest.raises(ValueError, match="num_layers: got 0"):
        ops.depth_gates(torch.rand(3), 0)
    with pytest.raises(ValueError, match="tau: got torch.int64"):
        ops.depth_gates(torch.ones(3, dtype=torch.long), 2)


def test_halo_reaches_half_a_window_within_the_recording_and_the_mask():
    gate = torch.zeros(2, 10)
    gate[0, 4] = gate[0, 9] = gate[1, 0] = 0.5
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 3] = mask[0, 9] = False
    active, halo = ops.active_tokens(gate, 5, mask)
    assert active.tolist() == [4, 10]  # step 9 of the first recording is padding
    assert halo.tolist() == [2, 4, 5, 6, 10, 11, 12]


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)], ids=str)
def test_degenerate_shapes(shape):
    active, halo = ops.active_tokens(torch.ones(shape), 3)
    assert active.numel() == halo.numel() == shape[0] * shape[1]

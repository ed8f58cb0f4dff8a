from __future__ import annotations

import pytest
import torch
from oracle import SHAPES, assert_as_good_as_eager, random_masks

from tzn import reference
from tzn.kernels import _linear
from tzn.kernels import variable_depth_block as kernels


def _block(width, heads, window, hidden, dtype=torch.float64):
    """Weights with nothing left at a special value."""

    def random(*shape):
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    return reference.BlockWeights(
        1 + 0.3 * random(width), random(width), random(width, width), random(width), random(2 * width, width),
        random(2 * width), random(heads, window), random(width, width), random(width), 1 + 0.3 * random(width),
        random(width), random(hidden, width), random(hidden), random(width, hidden), random(width),
    )  # fmt: skip


def _given(x, gate, weights, mask, grad):
    grouped = kernels.grouped(list(weights))
    out, saved = kernels.forward(x, gate, grouped, mask, keep=True)
    dx, dgate, gradients = kernels.backward(grad, x, gate, grouped, saved)
    return [out, dx, *gradients] + ([] if gate is None else [dgate])


def _wanted(x, gate, weights, mask, grad):
    leaves = [t.clone().requires_grad_() for t in (x, *weights)] + (
        [] if gate is None else [gate.clone().requires_grad_()]
    )
    out = reference.variable_depth_block(
        leaves[0], None if gate is None else leaves[16], reference.BlockWeights(*leaves[1:16]), mask=mask
    )
    grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return [out.detach()] + [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]


def _inputs(batch, steps, width, active, lengths, dtype=torch.float64):
    mask, query = random_masks(batch, steps, active, lengths)
    x = torch.randn(batch, steps, width).to(dtype)
    gate = ((0.1 + 0.9 * torch.rand(batch, steps)) * query).to(dtype)
    return x, gate, mask, torch.randn(batch, steps, width).to(dtype)


# The op returns before it launches anything where there are no rows: tests/kernels/test_ops.py.
ROWS = [shape for shape in SHAPES if shape[1] * shape[2] > 0]


@pytest.mark.parametrize(("name", "batch", "steps", "window", "active", "lengths"), ROWS, ids=[s[0] for s in ROWS])
def test_output_and_gradients_in_float64(name, batch, steps, window, active, lengths):
    torch.manual_seed(0)
    x, gate, mask, grad = _inputs(batch, steps, 12, active, lengths)
    weights = _block(12, 2, window, 20)
    for a, b in zip(_given(x, gate, weights, mask, grad), _wanted(x, gate, weights, mask, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_eager(dtype):
    torch.manual_seed(1)
    x, gate, mask, grad = _inputs(2, 50, 64, 0.5, (50, 31), dtype)
    weights = _block(64, 2, 9, 128, dtype)
    double = reference.BlockWeights(*(w.double() for w in weights))
    exact = _wanted(x.double(), gate.double(), double, mask, grad.double())
    eager = _wanted(x, gate, weights, mask, grad)
    for a, b, c in zip(_given(x, gate, weights, mask, grad), eager, exact, strict=True):
        assert_as_good_as_eager(a, b, c)


def test_without_gate_every_valid_token_is_updated():
    torch.manual_seed(2)
    x, _, mask, grad = _inputs(2, 40, 12, 1.0, (40, 9))
    weights = _block(12, 2, 5, 20)
    for a, b in zip(_given(x, None, weights, mask, grad), _wanted(x, None, weights, mask, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_rows_split_over_several_parts(monkeypatch):
    monkeypatch.setattr(_linear, "SPLIT_ROWS", 16)
    torch.manual_seed(3)
    x, gate, mask, grad = _inputs(3, 61, 12, 0.6, (61, 30, 0))
    weights = _block(12, 3, 5, 20)
    for a, b in zip(_given(x, gate, weights, mask, grad), _wanted(x, gate, weights, mask, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_rows_that_are_not_active_pass_bit_for_bit_and_inputs_stay():
    torch.manual_seed(4)
    x, gate, mask, _ = _inputs(2, 40, 12, 0.3, (40, 17), torch.float32)
    weights = _block(12, 2, 5, 20, torch.float32)
    before = x.clone(), gate.clone()
    out, _ = kernels.forward(x, gate, kernels.grouped(list(weights)), mask, keep=False)
    idle = ~(mask & (gate > 0))
    assert torch.equal(out[idle], x[idle])
    assert not torch.equal(out[~idle], x[~idle])
    assert torch.equal(x, before[0])
    assert torch.equal(gate, before[1])

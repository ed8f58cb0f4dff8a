"""The block over the kernels: strides and empty input. All that holds on every back end is in tests/ops, run alongside."""

from __future__ import annotations

import pytest
import torch
from oracle import gradients, random_masks

from tzn import ops
from tzn.nn import VariableDepthBlock


def _block_inputs(batch=2, steps=30, width=16):
    torch.manual_seed(0)
    mask, query = random_masks(batch, steps, 0.5, (steps, steps // 2)[:batch])
    return torch.randn(batch, steps, width), torch.rand(batch, steps) * query, mask


def test_auto_never_takes_the_interpreter(monkeypatch):
    assert ops.choose_backend() == "triton"
    monkeypatch.setenv("TZN_BACKEND", "auto")
    assert ops.choose_backend() != "triton"


@pytest.mark.parametrize("shape", [(0, 7), (2, 0)], ids=str)
def test_a_block_of_no_rows_has_gradients_of_zero(shape):
    block = VariableDepthBlock(16, 2, 5)
    x = torch.zeros(*shape, 16, requires_grad=True)
    out = block(x, torch.ones(shape, dtype=torch.bool), torch.ones(shape))
    assert out.shape == x.shape
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("layout", ["permuted", "every-second-channel"])
def test_strided_input_and_gradient(layout):
    x, gate, mask = _block_inputs()
    view = (
        x.transpose(0, 1).contiguous().transpose(0, 1) if layout == "permuted" else x.repeat_interleave(2, 2)[..., ::2]
    )
    weights = VariableDepthBlock(16, 2, 5).weights()

    def run(x, gate):
        return ops.variable_depth_block(x, gate, weights, mask=mask).transpose(0, 1)

    assert torch.equal(run(view, gate), run(x, gate))
    for a, b in zip(gradients(run, (view, gate)), gradients(run, (x, gate)), strict=True):
        assert torch.equal(a, b)

"""The public ops over the kernels: autocast, strides, gradients that meet, empty input. Parity: tests/ops, run alongside."""

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


def test_float16_autocast_keeps_the_residual_stream_and_the_gradients_in_float32():
    x, gate, mask = _block_inputs()
    block = VariableDepthBlock(16, 2, 5)
    with torch.autocast("cpu", torch.float16):
        out = block(x, mask, gate)
    assert out.dtype == torch.float32
    assert not torch.equal(out, block(x, mask, gate))
    torch.testing.assert_close(out, block(x, mask, gate), rtol=1e-2, atol=1e-2)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())


def test_autocast_of_attention_is_that_of_pytorch():
    q, k, v = torch.randn(3, 1, 2, 20, 16)
    with torch.autocast("cpu", torch.float16):
        out = ops.local_attention(q, k, v, 5)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), ops.local_attention(q, k, v, 5), rtol=1e-2, atol=1e-2)


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


def test_a_stack_compiles_to_one_graph_of_kernels_with_gradients():
    x, gate, mask = _block_inputs()
    blocks = torch.nn.ModuleList(VariableDepthBlock(16, 2, 5) for _ in range(2))

    def run(x, tau):
        for layer, g in enumerate(ops.depth_gates(tau, 2).unbind(-1)):
            x = blocks[layer](x, mask, g)
        return x

    seen = []

    def remember(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        torch.compile(run, fullgraph=True, backend=remember)(x, gate)
    assert sum(name.startswith("tzn_triton.variable_depth_block") for name in seen) == 2
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, (x, gate)), gradients(run, (x, gate)), strict=True):
        torch.testing.assert_close(a, b)


# opcheck compares whole buffers, so every token is active here: rows past the counts are nobody's.
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
def test_the_attention_op_passes_opcheck(masked, permuted):
    q, k, v = torch.randn(3, 2, 2, 11, 6)
    if permuted:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    mask, query = random_masks(2, 11, 1.0, None) if masked else (None, None)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.randn(2, 5))]
    torch.library.opcheck(torch.ops.tzn_triton.attention.default, (*leaves, mask, query, 5))


@pytest.mark.parametrize("kept", [False, True])
def test_the_block_ops_pass_opcheck(kept):
    x = _block_inputs(steps=9)[0]
    mask, query = random_masks(2, 9, 1.0, None)
    gate = query.float()
    weights = [w.detach().requires_grad_(kept) for w in VariableDepthBlock(16, 2, 5).weights()]
    op = torch.ops.tzn_triton.variable_depth_block_keep if kept else torch.ops.tzn_triton.variable_depth_block
    torch.library.opcheck(op.default, (x.requires_grad_(kept), gate.requires_grad_(kept), weights, mask))


def test_other_dtypes_run_on_the_reference():
    segments = torch.tensor([[0.0, 2.0], [0.5, 2.0], [5.0, 6.0]], dtype=torch.float64)
    assert ops.nms(segments, torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64), 0.5).tolist() == [1, 2]

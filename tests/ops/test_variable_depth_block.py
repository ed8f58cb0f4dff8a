from __future__ import annotations

import pytest
import torch
from oracle import DTYPES, IDS, SHAPES, assert_as_good_as_eager, block_weights, gradients, random_masks
from torch.utils.flop_counter import FlopCounterMode

from tzn import ops, reference
from tzn.ops import BlockWeights
from tzn.ops._backend import kernels
from tzn.reference.variable_depth_block import dense_variable_depth_block as _dense

WIDTH, HEADS, HIDDEN = 8, 2, 20


def _weights(window, dtype=torch.float64, width=WIDTH, hidden=HIDDEN):
    return block_weights(width, HEADS, window, hidden, dtype)


def _case(batch, steps, active, lengths, dtype=torch.float64):
    torch.manual_seed(2)
    mask, query = random_masks(batch, steps, active, lengths)
    return torch.randn(batch, steps, WIDTH, dtype=dtype), torch.rand(batch, steps).to(dtype) * query, mask


def _results(function, x, gate, weights, mask):
    """Output and gradients of x, every weight, and the gate if there is one."""

    def run(x, *rest):
        return function(x, rest[15] if len(rest) > 15 else None, BlockWeights(*rest[:15]), mask=mask)

    leaves = [x, *weights] if gate is None else [x, *weights, gate]
    return [run(*leaves), *gradients(run, leaves)]


def _formula(x, gate, weights, mask):
    return _dense(x, torch.ones(x.shape[:2], dtype=x.dtype) if gate is None else gate, weights, mask)


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no-gate"])
@pytest.mark.parametrize(("name", "batch", "steps", "window", "active", "lengths"), SHAPES, ids=IDS)
def test_output_and_gradients_are_those_of_the_dense_formula(name, batch, steps, window, active, lengths, gated):
    x, gate, mask = _case(batch, steps, active, lengths)
    weights, gate = _weights(window), gate if gated else None
    given, wanted = (_results(f, x, gate, weights, mask) for f in (ops.variable_depth_block, _formula))
    inactive = ~mask if gate is None else ~((gate > 0) & mask)
    if gate is not None:
        wanted[-1][inactive] = 0  # the op cannot see inactive gates; the dense formula can
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert torch.equal(given[0][inactive], x[inactive])  # bit for bit


def test_without_a_gate_any_token_may_be_invalid():
    """No gradients, no gate: the mask alone says where tokens are, also in the middle of a tile and of a recording."""
    x, weights = _case(3, 150, 1.0, None)[0], _weights(7)
    mask = torch.rand(3, 150, generator=torch.Generator().manual_seed(5)) < 0.5
    mask[0, 40:140] = False
    mask[1] = False
    with torch.no_grad():
        given = ops.variable_depth_block(x, None, weights, mask=mask)
    torch.testing.assert_close(given, _formula(x, None, weights, mask), rtol=1e-10, atol=1e-11)
    assert torch.equal(given[~mask], x[~mask])


def test_gate_one_is_the_ordinary_block_exactly():
    x, _, mask = _case(2, 50, 1.0, (50, 31))
    weights = _weights(7)
    ones = torch.ones(2, 50, dtype=x.dtype)
    assert torch.equal(
        ops.variable_depth_block(x, ones, weights, mask=mask), ops.variable_depth_block(x, None, weights, mask=mask)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("active", [1.0, 0.25])
def test_error_is_at_most_twice_that_of_eager(dtype, active):
    x, gate, mask = _case(2, 97, active, (97, 60), dtype)
    weights = BlockWeights(*(w.to(dtype) for w in _weights(19)))
    exact = _results(
        reference.variable_depth_block, x.double(), gate.double(), BlockWeights(*(w.double() for w in weights)), mask
    )
    eager = _results(reference.variable_depth_block, x, gate, weights, mask)
    for ours, theirs, true in zip(
        _results(ops.variable_depth_block, x, gate, weights, mask), eager, exact, strict=True
    ):
        # A few numbers that nearly cancel differ by luck.
        assert_as_good_as_eager(ours, theirs, true, slack=2 if true.numel() >= 256 else 8)


@pytest.mark.not_interpreted("40 s of finite differences")
def test_gradcheck_through_the_depth_itself():
    torch.manual_seed(3)
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor([[0.05, 0.9, 0.4, 0.55, 0.7, 0.3]], dtype=torch.float64, requires_grad=True)
    weights = _weights(3)

    def run(x, tau):
        gates = ops.depth_gates(tau, 2)
        for layer in range(2):
            x = ops.variable_depth_block(x, gates[..., layer], weights)
        return x

    assert torch.autograd.gradcheck(run, (x, tau))


def test_is_continuous_in_tau_where_a_layer_switches_on():
    x, _, mask = _case(1, 30, 1.0, None)
    weights = _weights(5)
    tau = torch.full((1, 30), 0.5, dtype=torch.float64)
    below, above = (
        ops.variable_depth_block(x, ops.depth_gates(tau + shift, 2)[..., 1], weights, mask=mask)
        for shift in (0.0, 1e-9)
    )
    assert torch.equal(below, x)
    assert (above - below).abs().max() < 1e-7


@pytest.mark.not_interpreted("counts products of PyTorch")
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_multiply_adds_follow_the_active_tokens(share, backend):
    steps, width, hidden = 512, 32, 128
    x, weights = torch.randn(1, steps, width), _weights(19, torch.float32, width, hidden)
    active = int(share * steps)
    gate = (torch.arange(steps) < active).float()[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # from inside: outside it sees one op
        if backend == "cpp":
            kernels(backend, "variable_depth_block").forward(x, gate, list(weights), None, keep=True)
        else:
            reference.variable_depth_block(x, gate, weights)
    halo = active + 9
    projections = 2 * active * width**2 + 2 * halo * width**2 + 2 * active * width * hidden
    # The counter sees matrix products: the reference's tiles of attention, not the compiled kernel.
    tiles = 0 if backend == "cpp" else -(-active // 32) * 32 * (32 + 18) * 2 * width
    assert counter.get_total_flops() == pytest.approx(2 * (projections + tiles), rel=0.02)


def test_batch_with_padding_equals_one_at_a_time():
    x, gate, mask = _case(2, 45, 0.5, (45, 20))
    weights = _weights(9)
    together = ops.variable_depth_block(x, gate, weights, mask=mask)
    alone = ops.variable_depth_block(x[1:, :20], gate[1:, :20], weights)
    torch.testing.assert_close(together[1:, :20], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["permuted", "every-second-channel"])
def test_strided_input_and_gradient(layout):
    x, gate, mask = _case(2, 21, 0.5, (21, 10))
    wide = x.transpose(0, 1).contiguous().transpose(0, 1)
    view = wide if layout == "permuted" else x.repeat_interleave(2, 2)[..., ::2]
    before, weights = view.clone(), _weights(5)

    def run(x, gate):
        return ops.variable_depth_block(x, gate, weights, mask=mask).transpose(0, 1)

    out = run(view, gate)
    assert torch.equal(view, before) and out.data_ptr() != view.data_ptr()
    torch.testing.assert_close(out, run(x, gate), rtol=0, atol=1e-13)
    for a, b in zip(gradients(run, (view, gate)), gradients(run, (x, gate)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_registered_op_passes_opcheck():
    x, gate, mask = _case(2, 11, 0.5, (11, 6), torch.float32)
    weights = [w.float().requires_grad_() for w in _weights(5)]
    torch.library.opcheck(
        torch.ops.tzn.variable_depth_block.default, (x.requires_grad_(), gate.requires_grad_(), weights, mask)
    )


def test_compiles_to_one_graph_and_exports():
    x, gate, mask = _case(2, 20, 0.5, (20, 9), torch.float32)
    weights = BlockWeights(*(w.float() for w in _weights(5)))

    class Block(torch.nn.Module):
        def forward(self, x, gate):
            return ops.variable_depth_block(x, gate, weights, mask=mask)

    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, (x, gate)), gradients(block, (x, gate)), strict=True):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(block, (x, gate))
    torch.testing.assert_close(exported.module()(x, gate), block(x, gate))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 8)}, "x: got shape"),
        ({"gate": torch.full((1, 10), -0.1)}, "gate: got a negative"),
        ({"gate": torch.full((1, 10), float("nan"))}, "gate: got a negative or NaN"),
        ({"gate": torch.zeros(1, 9)}, "gate: got shape"),
        ({"mask": torch.zeros(1, 10)}, "mask: got torch.float32"),
    ],
    ids=["x-shape", "negative-gate", "nan-gate", "gate-shape", "mask-dtype"],
)
def test_clear_errors(change, message):
    given = {"x": torch.zeros(1, 10, WIDTH), "gate": torch.ones(1, 10), "mask": None} | change
    weights = BlockWeights(*(w.float() for w in _weights(5)))
    with pytest.raises(ValueError, match=message):
        ops.variable_depth_block(given["x"], given["gate"], weights, mask=given["mask"])

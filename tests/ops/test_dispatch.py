"""What every op promises of PyTorch's dispatcher: derivatives right or an error, one autocast rule, one way in."""

from __future__ import annotations

import pytest
import torch
from oracle import block_weights, candidates

from tzn import ops, reference
from tzn.ops import BlockWeights

STEPS, HEADS, WIDTH = 7, 2, 4


def _random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def _attention(q, k, v, bias):
    query = torch.arange(STEPS)[None] % 3 != 1
    return ops.local_attention(q, k, v, 3, query_mask=query, bias=bias)


def _attention_inputs():
    q, k, v = (_random(1, HEADS, STEPS, WIDTH) + shift for shift in (0.0, 0.1, 0.2))
    return q, k, v, _random(HEADS, 3)


def _block(x, gate, *weights):
    return ops.variable_depth_block(x, gate, BlockWeights(*weights))


def _block_inputs():
    gate = torch.tensor([[0.3, 0.0, 0.7, 1.0, 0.0, 0.0, 0.5]], dtype=torch.float64)
    return (_random(1, STEPS, WIDTH), gate, *block_weights(WIDTH, HEADS, 3, 6))


DIFFERENTIABLE = {
    "local_attention": (_attention, _attention_inputs, (0, 1, 2, 3)),
    # Inactive gates are at a kink: the derivative to the right is not 0.
    "variable_depth_block": (_block, _block_inputs, (0, 2, 4, 8, 13)),
}


def _leaves(name):
    function, inputs, chosen = DIFFERENTIABLE[name]
    given = [x.requires_grad_() if i in chosen else x for i, x in enumerate(inputs())]
    return function, given, [given[i] for i in chosen]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives(name):
    function, given, _ = _leaves(name)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_of_a_scalar_whose_gradient_is_a_constant(name):
    """``out.sum()`` hands a gradient to the backward pass that needs none itself: the case that was silently wrong."""
    function, given, leaves = _leaves(name)
    first = torch.autograd.grad(function(*given).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves[0])[0]
    step = 1e-6
    direction = _random(*leaves[0].shape)

    def slope(shift):
        moved = [x.detach().clone().requires_grad_(x.requires_grad) for x in given]
        moved[0] = (given[0].detach() + shift * direction).requires_grad_()
        wanted = [x for x in moved if x.requires_grad]
        found = torch.autograd.grad(function(*moved).sum(), wanted)
        return sum(g.square().sum() for g in found)

    numeric = (slope(step) - slope(-step)) / (2 * step)
    torch.testing.assert_close((second * direction).sum(), numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_and_function_transforms(name):
    function, inputs, _ = DIFFERENTIABLE[name]
    given = inputs()
    tangents = tuple(
        _random(*x.shape) if i != 1 or name != "variable_depth_block" else torch.zeros_like(x)
        for i, x in enumerate(given)
    )
    step = 1e-6
    shifted = [[x + sign * step * t for x, t in zip(given, tangents, strict=True)] for sign in (1, -1)]
    numeric = (function(*shifted[0]) - function(*shifted[1])) / (2 * step)
    torch.testing.assert_close(torch.func.jvp(function, given, tangents)[1], numeric, rtol=1e-6, atol=1e-8)
    weight = _random(*numeric.shape)
    gradient = torch.func.grad(lambda x: (function(x, *given[1:]) * weight).sum())(given[0])
    leaf = given[0].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad((function(leaf, *given[1:]) * weight).sum(), leaf)[0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("backend_of_compile", ["aot_eager", "inductor"])
def test_compiled_gradients_take_the_kernels(name, backend_of_compile, monkeypatch):
    """Forward and backward of a compiled program are the same ops as in eager mode, not the definition."""
    function, given, leaves = _leaves(name)
    called = []
    module = torch.ops.tzn
    compiled = torch.compile(function, fullgraph=True, backend=backend_of_compile)
    with torch.profiler.profile() as profile:
        found = torch.autograd.grad(compiled(*given).square().sum(), leaves)
    called = {event.key for event in profile.key_averages()}
    assert {f"tzn::_{name}_forward", f"tzn::_{name}_backward"} <= called, module
    wanted = torch.autograd.grad(function(*given).square().sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_attention_is_that_of_pytorch(training, dtype):
    if dtype == torch.bfloat16 and ops.choose_backend() == "triton":
        dtype = torch.float16  # the interpreter's bfloat16 products are wrong
    q, k, v, bias = (x.float().requires_grad_(training) for x in _attention_inputs())
    with torch.autocast("cpu", dtype):
        out = ops.local_attention(q, k, v, 3, bias=bias)
        assert out.dtype == torch.nn.functional.scaled_dot_product_attention(q, k, v).dtype == dtype
        same = ops.local_attention(q.double(), k.double(), v.double(), 3, bias=bias.double())
    assert same.dtype == torch.float64
    wanted = ops.local_attention(*(x.to(dtype) for x in (q, k, v)), 3, bias=bias)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    if training:
        out.float().sum().backward()
        assert q.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize("training", [False, True])
def test_autocast_of_the_block_keeps_the_residual_stream(training):
    x, gate, *weights = (t.float().requires_grad_(training) for t in _block_inputs())
    with torch.autocast("cpu", torch.float16):
        out = _block(x, gate, *weights)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, _block(x, gate, *weights), rtol=2e-2, atol=2e-2)
    assert not torch.equal(out, _block(x, gate, *weights))
    if training:
        out.sum().backward()
        assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in weights)


CANDIDATES = candidates(8, 2)
OTHERS = {
    "active_tokens": lambda: ops.active_tokens(torch.tensor([[0.0, 0.5, 0.0, 0.0, 1.0]]), 3),
    "boundary_crossings": lambda: ops.boundary_crossings(
        ops.signed_distance(torch.tensor([[4.3]]), 10, 4.0), torch.full((1, 10), 0.3)
    ),
    "select_candidates": lambda: ops.select_candidates(
        CANDIDATES[1].view(4, 2), torch.tensor([0, 0, 1, 1]), min_score=0.3, topk=2
    ),
    "decode_segments": lambda: ops.decode_segments(
        torch.tensor([4.0, 9.0]), torch.tensor([[2.0, 3.0], [1.0, 1.5]]), torch.full((2, 2), 0.5)
    ),
    "voting": lambda: ops.batched_nms(*CANDIDATES, 0.3, 0.01, 5, multiclass=False, voting_thresh=0.2),
    "segment_iou": lambda: ops.segment_iou(CANDIDATES[0], CANDIDATES[0]),
    "depth_gates": lambda: ops.depth_gates(torch.tensor([0.2, 0.9]), 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_autocast_does_not_touch_what_are_no_matrix_products(name):
    wanted = OTHERS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        found = OTHERS[name]()
    for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (found, wanted)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_decoding_has_gradients_through_its_definition():
    """Kernels of decoding have none; asking for them runs the definition."""
    segments, scores, labels = candidates(8, 2)
    scores.requires_grad_()
    kept = ops.batched_nms(segments, scores, labels, 0.3, 0.01, 5)[1]
    wanted = torch.autograd.grad(reference.batched_nms(segments, scores, labels, 0.3, 0.01, 5)[1].sum(), scores)[0]
    torch.testing.assert_close(torch.autograd.grad(kept.sum(), scores)[0], wanted)
    distance = ops.signed_distance(torch.tensor([[4.3]]), 10, 4.0).requires_grad_()
    place = ops.boundary_crossings(distance, torch.full((1, 10), 0.3)).position[0, 0]
    assert torch.autograd.grad(place, distance)[0].abs().sum() > 0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, IDS, SHAPES, assert_as_good_as_eager, gradients, random_masks

from tzn import ops, reference

HEADS, WIDTH = 2, 6


def _inputs(batch, steps, dtype=torch.float64, window=5):
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, HEADS, steps, WIDTH, dtype=dtype) for _ in range(3))
    return q, k, v, torch.randn(HEADS, window, dtype=dtype)


def _dense_masked(q, k, v, window, mask, query_mask, bias):
    return reference.local_attention(q, k, v, window, mask=mask, query_mask=query_mask, bias=bias)


@pytest.mark.parametrize(("name", "batch", "steps", "window", "active", "lengths"), SHAPES, ids=IDS)
def test_equals_masked_dense_attention(name, batch, steps, window, active, lengths):
    q, k, v, bias = _inputs(batch, steps, window=window)
    mask, query = random_masks(batch, steps, active, lengths)
    expected = _dense_masked(q, k, v, window, mask, query, bias)
    out = ops.local_attention(q, k, v, window, mask=mask, query_mask=query, bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("active", [1.0, 0.3])
def test_error_is_at_most_twice_that_of_eager(dtype, active):
    q, k, v, bias = _inputs(2, 97, window=19)
    mask, query = random_masks(2, 97, active, (97, 50))
    low = [x.to(dtype) for x in (q, k, v, bias)]
    exact = _dense_masked(*(x.double() for x in low[:3]), 19, mask, query, low[3].double())
    eager = _dense_masked(*low[:3], 19, mask, query, low[3])
    given = ops.local_attention(*low[:3], 19, mask=mask, query_mask=query, bias=low[3])
    assert given.dtype == dtype
    assert_as_good_as_eager(given, eager, exact)


def test_masks_with_holes_between_valid_steps():
    q, k, v, bias = _inputs(2, 61, window=9)
    mask = torch.rand(2, 61) < 0.6
    query = torch.rand(2, 61) < 0.5
    expected = _dense_masked(q, k, v, 9, mask, query, bias)
    out = ops.local_attention(q, k, v, 9, mask=mask, query_mask=query, bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_recordings_of_a_batch_do_not_see_each_other():
    q, k, v, bias = _inputs(3, 20, window=19)
    together = ops.local_attention(q, k, v, 19, bias=bias)
    alone = torch.cat([ops.local_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], 19, bias=bias) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.not_interpreted("40 s of finite differences")
def test_strided_inputs_and_inputs_left_alone():
    q, k, v, bias = _inputs(2, 33)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    before = [x.clone() for x in views]
    torch.testing.assert_close(
        ops.local_attention(*views, 5, bias=bias), ops.local_attention(q, k, v, 5, bias=bias), rtol=0, atol=1e-14
    )
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_gradients_match_dense_attention_and_finite_differences():
    q, k, v, bias = _inputs(2, 37, window=7)
    mask, query = random_masks(2, 37, 0.4, (37, 11))
    given = gradients(
        lambda q, k, v, b: ops.local_attention(q, k, v, 7, mask=mask, query_mask=query, bias=b), (q, k, v, bias)
    )
    wanted = gradients(lambda q, k, v, b: _dense_masked(q, k, v, 7, mask, query, b), (q, k, v, bias))
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b.nan_to_num(0.0), rtol=1e-10, atol=1e-12)
    small = [x[:1, :, :9].clone().requires_grad_() for x in (q, k, v)] + [bias.clone().requires_grad_()]
    few = query[:1, :9]
    assert torch.autograd.gradcheck(lambda q, k, v, b: ops.local_attention(q, k, v, 7, query_mask=few, bias=b), small)


def test_is_ordinary_attention_when_the_window_covers_everything():
    q, k, v, _ = _inputs(1, 12)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ops.local_attention(q, k, v, 25), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
def test_registered_op_passes_opcheck(permuted):
    q, k, v, bias = _inputs(2, 11, torch.float32)
    if permuted:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    mask, query = random_masks(2, 11, 0.5, (11, 6))
    torch.library.opcheck(
        torch.ops.tzn.local_attention.default, (*inputs, 5, mask, query, bias.requires_grad_(), 1, None)
    )


def test_compiles_to_one_graph_with_gradients():
    q, k, v, bias = _inputs(2, 40, torch.float32)
    mask, query = random_masks(2, 40, 0.5, (40, 22))

    def run(q, k, v, bias):
        return ops.local_attention(q, k, v, 5, mask=mask, query_mask=query, bias=bias)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, (q, k, v, bias)), gradients(run, (q, k, v, bias)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 4}, "window: got 4"),
        ({"window": -3}, "window: got -3"),
        ({"k": torch.zeros(1, 2, 9, 6)}, "k: got shape"),
        ({"v": torch.zeros(2, 2, 8, 6, dtype=torch.float64)}, "v: got torch.float64"),
        ({"q": torch.zeros(2, 8, 6)}, "q: got shape"),
        ({"q": torch.zeros(2, 2, 8, 6, dtype=torch.long)}, "q: got torch.int64"),
        ({"mask": torch.ones(2, 8)}, "mask: got torch.float32"),
        ({"query_mask": torch.ones(2, 9, dtype=torch.bool)}, "query_mask: got shape"),
        ({"bias": torch.zeros(2, 3)}, "bias: got shape"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_clear_errors(change, message):
    given = {
        "q": torch.zeros(2, 2, 8, 6),
        "k": torch.zeros(2, 2, 8, 6),
        "v": torch.zeros(2, 2, 8, 6),
        "window": 5,
    } | change
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ops.local_attention(given.pop("q"), given.pop("k"), given.pop("v"), given.pop("window"), **given)


def test_no_heads_give_no_values():
    q = torch.zeros(2, 0, 40, 8)
    assert ops.local_attention(q, q, q, 5).shape == q.shape

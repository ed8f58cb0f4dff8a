"""Windowed attention, with dilation, shifted windows and packed recordings, against the definition, gradients too."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, SHAPES, assert_as_good_as_eager, gradients, random_masks

from tzn import ops, reference

HEADS = 2


class Case(NamedTuple):
    lengths: tuple[int, ...]  # of the recordings; dense: one number, the steps of each of two
    window: int
    dilation: int = 1
    shifted: bool = False
    packed: bool = False
    masked: bool = False  # a mask (dense only) and a query mask, with holes
    biased: bool = True
    shape: tuple[Any, ...] | None = None  # of SHAPES, instead of lengths and masks


CASES = {
    "dilation: shorter than it": Case((3,), 5, 5),
    "dilation: as long": Case((4,), 5, 4),
    "dilation: not divisible": Case((38,), 7, 3, masked=True),
    "dilation: divisible": Case((40,), 7, 4),
    "dilation: 2, window 1": Case((11,), 1, 2, masked=True),
    "dilation: 5, no bias": Case((33,), 9, 5, biased=False),
    "dilation: window wider than the recording": Case((17,), 41, 2),
    "dilation: one step": Case((1,), 3, 2),
    "dilation: no step": Case((0,), 3, 2),
    "shifted: shorter than the window": Case((6,), 9, 1, True),
    "shifted: as long as the window": Case((9,), 9, 1, True),
    "shifted: one longer": Case((10,), 9, 1, True),
    "shifted: long": Case((50,), 9, 1, True),
    "shifted: masked": Case((47,), 7, 1, True, masked=True),
    "shifted: masked, no bias": Case((47,), 7, 1, True, masked=True, biased=False),
    "shifted: window 1": Case((8,), 1, 1, True, masked=True),
    "shifted: one step": Case((1,), 5, 1, True),
    "shifted: no step": Case((0,), 5, 1, True),
    "packed: unequal": Case((20, 1, 33), 7, packed=True),
    "packed: empty ones between": Case((0, 12, 0, 0, 30, 0), 9, packed=True, masked=True),
    "packed: one token each": Case((1, 1, 1), 5, packed=True),
    "packed: no token": Case((0, 0), 5, packed=True),
    "packed: no recording": Case((), 5, packed=True, biased=False),
    "packed: windows wider than all": Case((4, 40, 3), 101, packed=True, biased=False),
    "packed: some queries": Case((35, 2, 30), 19, packed=True, masked=True),
    "dilation and shifted": Case((37,), 7, 3, True, masked=True),
    "dilation and shifted: some classes shorter than the window": Case((19,), 7, 3, True),
    "dilation and packed": Case((20, 0, 3, 31), 5, 4, packed=True, masked=True),
    "shifted and packed": Case((20, 0, 3, 9, 31), 9, 1, True, packed=True, masked=True),
    "all three": Case((20, 0, 2, 41), 5, 3, True, packed=True, masked=True),
    "all three, no bias": Case((20, 0, 2, 41), 5, 2, True, packed=True, biased=False),
    "all valid steps, no masks": Case((70,), 9),
    "all valid steps, no masks, no bias": Case((70,), 9, biased=False),
    "masks with holes": Case((61,), 9, masked=True),
    **{f"plain: {name}": Case((), window, shape=(batch, steps, active, lengths))
       for name, batch, steps, window, active, lengths in SHAPES},
}  # fmt: skip


def _inputs(case: Case, width: int = 6) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """q, k, v (and bias) in float64 and what else the call takes."""
    tokens = sum(case.lengths)
    generator = torch.Generator().manual_seed(tokens + case.window)
    batch, steps, *masks = case.shape or (2, tokens)
    rows = (tokens, HEADS, width) if case.packed else (batch, HEADS, steps, width)
    given = [torch.randn(rows, generator=generator, dtype=torch.float64) for _ in range(3)]
    if case.biased:
        size = 2 * case.window - 1 if case.shifted else case.window
        given.append(torch.randn(HEADS, size, generator=generator, dtype=torch.float64))
    more: dict[str, Any] = {"dilation": case.dilation, "shifted": case.shifted}
    per_token = (tokens,) if case.packed else (2, tokens)
    if case.packed:
        more["cu_seqlens"] = torch.tensor([0, *case.lengths]).cumsum(0).to(torch.int32)
    if case.masked:
        more["query_mask"] = torch.rand(per_token, generator=generator) < 0.6
        if not case.packed:
            more["mask"] = torch.rand(per_token, generator=generator) < 0.8
    if case.shape:
        more["mask"], more["query_mask"] = random_masks(batch, steps, *masks)
    return given, more


def _results(function, given, case, more):
    def run(q, k, v, bias=None):
        return function(q, k, v, case.window, bias=bias, **more)

    return [run(*given), *gradients(run, given)]


def _permuted(x):
    """The same numbers in the memory order of [B, T, H, D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_definition(name):
    case = CASES[name]
    given, more = _inputs(case)
    if case.masked and not case.packed:
        given[:3] = map(_permuted, given[:3])
    before = [x.clone() for x in given]
    found = _results(ops.local_attention, given, case, more)
    for ours, exact in zip(found, _results(reference.local_attention, given, case, more), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-11)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


LONG = [name for name, case in CASES.items() if sum(case.lengths) >= 30]
WIDE = [name for name in LONG if name.startswith(("masks", "all valid"))]


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in LONG), *((n, d) for n in WIDE for d in DTYPES[1:])], ids=str
)
def test_error_is_at_most_twice_that_of_eager(name, dtype):
    case = CASES[name]
    given, more = _inputs(case, width=32)
    rounded = [x.to(dtype) for x in given]
    exact = _results(reference.local_attention, [x.double() for x in rounded], case, more)
    eager = _results(reference.local_attention, rounded, case, more)
    for ours, theirs, true in zip(_results(ops.local_attention, rounded, case, more), eager, exact, strict=True):
        assert ours.dtype == dtype
        # A bias has few entries: the ratio of two errors that nearly cancel is luck.
        assert_as_good_as_eager(ours, theirs, true, slack=2.0 if true.numel() >= 256 else 8.0)


@pytest.mark.not_interpreted("40 s of finite differences")
def test_gradients_are_finite_differences():
    given, more = _inputs(Case((9,), 7, masked=True))
    small = [x[:1].clone().requires_grad_() for x in given[:3]] + [given[3].requires_grad_()]
    few = more["query_mask"][:1]
    assert torch.autograd.gradcheck(lambda q, k, v, b: ops.local_attention(q, k, v, 7, query_mask=few, bias=b), small)


def test_recordings_do_not_see_each_other():
    (q, k, v, bias), _ = _inputs(Case((20,), 19))
    together = ops.local_attention(q, k, v, 19, bias=bias)
    alone = torch.cat([ops.local_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], 19, bias=bias) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    case = Case((20, 0, 1, 33), 9, packed=True)
    (q, k, v, bias), more = _inputs(case)
    found = ops.local_attention(q, k, v, 9, bias=bias, **more).split(case.lengths)
    for ours, *rows in zip(found, *(x.split(case.lengths) for x in (q, k, v)), strict=True):
        alone = ops.local_attention(*(x.transpose(0, 1).unsqueeze(0) for x in rows), 9, bias=bias)
        torch.testing.assert_close(ours, alone.squeeze(0).transpose(0, 1), rtol=1e-11, atol=1e-12)


def test_is_ordinary_attention_when_the_window_covers_everything():
    (q, k, v, _), _ = _inputs(Case((12,), 5))
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ops.local_attention(q, k, v, 25), expected, rtol=1e-12, atol=1e-12)


def test_no_heads_give_no_values():
    q = torch.zeros(2, 0, 40, 8)
    assert ops.local_attention(q, q, q, 5).shape == q.shape


@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("steps", [2, 5, 23, 30])
def test_dilated_attention_is_that_of_every_residue_class(steps, dilation):
    given, _ = _inputs(Case((steps,), 5))
    *rows, bias = given
    found = ops.local_attention(*rows, 5, bias=bias, dilation=dilation)
    for first in range(min(dilation, steps)):
        alone = ops.local_attention(*(x[:, :, first::dilation] for x in rows), 5, bias=bias)
        torch.testing.assert_close(found[:, :, first::dilation], alone, rtol=1e-11, atol=1e-12)


def test_shifted_windows_are_full():
    """Equal scores: every query is the mean of its window, as NATTEN places it."""
    value = torch.arange(8.0, dtype=torch.float64).view(1, 1, 8, 1)
    zero = torch.zeros_like(value)
    found = ops.local_attention(zero, zero, value, 5, shifted=True)
    assert found.flatten().tolist() == pytest.approx([2, 2, 2, 3, 4, 5, 5, 5])
    cut = ops.local_attention(zero, zero, value, 5)
    assert cut.flatten().tolist() == pytest.approx([1, 1.5, 2, 3, 4, 5, 5.5, 6])


@pytest.mark.parametrize("name", ["dilation: no step", "shifted: no step", "packed: no token"])
def test_the_gradient_of_a_sum_over_nothing(name):
    """A sum hands back a gradient that is expanded: no stride of 1, not even after ``contiguous()``."""
    given, more = _inputs(CASES[name])
    q, k, v, bias = (x.requires_grad_() for x in given)
    ops.local_attention(q, k, v, CASES[name].window, bias=bias, **more).sum().backward()
    assert q.grad.shape == q.shape


OPCHECKED = [
    "masks with holes",
    "plain: one-past-a-tile",
    "dilation: not divisible",
    "dilation: shorter than it",
    "packed: empty ones between",
    "packed: one token each",
]


@pytest.mark.parametrize("name", OPCHECKED)
def test_registered_op_passes_opcheck(name):
    case = CASES[name]
    given, more = _inputs(case)
    q, k, v, bias = (x.float().requires_grad_() for x in given)
    if not case.packed:
        q, k, v = map(_permuted, (q, k, v))
    mask, query_mask, bounds = (more.get(name) for name in ("mask", "query_mask", "cu_seqlens"))
    torch.library.opcheck(
        torch.ops.tzn.local_attention.default, (q, k, v, case.window, mask, query_mask, bias, case.dilation, bounds)
    )


@pytest.mark.parametrize("name", ["masks with holes", "dilation and shifted", "dilation and packed", "all three"])
def test_compiles_to_one_graph_with_gradients(name):
    case = CASES[name]
    given, more = _inputs(case)
    compiled = torch.compile(ops.local_attention, fullgraph=True, backend="aot_eager")
    found, wanted = (_results(f, given, case, more) for f in (compiled, ops.local_attention))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


PACKED, DENSE = torch.zeros(6, 2, 4), torch.zeros(2, 2, 8, 6)


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (PACKED, {"cu_seqlens": torch.tensor([0, 4, 2, 6])}, "cu_seqlens: got .* expected ascending"),
        (PACKED, {"cu_seqlens": torch.tensor([1, 6])}, "cu_seqlens: got .* from 0 to N = 6"),
        (PACKED, {"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens: got .* from 0 to N = 6"),
        (PACKED, {"cu_seqlens": torch.tensor([0, 7])}, "cu_seqlens: got .* from 0 to N = 6"),
        (PACKED, {"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens: got torch.float32"),
        (PACKED, {"cu_seqlens": torch.zeros(0, dtype=torch.long)}, "cu_seqlens: got shape"),
        (PACKED, {"cu_seqlens": torch.tensor([[0, 6]])}, "cu_seqlens: got shape"),
        (PACKED, {"cu_seqlens": torch.tensor([0, 6]), "mask": torch.ones(6, dtype=torch.bool)}, "mask: got a mask with"),
        (PACKED, {"cu_seqlens": torch.tensor([0, 6]), "query_mask": torch.ones(1, 6, dtype=torch.bool)}, "query_mask: got"),
        (PACKED[None], {"cu_seqlens": torch.tensor([0, 6])}, r"q: got shape .* \[N, H, D\]"),
        (PACKED, {}, r"q: got shape .* \[B, H, T, D\]"),
        (PACKED[None], {"dilation": 0}, "dilation: got 0"),
        (PACKED[None], {"bias": torch.zeros(6, 9)}, r"bias: got shape .* \[H, window\] = \[6, 5\]|bias: got shape"),
        (PACKED[None], {"bias": torch.zeros(6, 5), "shifted": True}, "bias: got shape .* 2 window - 1"),
        (DENSE, {"window": 4}, "window: got 4"),
        (DENSE, {"window": -3}, "window: got -3"),
        (DENSE, {"k": torch.zeros(1, 2, 9, 6)}, "k: got shape"),
        (DENSE, {"v": DENSE.double()}, "v: got torch.float64"),
        (DENSE.long(), {}, "q: got torch.int64"),
        (DENSE, {"mask": torch.ones(2, 8)}, "mask: got torch.float32"),
        (DENSE, {"query_mask": torch.ones(2, 9, dtype=torch.bool)}, "query_mask: got shape"),
    ],
)  # fmt: skip
def test_clear_errors(rows, change, message):
    with pytest.raises(ValueError, match=message):
        ops.local_attention(**{"q": rows, "k": rows, "v": rows, "window": 5} | change)

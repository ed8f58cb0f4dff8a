"""Beyond what the op's own tests see: rows split over several parts, which takes more of them than a test has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_eager, block_weights, gradients, random_masks
from triton.runtime import interpreter

from tzn import ops, reference
from tzn.kernels import _linear
from tzn.kernels._linear import Linear, sum_parts, up_projection


def test_rows_split_over_several_parts(monkeypatch):
    monkeypatch.setattr(_linear, "SPLIT_ROWS", 16)
    mask, query = random_masks(3, 61, 0.6, (61, 30, 0))
    generator = torch.Generator().manual_seed(3)
    x, gate = torch.randn(3, 61, 12, generator=generator).double(), torch.rand(3, 61, generator=generator) * query
    leaves = [x, gate.double(), *block_weights(12, 3, 5, 20)]

    def run(function):
        return gradients(lambda x, g, *w: function(x, g, reference.BlockWeights(*w), mask=mask), leaves)

    for a, b in zip(run(ops.variable_depth_block), run(reference.variable_depth_block), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_gelu_is_as_good_as_eager(dtype):
    """In 16 bits it takes the short way, whose tails do not cancel."""
    x = torch.cat([torch.linspace(-9, 9, 721), 0.1 * torch.randn(400), torch.zeros(1)]).to(dtype)[:, None]
    one, none = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    given, before = up_projection(x, Linear(one, none), None, None, keep=True)
    assert torch.equal(before, x)
    exact, eager = F.gelu(x.double()), F.gelu(x)
    assert_as_good_as_eager(given, eager, exact)
    near = (given.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6 * (x.abs() > 4)
    assert dtype != torch.float16 or near[exact.abs() > 1e-4].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_parts_of_many_tables_are_summed_in_one_launch(dtype, monkeypatch):
    """Streamed up to 8 of them, in tiles from 9 on; sizes that break blocks."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(1, 7), (2, 50, 83), (8, 2048), (8, 2049), (9, 31), (64, 33), (65, 4, 19), (200, 1), (3, 1)]
    parts = [torch.randn(shape, dtype=wide) for shape in shapes]
    launches, run = [], interpreter.GridExecutor.__call__
    monkeypatch.setattr(
        interpreter.GridExecutor,
        "__call__",
        lambda self, *a, **k: (launches.append(self.fn.__name__), run(self, *a, **k))[1],
    )
    poisoned = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: poisoned(*size, **kind).fill_(torch.nan))
    found = sum_parts(parts, [torch.zeros(x.shape[1:], dtype=dtype) for x in parts])
    assert launches == ["sum_parts_kernel"]
    for x, part in zip(found, parts, strict=True):
        assert x.dtype == dtype and x.shape == part.shape[1:]
        exact = part.double().sum(0)
        assert (x.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * part.abs().sum(0).max()
    again = sum_parts(parts, found)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))

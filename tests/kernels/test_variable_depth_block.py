"""Beyond what the op's own tests see: rows split over several parts, which takes more of them than a test has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_as_good_as_eager, block_weights, gradients, random_masks
from triton.runtime import interpreter

from tzn import ops, reference
from tzn.kernels import _launch as launch
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_programs_that_take_many_tiles(dtype, share, monkeypatch):
    """Persistent grid: bit for bit what one program a tile computes, with lists, with a mask, without rows."""
    torch.manual_seed(0)
    mask, active = random_masks(3, 131, share or 0.0, (131, 70, 0))
    x = torch.randn(3, 131, 24, dtype=dtype)
    gate = None if share is None else torch.rand(3, 131, dtype=dtype) * active
    if share == 1.0:
        gate = mask * (0.1 + torch.rand(3, 131, dtype=dtype))
    weights = reference.BlockWeights(*block_weights(24, 3, 5, 40, dtype=dtype))
    shipped = launch.default_config
    poisoned, grids, run = torch.empty, [], interpreter.GridExecutor.__call__
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: _poison(poisoned(*size, **kind)))
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 1)

    def watched(self, *arguments, **keywords):
        if "PERSISTENT" in keywords:
            grids.append((self.fn.__name__, keywords["PERSISTENT"], self.grid))
        return run(self, *arguments, **keywords)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)

    def block(programs):
        size = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
        given = {**size, **({"PER_SM": programs} if programs else {})}
        monkeypatch.setattr(
            launch, "default_config", lambda *a: {**shipped(*a), **(given if a[1] in launch.FAMILIES else {})}
        )
        with torch.no_grad():
            return ops.variable_depth_block(x, gate, weights, mask=mask)

    plain = block(None)
    assert {persistent for _, persistent, _ in grids} == {False}
    grids.clear()
    found = block(12)  # two rows of programs for QKV's six columns of tiles, where there are 25 rows of tiles
    assert [(name, persistent) for name, persistent, _ in grids] == [
        ("qkv_kernel", True), ("gated_residual_kernel", True), ("up_kernel", True), ("gated_residual_kernel", True)
    ]  # fmt: skip
    assert all(grid[0] * grid[1] <= 12 for *_, grid in grids)
    assert torch.equal(found, plain)
    wide = reference.BlockWeights(*(w.double() for w in weights))
    exact = reference.variable_depth_block(x.double(), None if gate is None else gate.double(), wide, mask=mask)
    assert_as_good_as_eager(found, reference.variable_depth_block(x, gate, weights, mask=mask), exact)


def _poison(x):
    return x.fill_(torch.nan) if x.is_floating_point() else x

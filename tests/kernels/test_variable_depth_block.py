"""Beyond what the op's own tests see: rows split over several parts, which takes more of them than a test has."""

from __future__ import annotations

import torch
from oracle import block_weights, gradients, random_masks

from tzn import ops, reference
from tzn.kernels import _linear


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

"""The number of threads does not change a bit of what attention computes, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from oracle import gradients, random_masks

from tzn import ops


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("active", [1.0, 0.3])
def test_one_and_two_threads_give_the_same_bits(backend, dtype, active):
    if backend != "cpp":
        pytest.skip("a promise of the compiled kernels; PyTorch's matrix products make none")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 301, 48).to(dtype) for _ in range(3))
    bias = torch.randn(4, 19)
    mask, query = random_masks(2, 301, active, (301, 170))

    def attend(q, k, v, bias):
        return ops.local_attention(q, k, v, 19, mask=mask, query_mask=query, bias=bias)

    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([attend(q, k, v, bias), *gradients(attend, [q, k, v, bias])])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert one.abs().max() > 0

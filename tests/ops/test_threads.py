"""The number of threads does not change a bit of what the compiled kernels compute, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from oracle import candidates, gradients, noisy_fields, random_masks
from torch import Tensor

from tzn import ops


@pytest.fixture(autouse=True)
def _threads(backend: str) -> Iterator[None]:
    if backend != "cpp":
        pytest.skip("a promise of the compiled kernels; PyTorch's matrix products make none")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _assert_threads_agree(compute: Callable[[], tuple[Tensor, ...] | list[Tensor]]) -> None:
    """One, two and three threads (more than the work splits into evenly) give the same bits, and not only zeros."""
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(list(compute()))
    for one, *others in zip(*results, strict=True):
        assert one.numel() and one.abs().max() > 0
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("active", [1.0, 0.3])
def test_attention(dtype, active):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 301, 48).to(dtype) for _ in range(3))
    bias = torch.randn(4, 19)
    mask, query = random_masks(2, 301, active, (301, 170))

    def attend(q, k, v, bias):
        return ops.local_attention(q, k, v, 19, mask=mask, query_mask=query, bias=bias)

    _assert_threads_agree(lambda: [attend(q, k, v, bias), *gradients(attend, [q, k, v, bias])])


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    ("multiclass", "voting"), [(True, 0.0), (False, 0.0), (False, 0.5), (True, 0.5)],
    ids=["by-class", "all-together", "all-together-voting", "by-class-voting"],
)  # fmt: skip
def test_suppression(soft, multiclass, voting):
    segments, scores, labels = candidates(3000, 7, tied=True)
    _assert_threads_agree(
        lambda: ops.batched_nms(
            segments,
            scores,
            labels,
            0.3,
            0.001,
            200,
            use_soft_nms=soft,
            multiclass=multiclass,
            voting_thresh=voting,
            per_class_voting=multiclass,
        )
    )


def test_suppression_of_several_recordings():
    segments, scores, labels = candidates(3000, 7, tied=True)
    rows = (segments.view(5, 600, 2), scores.view(5, 600), labels.view(5, 600).int())
    _assert_threads_agree(lambda: torch.ops.tzn_native.suppress_groups(*rows, None, 7, 50, 0, 0.3, 0.5, 0.001, 0.0))


@pytest.mark.parametrize("estimator", ["crossing", "vote_mean", "vote_median"])
def test_crossings(estimator):
    distance, scale = noisy_fields(9, 700)
    _assert_threads_agree(lambda: ops.boundary_crossings(distance, scale, estimator=estimator))


def test_candidates():
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(4000, 5, generator=generator) * 300).round() / 300
    level = torch.arange(4000) // 700
    _assert_threads_agree(lambda: ops.select_candidates(scores, level, min_score=0.2, topk=300))

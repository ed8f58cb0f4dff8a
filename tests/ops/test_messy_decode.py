"""Decoding of messy inputs equals the definition: noisy fields with many crossings, tied scores, empty levels."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_eager, noisy_fields

from tzn import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ["crossing", "vote_mean", "vote_median"])
@pytest.mark.parametrize(("fields", "steps"), [(1, 1), (1, 2), (2, 33), (3, 97), (2, 500), (0, 9), (1, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_noisy_fields(dtype, estimator, fields, steps, masked):
    distance, scale = noisy_fields(fields, steps, dtype)
    mask = torch.rand(fields, steps, generator=torch.Generator().manual_seed(1)) < 0.9 if masked else None
    given = ops.boundary_crossings(distance, scale, estimator=estimator, mask=mask, min_slope=0.1)
    wanted = reference.boundary_crossings(distance, scale, estimator=estimator, mask=mask, min_slope=0.1)
    assert torch.equal(given.count, wanted.count)
    if steps > 100:
        assert given.count.min() > 20
    if dtype == torch.float32 and steps > 100:
        exact = reference.boundary_crossings(
            distance.double(), scale.double(), estimator=estimator, mask=mask, min_slope=0.1
        )
        for ours, theirs, true in zip(given[:3], wanted[:3], exact[:3], strict=True):
            assert_as_good_as_eager(*(x.nan_to_num(posinf=0.0) for x in (ours, theirs, true)))
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    for a, b in zip(given[:3], wanted[:3], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(steps, 1))


@pytest.mark.parametrize("topk", [1, 7, 10_000])
@pytest.mark.parametrize("sizes", [(40, 20, 10, 5), (1,), (0, 3), (300, 150)], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_selection_with_ties(topk, sizes, tied):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(sum(sizes), 3, generator=generator)
    scores = (scores * 5).round() / 5 if tied else scores
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    given = ops.select_candidates(scores, level, min_score=0.2, topk=topk)
    wanted = reference.select_candidates(scores, level, min_score=0.2, topk=topk)
    for a, b in zip(given, wanted, strict=True):
        assert torch.equal(a, b)
    places = [min(topk, 3 * size) for size in sizes]  # each level has its own
    for levels, capacity in ((sizes, sum(places)), (len(sizes), len(sizes) * min(topk, scores.numel()))):
        padded = ops.select_candidates_padded(
            torch.stack([scores, 0 * scores]), level, levels, min_score=0.2, topk=topk
        )
        assert padded.score.shape == (2, capacity)
        there = padded.label[0] >= 0
        for a, b in zip(padded, wanted, strict=True):
            assert torch.equal(a[0][there], b)
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(places))
        assert owner[there.nonzero().squeeze(1)].tolist() == level[wanted.point].tolist()
        assert not padded.point[0][~there].any()
        assert (padded.label[1] == -1).all() and (padded.score[1] == -torch.inf).all()


def test_gradients_still_flow_through_crossings():
    distance, scale = noisy_fields(2, 60)
    distance.requires_grad_()
    found = ops.boundary_crossings(distance, scale, estimator="vote_mean")
    (gradient,) = torch.autograd.grad(found.position[found.position.isfinite()].sum(), distance)
    assert gradient.abs().max() > 0

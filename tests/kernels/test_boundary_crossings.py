from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_eager

from tzn import reference
from tzn.kernels import boundary_crossings as kernels


def _fields(fields, steps, seed=0, dtype=torch.float64):
    """Noisy sawtooth distances: many crossings, votes that disagree, neighbours that change places."""
    torch.manual_seed(seed)
    boundaries = torch.rand(fields, max(steps // 6, 1)).sort(dim=1).values * steps
    distance = reference.signed_distance(boundaries, steps, 16.0) + 0.8 * torch.randn(fields, steps)
    return distance.to(dtype), (0.2 + torch.rand(fields, steps)).to(dtype)


def _assert_same(given, wanted, tolerance=1e-12):
    assert given.counts.tolist() == wanted.count.tolist()
    capacity = wanted.position.shape[1]
    assert (given.position[:, capacity:] == torch.inf).all()
    for a, b in zip(given[:3], wanted[:3], strict=True):
        torch.testing.assert_close(a[:, :capacity], b, rtol=tolerance, atol=tolerance)


def test_order_follows_position_where_votes_change_places():
    distance, scale = _fields(8, 200, seed=4)
    settings = {"estimator": "vote_mean", "vote_window": 7, "min_slope": 0.0, "mask": None}
    plain = reference.boundary_crossings(distance, scale, **(settings | {"estimator": "crossing"}))
    wanted = reference.boundary_crossings(distance, scale, **settings)
    assert not torch.equal(plain.slope, wanted.slope)  # some did
    _assert_same(kernels.boundary_crossings(distance, scale, **settings), wanted)


def test_the_middle_between_two_medians():
    distance = torch.tensor([[-1.5, -0.5, 0.5, 1.3]], dtype=torch.float64)  # votes 1.5, 1.5, 1.5, 1.7
    settings = {"estimator": "vote_median", "vote_window": 2, "min_slope": 0.0, "mask": None}
    for scale in ([1.0, 1.0, 1.0, 1 / 3], [1.0, 1.0, 1.0, 1.0]):
        spread = torch.tensor([scale], dtype=torch.float64)
        wanted = reference.boundary_crossings(distance, spread, **settings)
        _assert_same(kernels.boundary_crossings(distance, spread, **settings), wanted)


@pytest.mark.parametrize("estimator", ["crossing", "vote_mean", "vote_median"])
def test_float32_is_as_good_as_eager(estimator):
    distance, scale = _fields(4, 250, dtype=torch.float32)
    settings = {"estimator": estimator, "vote_window": 4, "min_slope": 0.5, "mask": None}
    given = kernels.boundary_crossings(distance, scale, **settings)
    eager = reference.boundary_crossings(distance, scale, **settings)
    exact = reference.boundary_crossings(distance.double(), scale.double(), **settings)
    capacity = eager.position.shape[1]
    for a, b, c in zip(given[:3], eager[:3], exact[:3], strict=True):
        assert_as_good_as_eager(*(x[:, :capacity].nan_to_num(posinf=0.0) for x in (a, b, c)))

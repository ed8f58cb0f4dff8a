from __future__ import annotations

import pytest
import torch
from oracle import noisy_fields

from tzn import ops, reference


def _crossings(distance, scale, **settings):
    """What was found, without the places that nothing fills."""
    found = ops.boundary_crossings(distance, scale, **settings)
    assert found.position.shape == found.std.shape == found.slope.shape == (distance.shape[0], distance.shape[1] // 2)
    past = torch.arange(found.position.shape[1]) >= found.count[:, None]
    assert (found.position[past] == torch.inf).all() and (found.std[past] == torch.inf).all()
    assert (found.slope[past] == 0).all()
    most = int(found.count.max()) if found.count.numel() else 0
    return ops.Crossings(*(x[:, :most] for x in found[:3]), found.count)


def _field(boundaries, steps, radius=50.0):
    return ops.signed_distance(torch.tensor([boundaries], dtype=torch.float64), steps, radius)


@pytest.mark.parametrize("estimator", ["crossing", "vote_median", "vote_mean"])
def test_exact_fields_give_exact_boundaries(estimator):
    d = _field([7.3, 20.0, 31.75], 45)
    found = _crossings(d, torch.ones_like(d), estimator=estimator)
    assert found.count.tolist() == [3]
    torch.testing.assert_close(found.position[0], torch.tensor([7.3, 20.0, 31.75], dtype=torch.float64))


def test_interpolation_reaches_the_zero_and_the_quoted_formula_only_half_way():
    d = torch.tensor([[-2.0, -0.5, 1.0, 2.5]], dtype=torch.float64)  # zero at 1 + 1/3, slope 1.5
    found = _crossings(d, torch.ones_like(d), estimator="crossing")
    assert found.position[0, 0] == pytest.approx(4 / 3)
    quoted = 1 - d[0, 1] / (d[0, 2] - d[0, 0])
    assert float(quoted) - 1 == pytest.approx((4 / 3 - 1) / 2)


def test_jumps_down_flat_crossings_and_padding_are_no_boundaries():
    d = torch.tensor([[-0.1, 0.1, 2.0, -2.0, -1.0, 1.0, 2.0]])
    scale = torch.ones_like(d)
    assert _crossings(d, scale, estimator="crossing").position[0].tolist() == [4.5]
    both = _crossings(d, scale, estimator="crossing", min_slope=0.1)
    assert both.position[0].tolist() == [0.5, 4.5]
    mask = torch.ones_like(d, dtype=torch.bool)
    mask[0, 5] = False
    assert _crossings(d, scale, mask=mask).count.tolist() == [0]


def test_weighted_median_and_mean_by_hand():
    # Crossing between 2 and 3; votes t - d(t) of steps 1 to 4: 2.6, 2.5, 2.5, 2.9; scales 1, 1, 1, 0.25.
    d = torch.tensor([[-9.0, -1.6, -0.5, 0.5, 1.1, 9.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.25, 1.0]], dtype=torch.float64)
    median = _crossings(d, scale, estimator="vote_median", vote_window=2)
    assert median.position[0, 0] == pytest.approx(2.9)  # weights 1, 1, 1 against 4
    assert median.std[0, 0] == pytest.approx((3 + 16) ** -0.5)
    mean = _crossings(d, scale, estimator="vote_mean", vote_window=2)
    assert mean.position[0, 0] == pytest.approx((2.6 + 2.5 + 2.5 + 16 * 2.9) / 19)
    assert mean.std[0, 0] == pytest.approx((2 / 19) ** 0.5)


@pytest.mark.parametrize(
    ("distance", "scale", "window", "wanted"),
    [
        ([-0.75, 0.5], [1.0, 1.0], 1, 0.625),  # votes 0.75 and 0.5 of equal weight
        ([-1.5, -0.5, 0.5, 1.3], [1.0, 1.0, 1.0, 1 / 3], 2, 1.6),  # votes 1.5, 1.5, 1.5, 1.7 of weights 1, 1, 1, 3
        ([-1.5, -0.5, 0.5, 1.3], [1.0, 1.0, 1.0, 1.0], 2, 1.5),
    ],
)
def test_a_balanced_median_is_the_middle(distance, scale, window, wanted):
    d, scale = (torch.tensor([x], dtype=torch.float64) for x in (distance, scale))
    assert _crossings(d, scale, vote_window=window, min_slope=0.0).position[0, 0] == pytest.approx(wanted)


def test_order_follows_position_where_votes_change_places():
    distance, scale = noisy_fields(8, 200, seed=4)
    settings = {"estimator": "vote_mean", "vote_window": 7, "min_slope": 0.0}
    plain = reference.boundary_crossings(distance, scale, **(settings | {"estimator": "crossing"}))
    wanted = reference.boundary_crossings(distance, scale, **settings)
    assert not torch.equal(plain.slope, wanted.slope)  # some did
    # Three pairs have the same votes and so the same place: rounding (fused or not) decides which of two goes first.
    for a, b in zip(_settled(ops.boundary_crossings(distance, scale, **settings)), _settled(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def _settled(found: ops.Crossings) -> list[torch.Tensor]:
    """Columns ordered by place and, where places are the same but for rounding, by slope."""
    gaps = found.position.diff(dim=1)
    assert (gaps[gaps.isfinite()] >= 0).all()
    order = found.slope.argsort(dim=1, stable=True)
    places = found.position.round(decimals=9).gather(1, order)
    order = order.gather(1, places.argsort(dim=1, stable=True))
    return [*(column.gather(1, order) for column in (found.position, found.std, found.slope)), found.count]


def test_votes_for_another_boundary_do_not_count():
    # Boundaries 4 apart: the far side of the neighbour's basin votes for the neighbour.
    d = _field([10.0, 14.0], 30)
    found = _crossings(d, torch.ones_like(d), vote_window=8, estimator="vote_mean")
    torch.testing.assert_close(found.position[0], torch.tensor([12.0, 12.0], dtype=torch.float64), atol=2.0, rtol=0)
    narrow = _crossings(d, torch.ones_like(d), vote_window=2, estimator="vote_mean")
    torch.testing.assert_close(narrow.position[0], torch.tensor([10.0, 14.0], dtype=torch.float64))


@pytest.mark.not_interpreted("thousands of fields")
@pytest.mark.parametrize("estimator", ["vote_median", "vote_mean"])
def test_standard_errors_are_those_of_independent_laplace_noise(estimator):
    """Spread of the estimate over 4,000 noisy fields against the standard error that it claims."""
    torch.manual_seed(0)
    steps, scale, boundary = 24, 0.4, 11.6
    clean = _field([boundary], steps).expand(4000, steps)
    noise = torch.distributions.Laplace(0.0, scale).sample((4000, steps)).double()
    found = _crossings(clean + noise, torch.full_like(clean, scale), estimator=estimator, vote_window=8)
    nearest = (found.position - boundary).abs().argmin(1, keepdim=True)
    error = found.position.gather(1, nearest) - boundary
    seen = error.isfinite()  # noise hides the crossing of a few fields
    assert seen.float().mean() > 0.9
    error, claimed = error[seen], found.std.gather(1, nearest)[seen]
    ratio = float(error.std() / claimed.mean())
    assert 0.85 < ratio < 1.25
    crossing = _crossings(clean + noise, torch.full_like(clean, scale), estimator="crossing")
    best = (crossing.position - boundary).abs().min(1).values
    assert float(error.abs().mean()) < 0.7 * float(best[best.isfinite()].mean())  # votes beat a single crossing


def test_batches_pad_with_infinity_in_order():
    d = torch.cat([_field([5.0], 20), _field([3.0, 12.0], 20), torch.full((1, 20), 3.0, dtype=torch.float64)])
    found = _crossings(d, torch.ones_like(d), estimator="crossing")
    assert found.count.tolist() == [1, 2, 0]
    assert found.position[0].tolist() == [5.0, float("inf")]
    assert torch.isinf(found.position[2]).all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1)], ids=str)
def test_degenerate_shapes(shape):
    found = _crossings(torch.randn(shape), torch.ones(shape))
    assert found.position.shape == (shape[0], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.zeros(1, 5)}, "scale: got a value <= 0"),
        ({"scale": torch.ones(1, 4)}, "scale: got shape"),
        ({"distance": torch.full((1, 5), float("nan"))}, "distance: got NaN"),
        ({"estimator": "mode"}, "estimator: got 'mode'"),
        ({"vote_window": 0}, "vote_window: got 0"),
    ],
    ids=["scale", "shape", "nan", "estimator", "window"],
)
def test_clear_errors(change, message):
    arguments = {"distance": torch.zeros(1, 5), "scale": torch.ones(1, 5)} | change
    with pytest.raises(ValueError, match=message):
        _crossings(arguments.pop("distance"), arguments.pop("scale"), **arguments)

"""What the boundary programs compute, on inputs whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.evidence.boundary import calibration, fields, heads, two_heads


@pytest.mark.parametrize("kind", fields.NOISES)
def test_noise_has_unit_variance(kind):
    values = fields.noise(kind, (4000, 40), torch.Generator().manual_seed(0))
    assert float(values.var()) == pytest.approx(1, abs=0.03)
    lag = float((values[:, 1:] * values[:, :-1]).mean())
    assert lag == pytest.approx(fields.RHO if kind == "ar1" else 0, abs=0.03)


def test_bounds():
    assert fields.bound("gaussian", 0.3, 9) == pytest.approx(0.01)
    assert fields.bound("laplace", 0.3, 9) == pytest.approx(0.005)
    # 1' C^-1 1 of AR(1) has the closed form (n - (n - 2) rho) / (1 + rho).
    rho = fields.RHO**2
    assert fields.bound("ar1", 1.0, 9, stride=2) == pytest.approx((1 + rho) / (9 - 7 * rho))


def test_theory():
    found = fields.theory("gaussian", 0.3, 9, 1)
    assert found["vote_mean"] == pytest.approx(0.01) and found["vote_median"] == pytest.approx(0.01 * math.pi / 2)
    assert fields.theory("laplace", 0.3, 9, 1)["vote_median"] == pytest.approx(0.005)
    # Neighbours that err alike cancel nothing; independent ones a third.
    assert fields.theory("ar1", 1.0, 8, 4)["crossing"] == pytest.approx((2 + fields.RHO**4) / 3)
    row = fields.distance_row("ar1", 0.1, 2, 16, 4000, torch.Generator().manual_seed(0))
    for name in ("crossing", "vote_mean"):
        expected = fields.theory("ar1", 0.1, 16, 2)[name]
        assert row[name]["mse"] == pytest.approx(expected, rel=0.1)


def test_a_boundary_is_sought_near_a_place():
    times, near = torch.arange(60.0), torch.tensor([40.0])
    field = torch.where(times < 30, times - 12.25, times - 41.5).clamp(-8, 8).unsqueeze(0)
    scale = torch.full_like(field, 0.3)
    scale[:, 5:20] = 0.1
    assert float(fields.read_boundary(field, scale, "crossing", 4)[0]) == pytest.approx(12.25)
    assert float(fields.read_boundary(field, scale, "crossing", 4, (near, 8))[0]) == pytest.approx(41.5)
    assert fields.read_boundary(field, scale, "crossing", 4, (near - 12, 8))[0].isnan().all()


def test_no_estimator_reaches_the_bound_at_two_laplace_votes():
    # The posterior mean of two votes is their mean by symmetry: variance sigma^2 / 2, twice the bound.
    found = fields.best_shift_invariant(1.0, 2, 4000, torch.Generator().manual_seed(0))
    assert found == pytest.approx(0.5, rel=0.1)


def test_fisher_information_of_a_ramp():
    # Over a wide ramp the sum of squared slopes is its integral: 16 / kappa^2 x (kappa / 4) / 6.
    _, _, bound = heads.ramps(8.0, 0.1, "gaussian", 1, 5, torch.Generator().manual_seed(0))
    assert bound.numpy() == pytest.approx(np.full(5, 0.01 * 8 * 6 / 4), rel=0.01)


def test_peaks_read_a_parabola_exactly():
    times = torch.arange(20.0)
    found = fields.peaks((1 - 0.01 * (times - 9.3) ** 2).unsqueeze(0), 4)
    assert float(found["argmax"]) == 9
    assert float(found["parabola"]) == pytest.approx(9.3, abs=1e-4)


def test_summary_is_in_frames_and_knows_what_is_missing():
    found = fields.summary(torch.tensor([1.0, -1.0, 3.0, math.nan]))
    assert found["mse"] == pytest.approx(11 / 3) and found["bias"] == pytest.approx(1) and found["found"] == 0.75


def test_boundaries_are_found_within_the_radius_only():
    times = torch.arange(60.0)
    field = torch.where(times < 30, times - 12.25, times - 41.5).clamp(-8, 8)
    b = torch.tensor([12.25, 26.0, 40.0])
    error, std = two_heads.nearest_crossings(field, torch.full_like(field, 0.1), "crossing", b)
    assert error.tolist() == pytest.approx([0, math.nan, 1.5], abs=1e-5, nan_ok=True)
    assert std.isfinite().tolist() == [True, False, True]
    score = 0.9 * torch.exp(-((times - 12.25) ** 2) / 8) + 0.05
    found = two_heads.nearest_peaks(score, 4.0, b)
    assert found["argmax"].tolist() == pytest.approx([-0.25, math.nan, math.nan], nan_ok=True)
    assert abs(float(found["parabola"][0])) < 0.05


def test_of_two_peaks_within_the_radius_the_higher_is_read():
    score = torch.zeros(40)
    score[18], score[22] = 0.9, 0.6
    found = two_heads.nearest_peaks(score, 8.0, torch.tensor([22.0]))
    assert float(found["argmax"][0]) == -4
    assert float(found["parabola"][0]) == -4


def gaussian_errors(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors whose true standard deviation is hypot(2 std, 0.1), and the claimed std."""
    rng = np.random.default_rng(seed)
    std = rng.uniform(0.01, 0.1, count)
    return rng.normal(0, np.hypot(2 * std, 0.1)), std


def test_scale_and_floor_are_recovered():
    error, std = gaussian_errors(2000, 0)
    scale, floor = calibration.fit_scale_and_floor(error, std)
    assert scale == pytest.approx(2, rel=0.15) and floor == pytest.approx(0.1, rel=0.2)
    fresh, std = gaussian_errors(2000, 1)
    one, two = calibration.coverage(fresh, np.hypot(scale * std, floor))
    assert one == pytest.approx(0.683, abs=0.03) and two == pytest.approx(0.954, abs=0.015)


def test_one_factor_is_recovered():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2, 6000)
    assert calibration.fit_scale(rng.normal(0, 3 * std), std) == pytest.approx(3, rel=0.03)

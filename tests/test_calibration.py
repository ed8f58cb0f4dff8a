"""Tables of errors on unseen groups: what they promise, on data whose truth is known."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from tzn.calibration import (
    LEVELS,
    Calibration,
    Intervals,
    controlled,
    fit_intervals,
    fit_probabilities,
    fit_scale,
    vote_inflation,
)


def _groups(rng: np.random.Generator, count: int, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of groups that differ in size and in how wrong their standard errors are."""
    ratio, group = [], []
    for k in range(count):
        size = int(rng.integers(*sizes))
        ratio.append(np.abs(rng.standard_normal(size)) * np.exp(0.5 * rng.standard_normal()))
        group.append(np.full(size, k))
    return np.concatenate(ratio), np.concatenate(group)


def test_a_new_group_is_covered():
    rng = np.random.default_rng(0)
    inside = {(level, guarantee): [] for level in (0.5, 0.8, 0.9) for guarantee in (False, True)}
    for _ in range(150):
        table = fit_intervals(*_groups(rng, 15, (5, 200)))
        new, of = _groups(rng, 20, (50, 51))
        for (level, guarantee), shares in inside.items():
            shares.append((new <= table.factor(level, guarantee=guarantee)).reshape(20, 50).mean())
        assert len(of) == 1000
    for (level, guarantee), shares in inside.items():
        mean = float(np.mean(shares))
        assert mean >= level - 0.015, (level, guarantee)
        if not guarantee:
            assert mean <= level + 0.03, level
    # The quantile of all ratios in one pot follows the large groups and its own fit: what the tables are there to avoid.
    assert np.mean(inside[0.9, True]) > np.mean(inside[0.9, False])


def test_tables_are_the_definition():
    ratio, group = _groups(np.random.default_rng(1), 6, (3, 9))
    table = fit_intervals(ratio, group)
    names = np.unique(group)
    candidates = np.sort(ratio)

    def mass(q: float, of: np.ndarray) -> float:
        return sum((ratio[group == k] <= q).mean() for k in of)

    for level, factor in zip(LEVELS, table.guaranteed, strict=True):
        enough = [q for q in candidates if mass(q, names) >= level * (len(names) + 1) - 1e-9]
        assert factor == (enough[0] if enough else math.inf)
    assert table.guaranteed[-1] == math.inf  # 6 / 7 is below 0.99
    assert table.groups == 6 and table.boundaries == len(ratio)
    # Left out one by one, groups are covered as promised on average.
    for level, factor in zip(LEVELS, table.expected, strict=True):
        if not math.isfinite(factor) or level > 0.8:
            continue
        used = mass(factor, names) / len(names)  # the level inside that stands for it
        shares = []
        for k in names:
            others = names[names != k]
            q = next(q for q in candidates if mass(q, others) >= used * len(others) - 1e-9)
            shares.append((ratio[group == k] <= q).mean())
        assert np.mean(shares) >= level - 0.02


def test_groups_count_alike_whatever_their_size():
    small = np.concatenate([np.full(10, x) for x in (1.0, 2.0, 3.0)])
    groups = np.repeat([0, 1, 2], 10)
    large = np.concatenate([small, np.full(5000, 1.0)])
    with_large = np.concatenate([groups, np.zeros(5000, int)])
    assert fit_intervals(small, groups).guaranteed == fit_intervals(large, with_large).guaranteed
    assert fit_intervals(small, groups).expected == fit_intervals(large, with_large).expected


def test_one_group_says_nothing_about_another():
    with pytest.raises(ValueError, match="expected at least 2"):
        fit_intervals(np.ones(50), np.zeros(50))
    table = fit_intervals(np.arange(1.0, 41), np.repeat([0, 1], 20))
    assert table.factor(0.9, guarantee=True) == math.inf and table.factor(0.6, guarantee=True) < math.inf


def test_factors_between_the_levels_rise():
    table = fit_intervals(*_groups(np.random.default_rng(2), 30, (20, 60)))
    factors = [table.factor(c) for c in np.linspace(0.01, 0.96, 200)]
    assert all(a <= b for a, b in itertools.pairwise(factors))
    assert table.factor(0.9) == table.expected[LEVELS.index(0.9)]
    assert table.factor(0.999) == math.inf
    for wrong in (0.0, 1.0, -0.2, math.nan):
        with pytest.raises(ValueError, match="share in"):
            table.factor(wrong)


def test_scale_of_gaussian_errors():
    rng = np.random.default_rng(3)
    ratio, group = np.abs(2.5 * rng.standard_normal(20_000)), rng.integers(0, 10, 20_000)
    assert fit_scale(ratio, group) == pytest.approx(2.5, rel=0.03)


def test_probabilities_are_shares_that_rise():
    rng = np.random.default_rng(4)
    scores = rng.random(8000)
    right = rng.random(8000) < scores**2  # scores are too high
    knots = fit_probabilities(scores, right)
    at = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.interp(at, *knots) - at**2).max() < 0.06
    assert list(knots[0]) == sorted(knots[0]) and list(knots[1]) == sorted(knots[1])
    never, _ = fit_probabilities(np.array([0.2, 0.2, 0.2]), np.array([False, True, False]))
    assert never == (0.2,)
    assert fit_probabilities(np.array([0.1, 0.9]), np.array([False, True]))[1] == (0.25, 0.75)  # nothing is certain


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_inflation_is_that_of_correlated_votes(correlation):
    window, rng = 4, np.random.default_rng(5)
    lags = [correlation**k for k in range(1, 2 * window + 1)]
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
    votes = rng.multivariate_normal(np.zeros(9), covariance, 40_000, method="cholesky")
    measured = votes.mean(1).std() * 3  # over that of nine independent votes
    assert vote_inflation(lags, window) == pytest.approx(measured, rel=0.02)
    assert vote_inflation([], window) == 1.0


def _calibration() -> Calibration:
    ratio, group = _groups(np.random.default_rng(6), 8, (10, 20))
    return Calibration(
        fit_intervals(ratio, group), (2.0, 1.5), 1.2, (0.9, 0.8), 0.85, (0.1, 0.9), (0.05, 0.8), 0.5, "5 folds",
        {"nms": "soft", "chunk": 512},
    )  # fmt: skip


def test_plain_data_and_back():
    calibration = _calibration()
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    assert calibration.fits({"nms": "soft", "chunk": 4096, "std_scale": (2.0, 1.5)})
    assert not calibration.fits({"nms": "hard", "chunk": 512, "std_scale": (2.0, 1.5)})
    assert not calibration.fits({"nms": "soft", "chunk": 512, "std_scale": (1.0, 1.0)})
    assert calibration.probability(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.05, 0.425, 0.8])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("intervals", None, "intervals"),
        ("intervals", {"coverage": [0.5, 0.4]}, "guaranteed"),
        ("std_scale", [1.0], "two numbers"),
        ("std_scale", [1.0, -1.0], "two numbers"),
        ("scores", [0.5, 0.1], "rising"),
        ("probabilities", [0.5, 1.5], "in \\[0, 1\\]"),
        ("probabilities", "0.5", "list of numbers"),
        ("tiou", None, "tiou"),
        ("source", 3, "source"),
        ("lag_correlation", [math.nan], "list of numbers"),
    ],
)
def test_damaged_data_is_refused(name, value, said):
    with pytest.raises(ValueError, match=said):
        Calibration.from_dict({**_calibration().to_dict(), name: value})
    with pytest.raises(ValueError, match="coverage"):
        Intervals.from_dict({**_calibration().intervals.to_dict(), "coverage": [0.5, 0.4]})


def test_the_controlled_setting_is_the_last_that_keeps_the_risk():
    harmed = np.zeros((9, 4), bool)
    harmed[0, 1:] = True
    harmed[1, 2] = True  # and by all that follow, whatever it says there
    harmed[2, 3] = True
    assert controlled(harmed, 0.1) == 0  # (0 + 1) / 10
    assert controlled(harmed, 0.2) == 1  # (1 + 1) / 10
    assert controlled(harmed, 0.3) == 2
    assert controlled(harmed, 0.39) == 2  # (3 + 1) / 10 is above
    assert controlled(harmed, 0.4) == 3
    harmed[:, 0] = True
    assert controlled(harmed, 0.9) is None
    for risk in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="expected a share"):
            controlled(harmed, risk)
    with pytest.raises(ValueError, match="9 groups promise no risk of 0.05: expected at least 19"):
        controlled(harmed, 0.05)


def test_a_controlled_setting_harms_no_more_new_groups_than_promised():
    """Groups stop being served at a setting of their own; the share of new ones harmed, over many draws of 19 groups."""
    random, risk = np.random.default_rng(0), 0.2
    rates = []
    for _ in range(4000):
        limit = random.random(20)
        harmed = limit[:, None] < np.linspace(0, 1, 51)[None, :]
        chosen = controlled(harmed[:19], risk)
        rates.append(chosen is not None and harmed[19, chosen])
    assert 0.15 < np.mean(rates) < risk + 0.02  # the promise, and close to it: no setting is given away

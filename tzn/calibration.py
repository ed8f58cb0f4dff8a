"""What held-out groups (people, places) taught about a trained model's errors: interval widths and true probabilities.

Numbers only. How they are measured is :mod:`tzn.training.calibrate`'s work; detections carry an :class:`Intervals`, a
checkpoint a :class:`Calibration`.

The width of an interval comes from ratios r = |error| / standard error of boundaries in groups that the model they were
read off with had not seen. A new group is one more draw of a whole group, so groups count alike, however many boundaries
each has:

* guaranteed: hierarchical conformal prediction (Lee, Barber, Willett 2023, "Distribution-free inference with hierarchical
  data", section 3): the smallest q with ``1 / (K + 1) sum_k F_k(q) >= coverage``, F_k the distribution of the ratios in group
  k of K. With groups and a model that has seen none of them this covers at least ``coverage`` of a new group's boundaries
  on average over groups; it needs K / (K + 1) >= coverage, else the width is infinite.
* expected: the same without the share of the group to come, corrected for having been fitted: the smallest q of a level
  at which, group by group left out, the widths of the others cover ``coverage`` of the one left out on average. Narrower,
  right on average, promised by nothing.

Ratios of fold models stand for those of the model trained on all folds (cross-validation; the exact promise of CV+ and
jackknife+, Barber, Candès, Ramdas, Tibshirani 2021, costs twice the error rate and needs all fold models at prediction).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tzn.optional import require

LEVELS = (*(round(0.05 * i, 2) for i in range(1, 19)), 0.925, 0.95, 0.975, 0.99)  # coverages that a table holds
GAUSSIAN = (0.6827, 0.9545)  # shares within one and two standard errors
FEWEST = 30  # boundaries from which on a scale of their own is fitted
FREE = ("chunk",)  # inference settings that change nothing but the speed


def gaussian_factor(coverage: float) -> float:
    """Half width of a Gaussian's central interval in standard errors.

    Raises:
        ValueError: coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage = {coverage}: expected a share in (0, 1)")
    return statistics.NormalDist().inv_cdf(0.5 + 0.5 * coverage)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How many standard errors to either side of a start or end an interval reaches, by coverage.

    Attributes:
        coverage: rising shares in (0, 1).
        guaranteed: factors by the hierarchical conformal rule; inf where there are too few groups.
        expected: factors right on average over new groups, without a promise; inf where no finite factor was enough.
        groups, boundaries: how many they were fitted on.

    >>> table = Intervals((0.5, 0.9), (0.8, 2.4), (0.7, 2.0), groups=20, boundaries=900)
    >>> table.factor(0.9), round(table.factor(0.7, guarantee=True), 3)
    (2.0, 1.6)
    """

    coverage: tuple[float, ...]
    guaranteed: tuple[float, ...]
    expected: tuple[float, ...]
    groups: int
    boundaries: int

    def factor(self, coverage: float = 0.9, *, guarantee: bool = False) -> float:
        """Half width of an interval in standard errors; between the table's coverages linearly, inf beyond the last.

        Args:
            coverage: share of the boundaries of a new group that are to lie inside.
            guarantee: the wider factor of the hierarchical conformal rule.

        Raises:
            ValueError: coverage outside (0, 1).
        """
        gaussian_factor(coverage)
        table = (0.0, *(self.guaranteed if guarantee else self.expected))
        levels = (0.0, *self.coverage)
        if coverage > levels[-1]:
            return math.inf
        above = int(np.searchsorted(levels, coverage - 1e-12))
        low, high = table[above - 1], table[above]
        if not math.isfinite(high):
            return math.inf
        share = (coverage - levels[above - 1]) / (levels[above] - levels[above - 1])
        return low + min(share, 1.0) * (high - low)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite factors as None, which JSON can hold."""
        plain = {name: [x if math.isfinite(x) else None for x in getattr(self, name)] for name in FACTORS}
        return {
            "coverage": list(self.coverage),
            **plain,
            "groups": self.groups,
            "boundaries": self.boundaries,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Intervals:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: another content; says what is wrong.
        """
        if not isinstance(content, Mapping):
            raise ValueError("intervals are not an object")
        coverage = _numbers(content, "coverage")
        guaranteed, expected = (_numbers(content, name, missing=math.inf) for name in FACTORS)
        if not all(0 < a < b < 1 for a, b in zip((1e-9, *coverage), coverage, strict=False)):
            raise ValueError("coverage: expected rising shares in (0, 1)")
        for name, values in zip(FACTORS, (guaranteed, expected), strict=True):
            if len(values) != len(coverage) or any(x < 0 for x in values) or list(values) != sorted(values):
                raise ValueError(f"{name}: expected {len(coverage)} rising numbers >= 0")
        return cls(coverage, guaranteed, expected, _count(content, "groups"), _count(content, "boundaries"))


FACTORS = ("guaranteed", "expected")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a checkpoint knows about its own errors on groups it has not seen.

    Attributes:
        intervals: widths by coverage, in corrected standard errors.
        std_scale: factors that correct the standard errors of ends that a boundary crossing moved, and of all others.
        distance_scale: factor on the scales of the distance field that explains ``std_scale`` together with the lags.
        lag_correlation: correlation of the distance errors 1, 2, … steps apart, near boundaries; empty: no distance field.
        vote_correlation: the one value of ``inference.vote_correlation`` that stands for those lags; None: unknown.
        scores, probabilities: knots of the rising map from score to the share of detections that are right.
        tiou: overlap with a segment of its class from which on a detection is right.
        source: "5 folds" or "validation".
        inference: settings it was measured with.
    """

    intervals: Intervals
    std_scale: tuple[float, float]
    distance_scale: float | None
    lag_correlation: tuple[float, ...]
    vote_correlation: float | None
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    tiou: float
    source: str
    inference: dict[str, Any]

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Chance that detections of these scores are right: overlap one of their class, not found by a better one."""
        return np.interp(scores, self.scores, self.probabilities)

    def fits(self, inference: Mapping[str, Any]) -> bool:
        """Whether inference with these settings, as plain data, makes the detections that were calibrated."""
        mine = {**self.inference, "std_scale": list(self.std_scale)}
        return all(_plain(inference.get(k)) == _plain(v) for k, v in mine.items() if k not in FREE)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        content: dict[str, Any] = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return content | {"intervals": self.intervals.to_dict(), "inference": dict(self.inference)}

    @classmethod
    def from_dict(cls, content: Any) -> Calibration:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: another content; says what is wrong.
        """
        if not isinstance(content, Mapping):
            raise ValueError("not an object")
        intervals = Intervals.from_dict(content.get("intervals"))
        scale = _numbers(content, "std_scale")
        if len(scale) != 2 or min(scale) <= 0:
            raise ValueError("std_scale: expected two numbers > 0")
        scores, shares = _numbers(content, "scores"), _numbers(content, "probabilities")
        rising = list(scores) == sorted(scores) and list(shares) == sorted(shares)
        if not scores or len(scores) != len(shares) or not rising or shares[0] < 0 or shares[-1] > 1:
            raise ValueError("scores and probabilities: expected equally many rising numbers, the latter in [0, 1]")
        single = {name: content.get(name) for name in ("distance_scale", "vote_correlation", "tiou")}
        for name, value in single.items():
            if not _is_number(value) and (value is not None or name == "tiou"):
                raise ValueError(f"{name}: expected a number")
        source, inference = content.get("source"), content.get("inference")
        if not isinstance(source, str) or not isinstance(inference, Mapping):
            raise ValueError("source and inference: expected a text and settings")
        return cls(
            intervals, (scale[0], scale[1]), single["distance_scale"], _numbers(content, "lag_correlation"),
            single["vote_correlation"], scores, shares, float(single["tiou"] or 0), source, dict(inference),
        )  # fmt: skip


def controlled(harmed: np.ndarray, risk: float) -> int | None:
    """The largest setting of a dial that harms a new group with probability at most ``risk``, by conformal risk control.

    Of settings with ``(harmed groups + 1) / (groups + 1) <= risk`` the last: for groups, and a model that has seen none of
    them, it harms a new exchangeable group with probability at most ``risk`` (Angelopoulos et al., ICLR 2024, theorem 1; the
    loss is 0 or 1 and made monotone here).

    Args:
        harmed: ``[G, K]`` bool by group and setting, in the order of what they save; who is harmed by one counts as harmed
            by all that follow.
        risk: in (0, 1).

    Returns:
        Index of the setting; None: not even the first keeps it.

    Raises:
        ValueError: ``risk`` outside (0, 1), too few groups for it even if none is harmed.
    """
    if not 0 < risk < 1:
        raise ValueError(f"risk = {risk}: expected a share in (0, 1)")
    groups = len(harmed)
    if 1 / (groups + 1) > risk:
        raise ValueError(
            f"{groups} groups promise no risk of {risk:g}: expected at least {math.ceil(1 / risk - 1 - 1e-9)}"
        )
    kept = (np.maximum.accumulate(harmed, axis=1).sum(0) + 1) / (groups + 1) <= risk
    return int(np.flatnonzero(kept)[-1]) if kept.any() else None


def fit_intervals(ratio: np.ndarray, group: np.ndarray) -> Intervals:
    """Widths by coverage from ratios |error| / standard error of boundaries in groups that were not seen.

    Args:
        ratio: ``[M]`` >= 0. group: ``[M]`` which group each comes from.

    Raises:
        ValueError: fewer than two groups.
    """
    names, member = np.unique(group, return_inverse=True)
    count = len(names)
    if count < 2:
        raise ValueError(f"{count} groups with boundaries: expected at least 2")
    order = np.argsort(ratio, kind="stable")
    ratio, member = np.asarray(ratio, np.float64)[order], member[order]
    weight = (1 / np.bincount(member))[member]
    mass = np.cumsum(weight)  # sum over the groups of F_k

    def at(level: float, whole: float) -> float:
        """Smallest ratio whose mass is ``level`` of ``whole``."""
        place = int(np.searchsorted(mass, level * whole - 1e-9))
        return float(ratio[place]) if place < len(ratio) else math.inf

    guaranteed = [at(level, count + 1.0) for level in LEVELS]
    nominal = np.concatenate([np.linspace(0.02, 0.9, 111), np.linspace(0.9, 1, 101)[1:]])
    covered = np.zeros(len(nominal))
    for k in range(count):
        others = mass - np.cumsum(np.where(member == k, weight, 0.0))
        places = np.searchsorted(others, nominal * (count - 1) - 1e-9)
        inside = np.cumsum(np.where(member == k, weight, 0.0))  # F_k
        # Of equal masses the first is one of the others: ratios of the group left out that lie between do not count.
        covered += inside[np.minimum(places, len(ratio) - 1)]
    covered /= count
    expected = []
    for level in LEVELS:
        enough = np.flatnonzero(covered >= level - 1e-12)
        expected.append(at(float(nominal[enough[0]]), float(count)) if len(enough) else math.inf)
    rising = [tuple(np.maximum.accumulate(x).tolist()) for x in (guaranteed, expected)]
    return Intervals(LEVELS, rising[0], rising[1], groups=count, boundaries=len(ratio))


def fit_scale(ratio: np.ndarray, group: np.ndarray) -> float:
    """Factor for which 68 % and 95 % quantiles of |error| / std are as near 1 and 2 as one factor allows; groups alike."""
    member = np.unique(group, return_inverse=True)[1]
    order = np.argsort(ratio, kind="stable")
    mass = np.cumsum((1 / np.bincount(member))[member][order])
    quantiles = [ratio[order][np.searchsorted(mass, share * mass[-1])] for share in GAUSSIAN]
    return max(math.sqrt(quantiles[0] * quantiles[1] / 2), 1e-3)


def fit_probabilities(scores: np.ndarray, right: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots (scores, shares) of the rising step-like map from score to the share of right detections.

    Isotonic regression (pool adjacent violators, SciPy); a pool of n with h right has (h + 1/2) / (n + 1), so that no
    detection is called certain or impossible.

    Args:
        scores: ``[N]``; right: ``[N]`` bool, N >= 1.

    Raises:
        DataError: SciPy is missing.
    """
    pools = require("scipy.optimize", "calibrating", "calibrate", "scipy").isotonic_regression
    order = np.argsort(scores, kind="stable")
    score, hit = np.asarray(scores, np.float64)[order], np.asarray(right, np.float64)[order]
    # Equal scores are one point: the map cannot tell them apart.
    distinct, first, size = np.unique(score, return_index=True, return_counts=True)
    hits = np.add.reduceat(hit, first)
    blocks = pools(hits / size, weights=size).blocks[:-1]
    share = (np.add.reduceat(hits, blocks) + 0.5) / (np.add.reduceat(size, blocks) + 1)
    share = np.maximum.accumulate(share)
    last = np.append(blocks[1:] - 1, len(distinct) - 1)
    knots = [(distinct[a], p) for a, p in zip(blocks, share, strict=True)]
    knots += [(distinct[b], p) for a, b, p in zip(blocks, last, share, strict=True) if b > a]
    knots.sort()
    return tuple(float(s) for s, _ in knots), tuple(float(p) for _, p in knots)


def vote_inflation(lags: Sequence[float], window: int) -> float:
    """Standard error of the mean of 2 ``window`` + 1 votes with these correlations 1, 2, … steps apart, over that of as many
    independent ones; lags that are not given have the last one's correlation.
    """
    votes = 2 * window + 1
    known = [lags[min(k, len(lags)) - 1] for k in range(1, votes)] if lags else []
    return math.sqrt(max(1 + 2 * sum((votes - k) * r for k, r in enumerate(known, 1)) / votes, 0.0))


def _plain(value: Any) -> Any:
    return [_plain(x) for x in value] if isinstance(value, (tuple, list)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(content: Mapping[str, Any], name: str, missing: float | None = None) -> tuple[float, ...]:
    values = content.get(name)
    if isinstance(values, (list, tuple)):
        values = [missing if v is None and missing is not None else v for v in values]
        if all(_is_number(v) or v == missing for v in values):
            return tuple(float(v) for v in values)
    raise ValueError(f"{name}: expected a list of numbers")


def _count(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a count")
    return value

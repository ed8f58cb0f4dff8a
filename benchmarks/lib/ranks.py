"""Rank correlations and permutation tests."""

from __future__ import annotations

from typing import Any

import numpy as np

PERMUTATIONS = 10_000


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; tied values share their mean rank."""
    _, back, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - 0.5 * (count - 1))[back]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def centred_ranks(values: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Ranks minus the mean rank of each value's set."""
    found = ranks(values)
    return found - np.array([found[sets == s].mean() for s in sets])


def correlation(rows: list[dict[str, Any]], key: str, rng: np.random.Generator) -> dict[str, float]:
    """Spearman correlation of ``key`` with ``gain`` over rows, and inside their ``set``, with two-sided p-values.

    Inside: each set's mean rank is taken off, and permutations stay within the sets.
    """
    usable = [r for r in rows if np.isfinite(r[key])]
    x, gain = (np.array([r[k] for r in usable]) for k in (key, "gain"))
    sets = np.array([r["set"] for r in usable])
    if len(usable) < 4:  # a smoke run may find nothing
        return dict.fromkeys(("all", "all_p", "within", "within_p"), float("nan")) | {"classes": len(usable)}
    pooled = rank_correlation(x, gain)
    inner_x, inner_gain = centred_ranks(x, sets), centred_ranks(gain, sets)

    def inner(shuffled: np.ndarray) -> float:
        return float((inner_x * shuffled).sum() / np.sqrt((inner_x**2).sum() * (shuffled**2).sum()))

    chance, chance_inner = [], []
    for _ in range(PERMUTATIONS):
        chance.append(abs(rank_correlation(x, rng.permutation(gain))))
        mixed = np.empty_like(inner_gain)
        for s in np.unique(sets):
            mixed[sets == s] = rng.permutation(inner_gain[sets == s])
        chance_inner.append(abs(inner(mixed)))
    within = inner(inner_gain)
    return {
        "classes": len(usable), "all": pooled, "all_p": _p(chance, pooled),
        "within": within, "within_p": _p(chance_inner, within),
    }  # fmt: skip


def _p(chance: list[float], found: float) -> float:
    return (1 + sum(c >= abs(found) - 1e-12 for c in chance)) / (1 + len(chance))

"""How good predicted errors are: coverage, width, ENCE, CRPS of boundaries; Brier score and ECE of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tzn.calibration import gaussian_factor

LEVELS = (0.5, 0.8, 0.9, 0.95)
BINS = 10
TAUS = (np.arange(100) + 0.5) / 100  # shares of the predictive distribution; its tails beyond 0.5 % are cut there

Factor = Callable[[float], float]


def group_mean(values: np.ndarray, group: np.ndarray) -> float:
    """Mean over groups of their means."""
    member = np.unique(group, return_inverse=True)[1]
    return float((np.bincount(member, values) / np.bincount(member)).mean())


def boundary_measures(error: np.ndarray, std: np.ndarray, group: np.ndarray, factor: Factor) -> dict[str, Any]:
    """Of intervals ``factor(coverage) * std`` around boundaries with these absolute errors, groups counted alike.

    Returns:
        ``coverage`` by level; ``half_width`` median half width of the 90 % intervals, seconds (inf: no finite one); ``crps``
        in seconds, of the symmetric distribution whose central intervals these are; ``ence``: expected normalised
        calibration error (Levi et al. 2022): mean over ten bins of equal count by std of |rms(std) - rms(error)| /
        rms(std), with std as it stands.
    """
    half = np.array([factor(abs(2 * tau - 1)) if tau != 0.5 else 0.0 for tau in TAUS])
    half = np.where(np.isfinite(half), half, half[np.isfinite(half)].max(initial=0.0))
    quantile = np.sign(TAUS - 0.5) * half * std[:, None]  # of the error's distribution, centred at the detection
    # Errors are absolute, distributions symmetric: the score is that of either sign.
    miss = error[:, None] - quantile
    crps = 2 * np.maximum(TAUS * miss, (TAUS - 1) * miss).mean(1)
    order = np.argsort(std, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    rms = [(math.sqrt((std[b] ** 2).mean()), math.sqrt((error[b] ** 2).mean())) for b in bins]
    return {
        "coverage": {str(level): group_mean(error <= factor(level) * std, group) for level in LEVELS},
        "half_width": float(np.median(factor(0.9) * std)), "crps": group_mean(crps, group),
        "ence": float(np.mean([abs(claimed - true) / claimed for claimed, true in rms])),
    }  # fmt: skip


def gaussian(coverage: float) -> float:
    return gaussian_factor(min(max(coverage, 1e-9), 1 - 1e-9))


def probability_measures(chance: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """``brier`` score, and ``ece``: expected calibration error over ten bins of equal count."""
    if not len(chance):
        return {"brier": math.nan, "ece": math.nan}
    order = np.argsort(chance, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [abs(chance[b].mean() - right[b].mean()) * len(b) for b in bins]
    return {"brier": float(((chance - right) ** 2).mean()), "ece": float(sum(gaps) / max(len(chance), 1))}

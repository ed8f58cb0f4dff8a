"""What kind of numbers every channel of a data set holds, from a sample of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONSTANT, BINARY, ONE_HOT, LEVELS, WRAPPING = "constant", "binary", "one-hot", "levels", "wrapping"
HEAVY, POSITIVE, SIGNED = "heavy-tailed", "positive", "signed"
# Neither noise nor gain makes sense of these: other values than those that occur mean nothing, or another thing.
EXACT = (CONSTANT, BINARY, ONE_HOT, LEVELS, WRAPPING)
FEW_LEVELS = 8
HEAVY_KURTOSIS = 30.0  # a Laplace distribution has 6, a Gaussian 3
WRAP_JUMP = 0.8  # of the range, from one step to the next


@dataclass(frozen=True)
class Channels:
    """Kinds and scales of the stored channels.

    Attributes:
        kinds: one of the names above per channel.
        mean, std: ``[C]`` of the sampled steps.
        middle: ``[C]`` median size.
    """

    kinds: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    middle: np.ndarray

    def of(self, *kinds: str) -> tuple[int, ...]:
        """Indices of the channels of these kinds."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind in kinds)

    @property
    def scale_ratio(self) -> float:
        """Largest over smallest standard deviation of the channels that vary; 1 without any."""
        varying = self.std[[i for i in range(len(self.kinds)) if self.kinds[i] != CONSTANT]]
        return float(varying.max() / varying.min()) if len(varying) and varying.min() > 0 else 1.0

    def summary(self) -> str:
        """Such as "6 signed, 1 binary"."""
        return ", ".join(f"{self.kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.kinds))


def describe_channels(pieces: list[np.ndarray]) -> Channels:
    """Kinds of the channels of stretches of consecutive steps ``[n_i, C]``."""
    rows = np.concatenate(pieces).astype(np.float64)
    mean, std = rows.mean(0), rows.std(0)
    kinds = [_kind(rows[:, c], [p[:, c].astype(np.float64) for p in pieces], std[c]) for c in range(rows.shape[1])]
    for c in _one_hot([kind == BINARY for kind in kinds], rows):
        kinds[c] = ONE_HOT
    return Channels(tuple(kinds), mean, std, np.median(np.abs(rows), axis=0))


def _one_hot(binary: list[bool], rows: np.ndarray) -> set[int]:
    """Neighbouring flags of which exactly one is set everywhere: the longest such run from every place."""
    found: set[int] = set()
    start = 0
    while start < len(binary):
        total, reach = np.zeros(len(rows)), start
        for c in range(start, len(binary)):
            if not binary[c]:
                break
            total = total + (rows[:, c] != 0)
            if total.max() > 1:
                break
            if total.min() == 1 and c > start:
                reach = c + 1
        found |= set(range(start, reach))
        start = max(reach, start + 1)
    return found


def _kind(values: np.ndarray, pieces: list[np.ndarray], std: float) -> str:
    low, high = values.min(), values.max()
    if std <= 1e-7 * max(abs(low), abs(high)) + 1e-12:
        return CONSTANT
    distinct = np.unique(values[:: max(len(values) // 4096, 1)])
    if len(distinct) <= FEW_LEVELS:
        distinct = np.unique(values)
    if len(distinct) == 2:
        return BINARY
    if len(distinct) <= FEW_LEVELS and np.all(distinct == np.round(distinct)):
        return LEVELS
    if _wraps(pieces, low, high):
        return WRAPPING
    if float(np.mean(((values - values.mean()) / std) ** 4)) > HEAVY_KURTOSIS:
        return HEAVY
    return POSITIVE if low >= 0 else SIGNED


def _wraps(pieces: list[np.ndarray], low: float, high: float) -> bool:
    """Angles: a range of 2 pi or 360 (or of 1 or 24, as hours) that is left at one end and entered again at the other."""
    span = high - low
    if not any(0.95 * full <= span <= 1.001 * full for full in (2 * np.pi, 360.0, 24.0, 1.0)):
        return False
    jumps = np.concatenate([np.abs(np.diff(p)) for p in pieces if len(p) > 1] or [np.zeros(0)])
    wraps = jumps > WRAP_JUMP * span
    # Rare against small changes: a signal that only jumps between its ends is none that turns around.
    return bool(wraps.sum() >= 2 and wraps.mean() < 0.2 and np.median(jumps) < 0.1 * span)

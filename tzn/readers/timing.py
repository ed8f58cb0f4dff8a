"""Samples at any times, with holes, as samples at one rate."""

from __future__ import annotations

import numpy as np

from tzn.data.signal import resample
from tzn.errors import DataError

REGULAR = (
    0.3  # periods that timestamps may stray and still count as one clock's; a sample left out strays by 0.5 or more
)


def at_one_rate(
    times: np.ndarray, values: np.ndarray, names: tuple[str, ...], rate: float | None, max_gap: float
) -> tuple[np.ndarray, float]:
    """Samples taken at ``times``, at a uniform rate: (values ``[T, C]`` float32, samples a second).

    Rows of one time are averaged. Timestamps within 0.3 periods of a steady clock are taken as that clock; others are
    interpolated linearly onto a grid of their median period. Then SciPy's polyphase filter changes the rate.

    Args:
        times: ``[N]`` seconds, not falling.
        values: ``[N, C]``, NaN where a value is missing.
        names: C names, for messages.
        rate: samples a second wanted; None: as they are.
        max_gap: holes of up to this many seconds are bridged by straight lines, longer ones refused.

    Raises:
        DataError: falling times, fewer than two samples, a longer hole, rates more than a factor 1,000 apart.
    """
    times, values = _merged(times, values)
    if len(times) < 2:
        raise DataError(f"{len(times)} samples at different times, expected at least two")
    steps = np.diff(times)
    period = float(np.median(steps))
    longest = int(np.argmax(steps))
    if steps[longest] > max(max_gap, 1.5 * period):
        raise DataError(_gap_text("no samples", times[longest] - times[0], steps[longest], max_gap))
    values = _filled(times, values, names, max_gap)
    clock = np.linspace(times[0], times[-1], len(times))
    if np.abs(times - clock).max() > REGULAR * period:
        clock = np.linspace(times[0], times[-1], round((times[-1] - times[0]) / period) + 1)
        values = np.stack([np.interp(clock, times, column) for column in values.T], axis=1)
    found = float(f"{(len(clock) - 1) / float(clock[-1] - clock[0]):.12g}")  # 100, not 100.00000000000001
    # A clock's rate is known to a few digits only; 50.0002 a second is 50.
    if rate is not None and abs(found / rate - 1) * len(clock) < REGULAR:
        found = rate
    values = values.astype(np.float32)
    return (values, found) if rate is None else (resample(values, found, rate), rate)


def _merged(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of equal time averaged."""
    steps = np.diff(times)
    if (steps < 0).any():
        row = int(np.argmax(steps < 0))
        raise DataError(f"row {row + 2}: the time falls by {-steps[row]:g} s; expected times in order")
    first = np.flatnonzero(np.concatenate([[True], steps > 0])[: len(times)])
    if len(first) == len(times):
        return times, values
    known = np.isfinite(values)
    count = np.add.reduceat(known, first, axis=0, dtype=np.int64)
    total = np.add.reduceat(np.where(known, values, 0.0), first, axis=0)
    with np.errstate(invalid="ignore"):
        return times[first], total / count


def _filled(times: np.ndarray, values: np.ndarray, names: tuple[str, ...], max_gap: float) -> np.ndarray:
    """Missing values bridged by straight lines, or held at the ends."""
    known = np.isfinite(values)
    if known.all():
        return values
    values = values.copy()
    for c in np.flatnonzero(~known.all(0)):
        at = times[known[:, c]]
        if not len(at):
            raise DataError(f"channel {names[c]!r} holds no values")
        edges = np.concatenate([times[:1], at, times[-1:]])
        holes = np.diff(edges)
        # Steps between neighbouring rows are no holes of this channel, however long.
        between = np.diff(np.searchsorted(times, edges)) > 1
        between[[0, -1]] = True
        holes = np.where(between, holes, 0.0)
        worst = int(np.argmax(holes))
        if holes[worst] > max_gap:
            what = f"channel {names[c]!r} has no values"
            raise DataError(_gap_text(what, edges[worst] - times[0], holes[worst], max_gap))
        values[:, c] = np.interp(times, at, values[known[:, c], c])
    return values


def _gap_text(what: str, at: float, length: float, max_gap: float) -> str:
    return (
        f"{what} for {length:.3g} s from {at:.3f} s on; holes of up to {max_gap:g} s are bridged: "
        "cut the recording there, or allow more (max_gap)"
    )

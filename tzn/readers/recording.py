"""What every reader returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Recording:
    """One recording as numbers in time.

    Attributes:
        values: ``[T, C]`` float32, finite.
        rate: rows a second.
        channels: C names.
        start: seconds at which the first row was taken: its timestamp (of dates: since 1970, UTC), or 0. Segments are
            counted from there.
    """

    values: np.ndarray
    rate: float
    channels: tuple[str, ...]
    start: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds covered."""
        return len(self.values) / self.rate

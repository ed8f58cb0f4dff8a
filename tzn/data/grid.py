"""Grid steps and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimeGrid:
    """Feature step i is centred at ``i * step + offset`` seconds.

    Attributes:
        step: seconds from one feature step to the next (``feat_stride / fps``).
        offset: centre of step 0 in seconds (``0.5 * num_frames / fps``).
    """

    step: float
    offset: float

    def to_seconds(self, steps: Any) -> Any:
        """Grid steps (number, array or tensor) to seconds."""
        return steps * self.step + self.offset

    def to_steps(self, seconds: Any) -> Any:
        """Seconds (number, array or tensor) to grid steps."""
        return (seconds - self.offset) / self.step

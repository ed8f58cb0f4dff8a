"""The map between feature steps and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimeGrid:
    """Uniform grid of feature steps.

    Attributes:
        step: seconds from one feature step to the next, ``feat_stride / fps``.
        offset: centre of step 0 in seconds, ``0.5 * num_frames / fps``.
    """

    step: float
    offset: float

    @classmethod
    def from_frames(cls, feat_stride: float, num_frames: float, fps: float) -> TimeGrid:
        """Grid of features that see ``num_frames`` raw frames every ``feat_stride`` frames."""
        return cls(feat_stride / fps, 0.5 * num_frames / fps)

    def to_seconds(self, steps: Any) -> Any:
        """Seconds of (fractional) steps; numbers, NumPy arrays and tensors keep their type."""
        return steps * self.step + self.offset

    def to_steps(self, seconds: Any) -> Any:
        """(Fractional) steps of seconds; the inverse of :meth:`to_seconds`."""
        return (seconds - self.offset) / self.step

    def cropped(self, start: float) -> TimeGrid:
        """The grid whose step 0 is step ``start`` of this one."""
        return TimeGrid(self.step, self.offset + start * self.step)

    def resized(self, length: int, new_length: int) -> TimeGrid:
        """The grid after a linear resize of ``length`` steps to ``new_length`` that keeps the outer edges of the first
        and last step in place (``align_corners=False``)."""
        ratio = length / new_length
        return TimeGrid(self.step * ratio, self.offset + (0.5 * ratio - 0.5) * self.step)

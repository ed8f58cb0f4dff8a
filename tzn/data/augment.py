"""Random crops and time stretch of training recordings, in grid steps."""

from __future__ import annotations

import numpy as np

CROP_TRIES = 200


def clip_segments(
    segments: np.ndarray, start: float, stop: float, reach: float, trunc_thresh: float
) -> tuple[np.ndarray, np.ndarray]:
    """Segments as seen through the window of steps ``[start, stop)``.

    Args:
        segments: ``[N, 2]`` in steps.
        start, stop: the window.
        reach: steps that features see beyond their centre, ``0.5 * num_frames / feat_stride``; added on both sides.
        trunc_thresh: a segment is kept when at least this share of its length is inside.

    Returns:
        Clipped segments ``[K, 2]`` (not shifted) and the indices ``[K]`` of those kept.
    """
    clipped = np.clip(segments, start - reach, stop + reach)
    inside = clipped[:, 1] - clipped[:, 0]
    kept = np.flatnonzero((inside > 0) & (inside >= trunc_thresh * (segments[:, 1] - segments[:, 0])))
    return clipped[kept], kept


def random_crop(
    segments: np.ndarray,
    length: int,
    max_length: int,
    crop_ratio: tuple[float, float] | None,
    trunc_thresh: float,
    reach: float,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """A random window ``(start, stop)`` that shows at least one segment where 200 tries find one.

    A recording longer than ``max_length`` is cut to it; a shorter one to a random share within ``crop_ratio``
    (ActionFormer's scheme).
    """
    size = max_length
    if length <= max_length:
        if crop_ratio is None:
            return 0, length
        low, high = max(round(crop_ratio[0] * length), 1), min(round(crop_ratio[1] * length), length)
        size = int(rng.integers(low, max(low, high) + 1))
    if size >= length:
        return 0, length
    for _ in range(CROP_TRIES):
        start = int(rng.integers(0, length - size + 1))
        if len(segments) == 0 or len(clip_segments(segments, start, start + size, reach, trunc_thresh)[1]):
            break
    return start, start + size


def stretch_length(length: int, stretch: float, rng: np.random.Generator) -> int:
    """New length of a recording resampled by a random factor, log-uniform in ``[1 / (1 + stretch), 1 + stretch]``."""
    limit = np.log1p(stretch)
    return max(round(length * float(np.exp(rng.uniform(-limit, limit)))), 1)

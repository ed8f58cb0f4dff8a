"""Random crops and time stretch of training recordings, in grid steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tzn.config import DataConfig
from tzn.data.annotations import Recording

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


class CropSampler:
    """Which recording the ``crops_per_epoch`` training crops of an epoch come from.

    The expected number of a recording's crops is proportional to its length (to ``max_length`` where it is shorter, as a
    crop of it is then nearly all of it), and differs from it by less than one: the crops lie evenly on one line of all
    recordings, which moves from epoch to epoch. A share ``balance`` is drawn by class instead.

    Args:
        recordings: with labels as the network sees them.
        steps: ``[N]`` lengths in grid steps.
        config: ``crops_per_epoch``, ``max_length`` and ``balance``.
        seed: of the run.
    """

    def __init__(self, recordings: Sequence[Recording], steps: np.ndarray, config: DataConfig, seed: int) -> None:
        assert config.crops_per_epoch is not None
        self.crops, self.balance, self.seed = config.crops_per_epoch, config.balance, seed
        self._ends = np.cumsum(np.maximum(steps / config.max_length, 1.0))
        self._recordings = recordings
        labels = np.concatenate([r.labels for r in recordings])
        owner = np.repeat(np.arange(len(recordings)), [len(r.labels) for r in recordings])
        within = np.concatenate([np.arange(len(r.labels)) for r in recordings])
        # (recording, segment) of every segment of a class, classes without any left out
        self._by_class = [np.stack([owner[labels == c], within[labels == c]], 1) for c in np.unique(labels)]

    def draw(self, epoch: int, item: int, rng: np.random.Generator) -> tuple[int, float | None]:
        """Recording of a crop, and a place in it (seconds) that the crop must show, or None."""
        if self.balance and self._by_class and rng.random() < self.balance:
            members = self._by_class[int(rng.integers(len(self._by_class)))]
            index, segment = members[int(rng.integers(len(members)))]
            return int(index), float(self._recordings[index].segments[segment].mean())
        shift = np.random.default_rng([self.seed, epoch]).random()
        place = (item + shift) / self.crops * self._ends[-1]
        return int(min(np.searchsorted(self._ends, place, "right"), len(self._ends) - 1)), None


def focused_crop(
    segments: np.ndarray,
    length: int,
    max_length: int,
    crop_ratio: tuple[float, float] | None,
    trunc_thresh: float,
    reach: float,
    rng: np.random.Generator,
    focus: float | None,
) -> tuple[int, int]:
    """:func:`random_crop`, or with a ``focus`` (in steps) one of its windows that shows this place."""
    start, stop = random_crop(segments, length, max_length, crop_ratio, trunc_thresh, reach, rng)
    if focus is None or start <= focus < stop:
        return start, stop
    size = stop - start
    low, high = max(0, int(np.ceil(focus)) - size + 1), min(int(focus), length - size)
    start = int(rng.integers(low, high + 1)) if low <= high else min(max(low, 0), length - size)
    return start, start + size

"""Network and crop sizes that fit the lengths of a data set's segments."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_LEVELS = 8
POINTS_INSIDE = 4
NEARLY = 0.07  # of a doubling: 5 % short of four points pass for four
COARSEST_FIRST_STRIDE = 8
OPEN_END = 10000


@dataclass(frozen=True)
class Suggestions:
    """Values for the ``model`` and ``data`` sections, in grid steps."""

    first_stride: int
    num_levels: int
    regression_ranges: tuple[tuple[int, int], ...]
    boundary_radius: int
    max_length: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, sections as in a configuration file, and the notes."""
        values = dataclasses.asdict(self)
        values["regression_ranges"] = [list(r) for r in self.regression_ranges]
        notes, max_length = list(values.pop("notes")), values.pop("max_length")
        return {"model": values, "data": {"max_length": max_length}, "notes": notes}


def suggest(segment_steps: np.ndarray, recording_steps: np.ndarray) -> Suggestions:
    """Sizes from lengths.

    Args:
        segment_steps: ``[N]`` lengths of the training segments in steps, N >= 1.
        recording_steps: ``[M]`` lengths of the training recordings in steps; may be empty where unknown.

    The finest level's stride puts four points inside all but the shortest 2 % of segments (where the grid allows). As
    in ActionFormer, a level of stride s answers for offsets from 2s to 4s, the finest also for smaller and the coarsest
    for larger ones; there are as many levels as it takes to reach half the length of the longest 2 %.
    """
    shortest, quick, longest = np.percentile(segment_steps, [2, 10, 98])
    first_stride = min(2 ** max(math.floor(math.log2(shortest / POINTS_INSIDE) + NEARLY), 0), COARSEST_FIRST_STRIDE)
    num_levels = 1 + max(math.ceil(math.log2(longest / 2 / (4 * first_stride))), 0)
    num_levels = min(num_levels, MOST_LEVELS)
    edges = [0, *(4 * first_stride * 2**i for i in range(num_levels - 1)), OPEN_END]
    # Votes come from near a boundary; a short segment's other end should lie outside.
    radius = int(np.clip(round(quick / 4), 4, 16))
    return Suggestions(
        first_stride,
        num_levels,
        tuple(itertools.pairwise(edges)),
        radius,
        _max_length(recording_steps, longest, first_stride << (num_levels - 1)),
        tuple(_notes(shortest, longest, OPEN_END)),
    )


def _max_length(recording_steps: np.ndarray, longest: float, coarsest: int) -> int:
    """Most recordings whole, but at most 2304 steps unless segments need more; a multiple of the coarsest stride."""
    wanted = max(2304.0, 4 * longest)
    if len(recording_steps):
        wanted = min(float(np.percentile(recording_steps, 95)), wanted)
    return math.ceil(wanted / coarsest) * coarsest


def _notes(shortest: float, longest: float, open_end: float) -> list[str]:
    notes = []
    if shortest < 2:  # not even two points of stride 1 inside
        notes.append(
            f"the shortest 2 % of segments last {shortest:.2g} steps or less: too coarse features for them "
            "(a smaller data.feat_stride at extraction would help)"
        )
    if longest / 2 > open_end:
        notes.append(
            f"the longest 2 % of segments last {longest:.0f} steps or more: extract features at a larger stride"
        )
    return notes

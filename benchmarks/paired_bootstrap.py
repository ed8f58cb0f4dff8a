"""Confidence intervals for the difference of two localizers on the same test recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tzn.detections import Detections
from tzn.evaluation.detection_map import Score, score_detections
from tzn.evaluation.flat import GroundTruth

Runs = Sequence[Mapping[str, Detections]]  # one set of detections per seed


def paired_difference(
    truth: Mapping[str, GroundTruth],
    first: Runs,
    second: Runs,
    classes: Sequence[str],
    tiou: Sequence[float],
    metric: Callable[[Score], float],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean over seeds of ``metric(second) - metric(first)``, with the 95 % interval of a paired bootstrap.

    Each resample draws recordings with replacement, the same ones for both sides, and a seed of either side per draw, so
    the interval covers both which people were recorded and how training went.
    """
    generator = np.random.default_rng(seed)
    names = list(truth)

    def difference(chosen: Sequence[str], one: Sequence[int], two: Sequence[int]) -> float:
        sides = [
            np.mean([metric(_score(truth, runs[i], chosen, classes, tiou)) for i in picks])
            for runs, picks in ((first, one), (second, two))
        ]
        return float(sides[1] - sides[0])

    everything = difference(names, range(len(first)), range(len(second)))
    draws = []
    for _ in range(resamples):
        chosen = generator.choice(names, len(names))
        one, two = (generator.integers(len(runs), size=1) for runs in (first, second))
        draws.append(difference(chosen, one, two))
    low, high = np.percentile(draws, [2.5, 97.5])
    return everything, float(low), float(high)


def _score(
    truth: Mapping[str, GroundTruth],
    found: Mapping[str, Detections],
    chosen: Sequence[str],
    classes: Sequence[str],
    tiou: Sequence[float],
) -> Score:
    # A recording drawn twice counts as two recordings.
    renamed = [(f"{name} {i}", name) for i, name in enumerate(chosen)]
    return score_detections({n: truth[o] for n, o in renamed}, {n: found[o] for n, o in renamed}, classes, tiou, (1,))

"""Confidence intervals for the difference of two localizers on the same test recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tzn.detections import Detections
from tzn.evaluation.detection_map import Score, score_detections
from tzn.evaluation.flat import GroundTruth

Runs = Sequence[Mapping[str, Detections]]  # one set of detections per seed
RESAMPLES = 500
Sides = tuple[Sequence, Sequence]  # per side, something of every seed


def paired_bootstrap(
    statistic: Callable[[object, Sequence[int]], float], sides: Sides, recordings: int, resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[float]:  # fmt: skip
    """[second minus first of ``sides``, low, high]: mean over seeds, 95 % interval of a paired bootstrap.

    Each resample draws recordings with replacement, the same ones for both sides, and a seed of either side, so the
    interval covers both which people were recorded and how training went.

    Args:
        statistic: of one seed's part of a side on recordings by index, some of them several times.
    """
    generator = np.random.default_rng(seed)
    first, second = (np.mean([statistic(run, range(recordings)) for run in side]) for side in sides)
    draws = []
    for _ in range(resamples):
        chosen = generator.choice(recordings, recordings)
        one, two = (side[int(generator.integers(len(side), size=1)[0])] for side in sides)
        draws.append(statistic(two, chosen) - statistic(one, chosen))
    return [float(second - first), *map(float, np.percentile(draws, [2.5, 97.5]))]


def paired_difference(
    truth: Mapping[str, GroundTruth], first: Runs, second: Runs, classes: Sequence[str], tiou: Sequence[float],
    metric: Callable[[Score], float] = lambda score: 100 * score.average_mAP, *, resamples: int = RESAMPLES,
) -> list[float]:  # fmt: skip
    """:func:`paired_bootstrap` of a metric of the detections' score, by default the mean mAP in percent."""
    names = list(truth)

    def scored(found: Mapping[str, Detections], chosen: Sequence[int]) -> float:
        # A recording drawn twice counts as two recordings.
        renamed = [(f"{names[i]} {at}", names[i]) for at, i in enumerate(chosen)]
        return metric(
            score_detections({n: truth[o] for n, o in renamed}, {n: found[o] for n, o in renamed}, classes, tiou, (1,))
        )

    return paired_bootstrap(scored, (first, second), len(names), resamples)

"""Interleaved timing: medians over rounds in which every run has its turn, so that a noisy minute meets all of them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

SECONDS, ROUNDS = 15.0, (7, 60)  # of an op's runs: none new after so long; least and most rounds
WARM = 10  # a predecessor that streams hundreds of megabytes through the caches is felt for as many calls


def interleaved(
    runs: Mapping[Any, Callable[[], Any]], device: str, rounds: tuple[int, int], seconds: float, *, warm: int = 0
) -> dict[Any, list[float]]:
    """Seconds of each run, one of every kind per round; ``rounds``: least and most; no new one after ``seconds``.

    ``warm``: how often each runs untimed at its turn, so that it finds its own data in the caches, not its predecessor's.
    """
    times: dict[Any, list[float]] = defaultdict(list)
    keys, begin = list(runs), time.perf_counter()
    for round_ in range(rounds[1]):
        if round_ >= rounds[0] and time.perf_counter() - begin > seconds:
            break
        for key in keys[round_ % len(keys) :] + keys[: round_ % len(keys)]:
            for _ in range(warm):
                runs[key]()
            times[key].append(timed(runs[key], device))
    return times


def timed(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles, 95th percentile and number of rounds."""
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return {"median": quartiles[1], "q1": quartiles[0], "q3": quartiles[2], "p95": p95, "rounds": len(seconds)}


def medians(runs: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """:func:`summary` of each run of an op, interleaved, after two of each that are not counted."""
    for run in runs.values():
        run()
        run()
    return {name: summary(times) for name, times in interleaved(runs, "cpu", ROUNDS, SECONDS, warm=WARM).items()}

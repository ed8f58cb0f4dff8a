"""Boundary crossings beside their definition: there is no other program for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.lib.goals import Measurement
from benchmarks.lib.parity import by_definition, checked
from benchmarks.lib.timing import medians
from tzn import ops

FIELDS, BOUNDARIES, RADIUS, ESTIMATORS = 2, 100, 16.0, ("crossing", "vote_mean", "vote_median")


def measure(steps: int) -> Measurement:
    torch.manual_seed(0)
    times = (torch.rand(FIELDS, BOUNDARIES) * steps).sort(dim=1).values
    distance = ops.signed_distance(times, steps, RADIUS) + 0.1 * torch.randn(FIELDS, steps)
    scale = torch.ones(FIELDS, steps)
    runs: dict[str, Callable[[], Any]] = {}
    for name in ESTIMATORS:
        runs[f"tzn, {name}"] = lambda name=name: ops.boundary_crossings(distance, scale, estimator=name)
        runs[f"definition, {name}"] = lambda name=name: by_definition(runs[f"tzn, {name}"])
    checked(runs, lambda name: runs[f"definition, {name.split(', ')[1]}"](), rtol=1e-4, atol=1e-4)
    return Measurement(f"boundary crossings, {FIELDS} fields, T = {steps}", medians(runs))

"""What of the multiply-adds that a threshold saves is saved in time, for the boundary stream of trained networks.

The stream of a network trained on a data set gets what it gets from test recordings laid end to end up to T steps. Each
round times full depth for all and every threshold once; saved time over saved multiply-adds is, of a round's two times,
(1 - time / full time) / (1 - multiply-adds / full multiply-adds), told as median and quartiles over rounds, by the clock on
the wall and by the processor's own, which does not count waiting for others on a shared machine.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence.zoom import real
from benchmarks.lib import parity
from benchmarks.lib.runs import dataset_of, trained
from benchmarks.planning import Store
from tzn.config_loading import config_from_dict
from tzn.models import TemporalZoomNet
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.profiling import count_multiply_adds

SETS = ("ludb", "hapt")
STEPS, THREADS = (2304, 9216), (1, 2)
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
ROUNDS, WARM = 41, 2


@torch.no_grad()
def stream_inputs(checkpoint: LoadedCheckpoint, data: Path, steps: int) -> tuple[Tensor, ...]:
    """x, context, mask of the boundary stream for ``steps`` steps of test recordings."""
    model = checkpoint.model.eval()
    assert isinstance(model, TemporalZoomNet) and model.boundary_stream is not None
    dataset = dataset_of(config_from_dict(checkpoint.config), data, "test", checkpoint.classes)
    parts: list[Tensor] = []
    for i in range(len(dataset)):
        if sum(map(len, parts)) < steps:
            parts.append(dataset[i].features)
    features = torch.cat(parts)[:steps].unsqueeze(0)
    if features.shape[1] < steps:
        raise ValueError(f"{data}: {features.shape[1]} test steps, expected at least {steps}")
    seen: list[tuple[Tensor, ...]] = []
    hook = model.boundary_stream.register_forward_pre_hook(lambda _, given: seen.append(given))
    try:
        model.trunk(features, torch.ones(1, steps, dtype=torch.bool))
    finally:
        hook.remove()
    return seen[0]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    for _ in range(WARM):
        run()
    wall, own = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - own


def quartiles(values: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in np.quantile(values, (0.5, 0.25, 0.75))]


@torch.no_grad()
def cell(checkpoint: LoadedCheckpoint, given: tuple[Tensor, ...], threads: int) -> list[dict[str, Any]]:
    """A row per threshold: multiply-adds, seconds and the ratio."""
    torch.set_num_threads(threads)
    stream, mask = checkpoint.model.boundary_stream, given[2]
    layers = len(stream.blocks)  # type: ignore[union-attr,arg-type]
    asked: dict[float, dict[str, Tensor]] = {math.inf: {"gates": torch.ones(*mask.shape, layers)}}
    for threshold in THRESHOLDS:
        asked[threshold] = {"shift": torch.full((1, 1), math.log(stream.threshold / threshold))}  # type: ignore[union-attr,operator,arg-type]
    runs = {key: functools.partial(stream, *given, **how, last_only=True) for key, how in asked.items()}  # type: ignore[arg-type]
    for key, how in asked.items():
        quick, whole = runs[key](), parity.by_definition(functools.partial(stream, *given, **how))  # type: ignore[arg-type]
        pairs = [(zoomed.exits[-1].distance, zoomed.exits[-1].scale, zoomed.gates) for zoomed in (quick, whole)]
        parity.same(f"threshold {key:g}", *pairs, rtol=1e-3, atol=1e-3)
    counted = {key: count_multiply_adds(run) for key, run in runs.items()}
    keys, times = list(runs), {key: [] for key in runs}  # type: ignore[var-annotated]
    for round_ in range(ROUNDS):
        for key in keys[round_ % len(keys) :] + keys[: round_ % len(keys)]:
            times[key].append(timed(runs[key]))
    seconds = {key: np.array(found).T for key, found in times.items()}  # [2, rounds]
    rows = []
    for threshold in THRESHOLDS:
        zoomed, cost = counted[threshold]
        saved = 1 - cost / counted[math.inf][1]
        row: dict[str, Any] = {
            "threshold": threshold, "threads": threads, "steps": mask.shape[1], "mac": cost, "full_mac": counted[math.inf][1],
            "active": float((zoomed.gates > 0).float().mean()),
            "small_gates": float(((zoomed.gates > 0) & (zoomed.gates < 0.1)).sum() / (zoomed.gates > 0).sum().clamp(min=1)),
        }  # fmt: skip
        for place, clock in enumerate(("wall", "own")):
            here, all_ = seconds[threshold][place], seconds[math.inf][place]
            row[clock] = {
                "seconds": quartiles(here), "full": quartiles(all_), "ratio": quartiles((1 - here / all_) / saved),
                "of_medians": float((1 - np.median(here) / np.median(all_)) / saved),
            }  # fmt: skip
        rows.append(row)
    return rows


def measure(data: str, root: Path, runs: Path) -> list[dict[str, Any]]:
    folder = root / data
    checkpoint = trained(real.config_of(folder, real.Job(data, "zoom", 0)), folder, runs / f"times_{data}", 0)
    rows = []
    for steps in STEPS:
        given = stream_inputs(checkpoint, folder, steps)
        for threads in THREADS:
            rows += cell(checkpoint, given, threads)
    torch.set_num_threads(1)
    return rows


def main(store: Store, root: Path, runs: Path, sets: list[str] | None) -> None:
    for data in sets or SETS:
        store.once(f"times/{data}/0", lambda data=data: {"rows": measure(data, root, runs)})

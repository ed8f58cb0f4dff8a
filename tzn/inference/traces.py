"""Traces: what the network saw along a recording, saved for plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tzn.data.grid import TimeGrid
from tzn.files import atomic_write
from tzn.inference.localize import Trace
from tzn.ops import Crossings


def trace_arrays(trace: Trace, grid: TimeGrid) -> dict[str, np.ndarray]:
    """Arrays by name, in seconds: ``time``, ``depth`` and, per side, ``*_distance``, ``*_scale`` ``[T]``, ``*_crossings``."""
    steps = trace.depth.shape[0]
    arrays = {"time": grid.to_seconds(np.arange(steps, dtype=np.float64)), "depth": trace.depth.float().cpu().numpy()}
    nothing = torch.full((2, steps), float("nan"))
    distance = nothing if trace.distance is None else trace.distance.float().cpu()
    scale = nothing if trace.scale is None else trace.scale.float().cpu()
    for i, side in enumerate(("start", "end")):
        arrays[f"{side}_distance"] = distance[i].numpy() * grid.step
        arrays[f"{side}_scale"] = scale[i].abs().numpy() * grid.step
        arrays[f"{side}_crossings"] = _seconds((trace.starts, trace.ends)[i], grid)
    return arrays


def _seconds(crossings: Crossings | None, grid: TimeGrid) -> np.ndarray:
    if crossings is None:
        return np.zeros(0)
    return grid.to_seconds(crossings.position[0, : int(crossings.count[0])].double().cpu().numpy())


def save_trace(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write ``folder/name.npz``."""
    path = folder / f"{name}.npz"
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path

"""How sharp or ambiguous annotated boundaries are: from the data alone, and from a trained distance head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.runs import dataset_of
from tzn.config_loading import config_from_dict
from tzn.data.dataset import Example, fit_standardisation
from tzn.models.checkpoint import LoadedCheckpoint

NEAR, FAR = 1.0, 8.0  # grid steps


def examples(checkpoint: LoadedCheckpoint, data: Path, split: str, most: int | None = None) -> list[Example]:
    """Whole recordings of a split, at most ``most``; features ``[T, 2 C]``: standardised channels and their magnitudes.

    Magnitudes let an oscillation that starts at a boundary count, whose mean is that of rest.
    """
    config = config_from_dict(checkpoint.config)
    dataset = dataset_of(config, data, split, checkpoint.classes, most=most)
    mean, std = fit_standardisation(dataset)
    found = [dataset[i] for i in range(len(dataset))]
    for example in found:
        standard = (example.features - mean) / std
        example.features = torch.cat([standard, standard.abs()], dim=1)
    return found


def at_times(features: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Features ``[T, C]`` linearly interpolated at ``times`` ``[...]`` in steps; the ends continue."""
    clipped = np.clip(times, 0, len(features) - 1)
    low = np.minimum(clipped.astype(int), max(len(features) - 2, 0))
    share = (clipped - low)[..., None]
    high = np.minimum(low + 1, len(features) - 1)
    return (1 - share) * features[low] + share * features[high]


def profiles(recordings: Sequence[Example], label: int, side: int) -> np.ndarray:
    """``[N, 2 K + 1, C]`` standardised features around each start (side 0) or end (1) of a class, every half step."""
    lags = np.arange(-2 * FAR, 2 * FAR + 1) / 2
    found = []
    for example in recordings:
        boundaries = example.segments[example.labels == label, side].numpy()
        inside = (boundaries >= FAR) & (boundaries <= example.features.shape[0] - 1 - FAR)
        found.append(at_times(example.features.numpy(), boundaries[inside, None] + lags))
    return np.concatenate(found)


def sharpness(windows: np.ndarray) -> float:
    """Energy of the mean change within +-1 step over that of the mean change within +-8 steps.

    The mean runs over the boundaries ``[N, 2 K + 1, C]`` of a class, so only what they have in common counts; the energy
    that averaging N independent changes leaves by chance is taken off. 1: all of the change is within a step.
    """
    lags = np.arange(-2 * FAR, 2 * FAR + 1) / 2

    def energy(width: float) -> float:
        after, before = np.searchsorted(lags, width), np.searchsorted(lags, -width)
        change = windows[:, after] - windows[:, before]
        return float((change.mean(0) ** 2).sum() - change.var(0, ddof=1).sum() / len(change))

    far = energy(FAR)
    return max(energy(NEAR), 0.0) / far if far > 0 else float("nan")


def class_sharpness(recordings: Sequence[Example], label: int) -> float:
    """Mean of the :func:`sharpness` of starts and ends; NaN with fewer than ten boundaries or no common change."""
    values = [sharpness(w) for side in (0, 1) if len(w := profiles(recordings, label, side)) >= 10]
    return float(np.nanmean(values)) if values and not np.isnan(values).all() else float("nan")


def local_sharpness(recordings: Sequence[Example], label: int) -> np.ndarray:
    """``[N]`` share of the change's energy at single boundaries that falls within +-1 step, in [0, 1]."""
    lags = np.arange(-2 * FAR, 2 * FAR + 1) / 2
    near, far = (np.searchsorted(lags, (-w, w)) for w in (NEAR, FAR))
    windows = np.concatenate([profiles(recordings, label, side) for side in (0, 1)])
    small = ((windows[:, near[1]] - windows[:, near[0]]) ** 2).sum(-1)
    large = ((windows[:, far[1]] - windows[:, far[0]]) ** 2).sum(-1)
    return small / np.maximum(small + large, 1e-12)


@torch.no_grad()
def boundary_scales(checkpoint: LoadedCheckpoint, data: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """By class, the distance head's Laplace scale (steps) at the true starts and ends of the test recordings."""
    config = config_from_dict(checkpoint.config)
    dataset = dataset_of(config, data, "test", checkpoint.classes)
    found: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    for i in range(len(dataset)):
        example = dataset[i]
        mask = torch.ones(1, example.features.shape[0], dtype=torch.bool)
        scale = checkpoint.model(example.features.unsqueeze(0), mask).distance_scale[0].numpy()
        rows = np.clip(np.rint(example.segments.numpy()), 0, len(example.features) - 1).astype(int)
        for label, name in enumerate(classes):
            mine = rows[example.labels.numpy() == label]
            found[name] += [scale[0, mine[:, 0]], scale[1, mine[:, 1]]]
    return {name: np.concatenate(values) for name, values in found.items()}

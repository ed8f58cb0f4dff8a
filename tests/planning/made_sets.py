"""Small data folders with the oddities that a plan must live with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_set(
    folder: Path, recordings: dict[str, tuple[np.ndarray, list[tuple[float, float, str]], dict[str, Any]]]
) -> Path:
    """A data folder of (features, segments with labels, other fields of the entry) by id."""
    (folder / "features").mkdir(parents=True)
    database = {}
    for key, (features, segments, fields) in recordings.items():
        np.save(folder / "features" / f"{key}.npy", features)
        annotations = [{"segment": [start, end], "label": label} for start, end, label in segments]
        database[key] = {"subset": "training", **fields, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return folder


def signal(
    rng: np.random.Generator, rate: float, seconds: float, lengths: tuple[float, float], classes: int, channels: int = 4
) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """Noise in which every class lifts a channel of its own, and the segments."""
    features = rng.standard_normal((int(rate * seconds), channels)).astype(np.float32) * 0.3
    segments, at = [], float(rng.uniform(0, lengths[1]))
    while True:
        length = float(np.exp(rng.uniform(*np.log(lengths))))
        if at + length > seconds - 1 / rate:
            return features, segments
        label = int(rng.integers(classes))
        features[round(at * rate) : round((at + length) * rate), label % channels] += 2 + label // channels
        segments.append((round(at, 4), round(at + length, 4), f"class_{label}"))
        at += length * float(rng.uniform(1.2, 2.5))


def many(
    folder: Path, count: int, rate: float, seconds: float, lengths: tuple[float, float], classes: int,
    test: int = 1, names: str = "rec{:02d}", **fields: Any,
) -> Path:  # fmt: skip
    """``count`` training and ``test`` test recordings of :func:`signal`."""
    rng = np.random.default_rng(0)
    made = {}
    for i in range(count + test):
        features, segments = signal(rng, rate, seconds, lengths, classes)
        subset = {"subset": "training" if i < count else "test"}
        made[names.format(i)] = (features, segments, {"fps": rate, "duration": seconds} | subset | fields)
    return write_set(folder, made)

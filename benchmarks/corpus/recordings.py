"""Recordings of LUDB's and HAPT's shape, drawn so that the models that ship find about as much in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tzn.corpus.manifest import Item

KINDS = ("ludb", "hapt")
SHARE = {"ludb": 0.75, "hapt": 0.25}
RATE = {"ludb": 250.0, "hapt": 50.0}  # samples a second


def ecg(rng: np.random.Generator) -> np.ndarray:
    """``[T, 12]`` float32, unit of a standardised lead: P, QRS and T waves at 50 to 110 beats a minute, wander and noise."""
    steps, rate = int(rng.integers(1178, 2226)), 250.0
    time_ = np.arange(steps) / rate
    wave = np.zeros(steps)
    leads = rng.normal(0.6, 0.5, (3, 12))
    parts = np.zeros((3, steps))
    at, period = rng.uniform(0, 0.5), 60 / rng.uniform(50, 110)
    while at < time_[-1] + 1:
        for part, (shift, width, height) in enumerate(((-0.17, 0.022, 0.15), (0.0, 0.012, 1.2), (0.28, 0.045, 0.35))):
            parts[part] += height * np.exp(-0.5 * ((time_ - at - shift) / width) ** 2)
        at += period * rng.normal(1, 0.03)
    wave = 0.05 * np.sin(2 * np.pi * 0.3 * time_ + rng.uniform(0, 6))
    return (500 * (parts.T @ leads + wave[:, None] + rng.normal(0, 0.015, (steps, 12)))).astype(np.float32)


def motion(rng: np.random.Generator) -> np.ndarray:
    """``[T, 6]`` float32, g and rad/s: still, standing and walking by turns of 5 to 25 s, as a phone on a waist has them."""
    samples = 5 * int(np.clip(rng.normal(3681, 900), 1979, 6417))
    out = np.zeros((samples, 6), dtype=np.float32)
    begin = 0
    while begin < samples:
        length = min(int(rng.uniform(5, 25) * 50), samples - begin)
        time_ = np.arange(length) / 50
        gravity = np.eye(3)[rng.integers(0, 3)] * rng.choice([-1, 1]) * 0.97 + rng.normal(0, 0.08, 3)
        move = rng.choice([0.0, 0.0, 1.0])
        phase, pace = rng.uniform(0, 6, 6), rng.uniform(1.6, 2.2)
        swing = move * np.sin(2 * np.pi * pace * time_[:, None] * np.array([1, 1, 2, 1, 2, 1]) + phase)
        out[begin : begin + length, :3] = gravity + 0.25 * swing[:, :3]
        out[begin : begin + length, 3:] = 0.5 * swing[:, 3:]
        begin += length
    return out + rng.normal(0, 0.02, out.shape).astype(np.float32)


def make(folder: Path, count: int) -> dict[str, list[Path]]:
    """Recordings of each kind; those that are there already stay."""
    found: dict[str, list[Path]] = {}
    for kind, draw in (("ludb", ecg), ("hapt", motion)):
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        found[kind] = [place / f"{kind}{i:06d}.npy" for i in range(round(count * SHARE[kind]))]
        for i, path in enumerate(tqdm(found[kind], desc=f"made {kind}", disable=None)):
            if not path.exists():
                # Renamed as everywhere, but not forced to the disk one by one: they can be made again.
                np.save(
                    part := path.with_name(f".{path.name}"),
                    draw(np.random.default_rng([i, KINDS.index(kind)])).astype(np.float16),
                )
                os.replace(part, path)
    return found


def some(paths: list[Path], count: int) -> list[Path]:
    """``count`` of them, evenly spread."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))]


def items_of(paths: list[Path]) -> list[Item]:
    return [Item(path.stem, str(path)) for path in paths]

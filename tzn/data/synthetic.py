"""Seeded synthetic recordings: untrimmed, with boundaries from sharp to ambiguous, for the demo and for tests."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tzn.files import atomic_write

FPS = 10.0
SHORTEST, LONGEST = 0.8, 15.0  # seconds
RISE = 2 * math.log(9)  # a sigmoid goes from 10 % to 90 % within 4.39 of its scales


@dataclass(frozen=True)
class _Signature:
    """How the features of a class look."""

    direction: np.ndarray  # [C] constant shift; shared by a pair of classes
    wave: np.ndarray  # [C] amplitudes of an oscillation
    frequency: float  # Hz; tells the classes of a pair apart
    ramp: np.ndarray  # [C] from -1 at the start to +1 at the end
    duration: float  # typical length in seconds


def generate_synthetic(
    folder: str | Path,
    *,
    num_recordings: int = 24,
    length: tuple[int, int] = (300, 600),
    num_classes: int = 5,
    channels: int = 16,
    sharpness: tuple[float, float] = (1.0, 15.0),
    seed: int = 0,
    test_share: float = 0.33,
) -> Path:
    """Write ``annotations.json`` and ``features/*.npy`` (float32 ``[T, channels]``, 10 steps a second).

    A class shifts all channels, makes some oscillate and lets one rise. Classes come in pairs that share the shift and
    differ in frequency and slope, so no single step tells them apart. Actions last 0.8 to 15 s; some touch, some
    overlap. At a boundary the signature fades over a width drawn log-uniformly from ``sharpness``. The rest is coloured
    noise, slow drift and short distracting bumps.

    Args:
        folder: made if needed; files of the same name are replaced.
        num_recordings: training and test recordings together.
        length: (least, most) steps of a recording.
        num_classes: classes ``class_0``, ...
        channels: feature width, at least 2.
        sharpness: steps from 10 % to 90 % of the fade, at the (sharpest, most ambiguous) boundary.
        seed: same arguments, same files.
        test_share: share of recordings in subset "test"; the others are "training".

    Returns:
        The folder.

    Raises:
        ValueError: an argument out of range.
    """
    _check_arguments(num_recordings, length, num_classes, channels, sharpness, test_share)
    folder = Path(folder)
    (folder / "features").mkdir(parents=True, exist_ok=True)
    signatures = _signatures(num_classes, channels, np.random.default_rng([seed, 0]))
    first_test = num_recordings - round(num_recordings * test_share)
    database = {}
    for i in range(num_recordings):
        rng = np.random.default_rng([seed, 1, i])
        steps = int(rng.integers(length[0], length[1] + 1))
        actions = _schedule(steps / FPS, signatures, sharpness, rng)
        name = f"synthetic_{i:03d}"
        with atomic_write(folder / "features" / f"{name}.npy", "wb") as file:
            np.save(file, _render(steps, actions, signatures, channels, rng))
        database[name] = {
            "subset": "training" if i < first_test else "test",
            "duration": steps / FPS,
            "fps": FPS,
            "annotations": [action.to_json() for action in actions],
        }
    with atomic_write(folder / "annotations.json") as file:
        json.dump({"version": f"tzn synthetic, seed {seed}", "database": database}, file, indent=1)
    return folder


@dataclass(frozen=True)
class _Action:
    start: float  # seconds
    end: float
    label: int
    fade: tuple[float, float]  # seconds from 10 % to 90 % at start and end

    def to_json(self) -> dict[str, object]:
        return {
            "segment": [self.start, self.end],
            "label": f"class_{self.label}",
            "label_id": self.label,
            "fade": [round(f, 3) for f in self.fade],
        }


def _check_arguments(
    num_recordings: int, length: tuple[int, int], num_classes: int, channels: int,
    sharpness: tuple[float, float], test_share: float,
) -> None:  # fmt: skip
    if num_recordings < 1:
        raise ValueError(f"num_recordings = {num_recordings}: expected at least 1")
    if not 50 <= length[0] <= length[1]:
        raise ValueError(f"length = {length}: expected (least, most) steps, least at least 50")
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: expected at least 1")
    if channels < 2:
        raise ValueError(f"channels = {channels}: expected at least 2")
    if not 0 < sharpness[0] <= sharpness[1]:
        raise ValueError(f"sharpness = {sharpness}: expected 0 < sharpest <= most ambiguous, in steps")
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share = {test_share}: expected a share in [0, 1)")


def _signatures(num_classes: int, channels: int, rng: np.random.Generator) -> list[_Signature]:
    durations = np.geomspace(1.6, 8.0, num_classes) if num_classes > 1 else np.array([3.0])
    # Short and long classes mix within the pairs.
    durations = rng.permutation(durations)
    signatures = []
    for k in range(num_classes):
        if k % 2 == 0:
            direction = rng.standard_normal(channels)
            direction *= 0.6 * math.sqrt(channels) / np.linalg.norm(direction)
            wave = np.zeros(channels)
            wave[rng.choice(channels, max(channels // 4, 1), replace=False)] = 1.5
            ramp = np.zeros(channels)
            ramp[rng.integers(channels)] = 1.0
        frequency = (0.5 if k % 2 == 0 else 1.6) * rng.uniform(0.9, 1.1)
        signatures.append(_Signature(direction, wave, frequency, ramp if k % 2 == 0 else -ramp, float(durations[k])))
    return signatures


def _schedule(
    duration: float, signatures: list[_Signature], sharpness: tuple[float, float], rng: np.random.Generator
) -> list[_Action]:
    """Actions one after another with gaps; some touch, some overlap the one before."""
    actions: list[_Action] = []
    now = rng.uniform(1.0, 4.0)
    while True:
        label = int(rng.integers(len(signatures)))
        size = float(np.clip(signatures[label].duration * np.exp(0.35 * rng.standard_normal()), SHORTEST, LONGEST))
        if now + size > duration - 0.5:
            return actions
        most = 0.8 * size * FPS  # a wider fade would leave nothing of the action
        low, high = (math.log(min(width, most)) for width in sharpness)
        fade = tuple(float(np.exp(rng.uniform(low, high))) / FPS for _ in range(2))
        actions.append(_Action(round(now, 3), round(now + size, 3), label, (fade[0], fade[1])))
        now += size + _gap(size, rng)


def _gap(size: float, rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.2:
        return 0.0
    if kind < 0.3:
        return -0.3 * size * rng.uniform(0.3, 1.0)
    return float(rng.uniform(0.8, 5.0))


def _render(
    steps: int, actions: list[_Action], signatures: list[_Signature], channels: int, rng: np.random.Generator
) -> np.ndarray:
    """Features ``[T, C]`` float32; step i is centred at ``(i + 0.5) / FPS`` seconds."""
    time = (np.arange(steps) + 0.5) / FPS
    features = 0.5 * _coloured_noise(steps, channels, 0.7, rng) + 0.3 * _coloured_noise(steps, channels, 0.99, rng)
    for _ in range(rng.poisson(steps / 60)):
        bump = np.exp(-0.5 * ((time - rng.uniform(0, steps / FPS)) / rng.uniform(0.2, 0.8)) ** 2)
        features += bump[:, None] * rng.standard_normal(channels) * 0.7
    for action in actions:
        s = signatures[action.label]
        strength = rng.uniform(0.8, 1.2)
        phase = rng.uniform(0, 2 * math.pi, channels)
        wave = s.wave * np.sin(2 * math.pi * s.frequency * time[:, None] + phase)
        middle, half = (action.start + action.end) / 2, (action.end - action.start) / 2
        ramp = np.clip((time - middle) / half, -1, 1)[:, None] * s.ramp
        features += strength * _envelope(time, action)[:, None] * (s.direction + wave + ramp)
    return features.astype(np.float32)


def _envelope(time: np.ndarray, action: _Action) -> np.ndarray:
    """1 inside, 0 outside, 1/2 exactly at the annotated boundaries (of an action longer than its fades)."""
    rise = (time - action.start) * RISE / action.fade[0]
    fall = (action.end - time) * RISE / action.fade[1]
    # tanh does not overflow far from the boundary, exp would.
    return (0.5 + 0.5 * np.tanh(rise / 2)) * (0.5 + 0.5 * np.tanh(fall / 2))


def _coloured_noise(steps: int, channels: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressive noise of unit variance ``[T, C]``."""
    noise = rng.standard_normal((steps, channels))
    fresh = math.sqrt(1 - memory**2)
    for t in range(1, steps):
        noise[t] = memory * noise[t - 1] + fresh * noise[t]
    return noise

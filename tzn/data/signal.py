"""Raw sensor signals as feature steps: ``[samples, channels]`` to ``[steps, samples_per_step * channels]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tzn.data.features import load_features
from tzn.errors import DataError


def load_signal(path: str | Path, channels: int) -> np.ndarray:
    """A raw recording as float32 ``[samples, channels]``.

    Args:
        path: ``.npy`` (``[samples, channels]``), or ``.csv``: one sample a line, comma, semicolon, tab or space between
            the columns, with or without a line of names.
        channels: columns expected.

    Raises:
        DataError: missing, empty or malformed file, another number of columns, values that are not finite numbers.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return load_features(path, input_dim=channels)
    if path.suffix not in (".csv", ".txt", ".tsv"):
        raise DataError(f"{path}: raw signals are read from .npy, .csv, .tsv or .txt, not from {path.suffix!r}")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    rows = [(number, _fields(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and not _is_number(rows[0][1][0]):
        rows = rows[1:]  # names of the columns
    if not rows:
        raise DataError(f"{path}: holds no samples")
    samples = np.empty((len(rows), channels), dtype=np.float32)
    for i, (number, fields) in enumerate(rows):
        if len(fields) != channels:
            raise DataError(f"{path}: line {number} has {len(fields)} columns, expected {channels}")
        try:
            samples[i] = [float(field) for field in fields]
        except ValueError:
            raise DataError(f"{path}: line {number} holds something that is not a number: {fields}") from None
        if not np.isfinite(samples[i]).all():
            raise DataError(f"{path}: line {number} holds a value that is not finite: {fields}")
    return samples


def signal_to_features(samples: np.ndarray, samples_per_step: int) -> np.ndarray:
    """``[samples, channels]`` to ``[steps, samples_per_step * channels]``; the last incomplete step is left out.

    Raises:
        DataError: less than one step of samples.
    """
    steps = len(samples) // samples_per_step
    if steps == 0:
        raise DataError(f"{len(samples)} samples are less than one step of {samples_per_step}")
    return samples[: steps * samples_per_step].reshape(steps, -1)


def _fields(line: str) -> list[str]:
    for separator in ",;\t":
        line = line.replace(separator, " ")
    return line.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Raw sensor signals as feature steps: ``[samples, channels]`` to ``[steps, samples_per_step * channels]``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from tzn.data.features import load_features, read_header
from tzn.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SIGNAL_SUFFIXES = (".npy", *TEXT_SUFFIXES)
LARGEST_TERM = 100_000  # of the fraction that stands for a ratio of rates; rates of up to five digits are met exactly
LARGEST_RATIO = 1000.0


def load_signal(path: str | Path, channels: int) -> np.ndarray:
    """A raw recording as float32 ``[samples, channels]``.

    Args:
        path: ``.npy`` (``[samples, channels]``), or ``.csv``, ``.tsv``, ``.txt`` in UTF-8: one sample a line, comma,
            semicolon, tab or space between the columns. A first line without any number holds the columns' names.
        channels: columns expected.

    Raises:
        DataError: missing, empty or malformed file, another number of columns, values that are not finite numbers.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return load_features(path, input_dim=channels)
    check_signal(path, channels)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    rows = [(number, _fields(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and not any(map(is_number, rows[0][1])):
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


def check_signal(path: Path, channels: int) -> None:
    """What can be told of a raw recording without its samples: existence, kind, and of ``.npy`` files the columns.

    Raises:
        DataError: missing, empty or foreign file, another number of columns.
    """
    if path.suffix == ".npy":
        read_header(path, channels)
    elif path.suffix not in TEXT_SUFFIXES:
        raise DataError(f"{path}: raw signals are read from {', '.join(SIGNAL_SUFFIXES)}, not from {path.suffix!r}")
    elif not path.is_file():
        raise DataError(f"{path}: no such file")
    elif path.stat().st_size == 0:
        raise DataError(f"{path}: holds no samples")


def resample(samples: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """``[samples, channels]`` float32 at ``wanted`` instead of ``rate`` samples a second; the first sample stays at 0 s.

    SciPy's polyphase filter, so what the lower rate cannot hold is filtered out. The ends are continued by their values.

    Raises:
        DataError: rates more than a factor of 1,000 apart, or SciPy is missing.
    """
    if rate == wanted:
        return samples
    ratio = wanted / rate
    if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
        raise DataError(f"{rate:g} samples a second cannot become {wanted:g}: expected rates within a factor of 1,000")
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise DataError(
            f"resampling from {rate:g} to {wanted:g} samples a second needs the package scipy: pip install 'tzn[signal]'"
        ) from None
    terms = (Fraction(str(wanted)) / Fraction(str(rate))).limit_denominator(LARGEST_TERM)
    moved = resample_poly(samples.astype(np.float64), terms.numerator, terms.denominator, axis=0, padtype="edge")
    return moved.astype(np.float32)  # type: ignore[no-any-return]


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


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

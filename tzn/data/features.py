"""Feature files: one array ``[T, C]`` per recording, ``.npy`` or one array of an ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tzn.config import DataConfig
from tzn.errors import DataError


class FeatureHeader(NamedTuple):
    """Shape ``(steps, channels)`` and dtype of a feature file."""

    steps: int
    channels: int
    dtype: np.dtype


def feature_path(folder: str | Path, recording: str, config: DataConfig) -> Path:
    """Where the features of a recording lie: ``folder/<prefix><id><suffix>``."""
    return Path(folder) / f"{config.file_prefix}{recording}{config.file_suffix}"


def load_features(path: str | Path, input_dim: int | None = None, *, npz_key: str = "feats") -> np.ndarray:
    """Features of one recording as float32 ``[T, C]``, in memory.

    Args:
        path: ``.npy`` or ``.npz`` file; any real or integer dtype.
        input_dim: expected C, or None for any.
        npz_key: name of the array inside an ``.npz``.

    Raises:
        DataError: missing, empty, truncated or foreign file; wrong number of dimensions, width or dtype; no steps; NaN
            or infinite values.
    """
    path = Path(path)
    stored = _open(path, npz_key)
    _check_shape(path, stored, input_dim)
    # Overflow from float64 becomes Inf, which is reported below.
    with np.errstate(over="ignore"):
        features = np.array(stored, dtype=np.float32, order="C")
    if not np.isfinite(features).all():
        step, channel = np.argwhere(~np.isfinite(features))[0]
        value = features[step, channel]
        raise DataError(f"{path}: feature value {value} at step {step}, channel {channel}; expected finite numbers")
    return features


def read_header(path: str | Path, *, npz_key: str = "feats") -> FeatureHeader:
    """Shape and dtype of a feature file, without its values where the format allows it.

    Raises:
        DataError: as :func:`load_features`, except for the values.
    """
    path = Path(path)
    stored = _open(path, npz_key)
    _check_shape(path, stored, None)
    steps, channels = stored.shape
    return FeatureHeader(steps, channels, stored.dtype)


def _open(path: Path, npz_key: str) -> np.ndarray:
    """The stored array; ``.npy`` files are mapped, so only the header is read here."""
    if not path.is_file():
        raise DataError(f"{path}: no such feature file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the feature file is empty (0 bytes)")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if npz_key not in loaded.files:
                arrays = ", ".join(loaded.files) or "none"
                raise DataError(f"{path}: no array {npz_key!r} (data.npz_key); the file has: {arrays}")
            return loaded[npz_key]
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: truncated, damaged or not a NumPy file ({reason})") from None


def _check_shape(path: Path, stored: np.ndarray, input_dim: int | None) -> None:
    shape = tuple(stored.shape)
    if stored.dtype.kind not in "fiu":
        raise DataError(f"{path}: features have dtype {stored.dtype}, expected real numbers")
    if stored.ndim != 2:
        raise DataError(f"{path}: features have shape {shape}, expected two dimensions [steps, channels]")
    if shape[0] == 0 or shape[1] == 0:
        raise DataError(f"{path}: features have shape {shape}: no steps, expected at least one")
    if input_dim is not None and shape[1] != input_dim:
        hint = "; it looks transposed, save it as [steps, channels]" if shape[0] == input_dim else ""
        raise DataError(f"{path}: features are {shape[1]} wide, expected model.input_dim = {input_dim}{hint}")

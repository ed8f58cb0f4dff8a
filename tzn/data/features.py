"""Reading one recording's feature sequence, with messages that say what is wrong with a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from tzn.errors import DataError


def load_features(path: str | Path, input_dim: int | None = None, *, npz_key: str = "feats") -> np.ndarray:
    """Features ``[T, C]`` as float32 from a ``.npy`` file, or from array ``npz_key`` of a ``.npz`` file.

    Args:
        input_dim: expected C; None: any.

    Raises:
        DataError: missing, empty or truncated file, not two-dimensional, wrong width, no steps, NaN or infinite values.
    """
    path = Path(path)
    array = _read(path, npz_key)
    if array.ndim != 2:
        raise DataError(f"{path}: features have shape {array.shape}, expected [T, C]")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: features are {array.dtype}, expected numbers")
    if array.shape[0] == 0:
        raise DataError(f"{path}: features have no steps (shape {array.shape})")
    if input_dim is not None and array.shape[1] != input_dim:
        raise DataError(f"{path}: features are {array.shape[1]} wide, expected {input_dim} (model.input_dim)")
    features = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(features)
    if bad.any():
        step, channel = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(f"{path}: {int(bad.sum())} NaN or infinite values, the first at step {step}, channel {channel}")
    return features


def feature_shape(path: Path, npz_key: str = "feats") -> tuple[int, ...]:
    """Shape of the features without reading a ``.npy`` file's data."""
    if path.suffix == ".npy" and path.is_file() and path.stat().st_size:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{path}: damaged or truncated ({error})") from None
    return _read(path, npz_key).shape


def _read(path: Path, npz_key: str) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such feature file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            if npz_key not in content:
                raise DataError(f"{path}: no array {npz_key!r} (data.npz_key); it has {', '.join(content.files)}")
            return content[npz_key]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged, truncated or not a NumPy file ({error})") from None

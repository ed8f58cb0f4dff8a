"""Feature files: one array ``[T, C]`` per recording, ``.npy``, one array of an ``.npz``, or a tensor in a ``.pt``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tzn.config import DataConfig
from tzn.errors import DataError

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"


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
        path: ``.npy``, ``.npz`` or ``.pt`` file; any real or integer dtype.
        input_dim: expected C, or None for any.
        npz_key: name of the array inside an ``.npz``.

    Raises:
        DataError: missing, empty, truncated or foreign file; wrong number of dimensions, width or dtype; no steps; NaN
            or infinite values.
    """
    path = Path(path)
    stored = _open(path, npz_key)
    assert isinstance(stored, np.ndarray)  # not only its header
    return checked_features(path, stored, input_dim)


def checked_features(path: str | Path, stored: np.ndarray, input_dim: int | None = None) -> np.ndarray:
    """An array as features, float32 ``[T, C]`` in memory; ``path`` is for messages, errors as of :func:`load_features`."""
    _check_shape(path, stored, input_dim)
    # Overflow from float64 becomes Inf, which is reported below.
    with np.errstate(over="ignore"):
        features = np.array(stored, dtype=np.float32, order="C")
    if not np.isfinite(features).all():
        step, channel = np.argwhere(~np.isfinite(features))[0]
        value = features[step, channel]
        raise DataError(f"{path}: feature value {value} at step {step}, channel {channel}; expected finite numbers")
    return features


def read_header(path: str | Path, input_dim: int | None = None, *, npz_key: str = "feats") -> FeatureHeader:
    """Shape and dtype of a feature file, without its values; arguments as of :func:`load_features`.

    Raises:
        DataError: as :func:`load_features`, except for the values.
    """
    path = Path(path)
    stored = _open(path, npz_key, header_only=True)
    _check_shape(path, stored, input_dim)
    steps, channels = stored.shape
    return FeatureHeader(steps, channels, stored.dtype)


class _Stored(NamedTuple):
    """What a header says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def _open(path: Path, npz_key: str, header_only: bool = False) -> np.ndarray | _Stored:
    """The stored array; ``.npy`` files are mapped and so cost their header only, of ``.npz`` it is read if asked for."""
    if not path.is_file():
        raise DataError(f"{path}: no such feature file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(NPY_MAGIC))
        if not start:
            raise DataError(f"{path}: the feature file is empty (0 bytes)")
        if path.suffix == ".pt":
            return _open_pt(path)
        if start.startswith(ZIP_MAGIC):
            return _open_npz(path, npz_key, header_only)
        if start != NPY_MAGIC:
            # NumPy would take it for pickled objects, and advise to load those.
            raise DataError(
                f"{path}: not a NumPy file: it starts with {start!r}, expected an array saved by numpy.save"
            )
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError, SyntaxError) as error:
        text = " ".join(str(error).split())
        if "objects in dtype" in text or "allow_pickle" in text:  # NumPy would advise to run code from the file
            text = "it holds Python objects, expected numbers"
        raise DataError(f"{path}: truncated, damaged or not a NumPy file ({text[:120]})") from None


def _open_pt(path: Path) -> np.ndarray:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the loader
        raise DataError(f"{path}: no tensor saved by torch.save ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, torch.Tensor):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a tensor [steps, channels]")
    return (content.float() if content.dtype == torch.bfloat16 else content).numpy()


def _open_npz(path: Path, npz_key: str, header_only: bool) -> np.ndarray | _Stored:
    with np.load(path, allow_pickle=False) as loaded:
        if npz_key not in loaded.files:
            arrays = ", ".join(loaded.files) or "none"
            raise DataError(f"{path}: no array {npz_key!r} (data.npz_key); the file has: {arrays}")
        if not header_only:
            return loaded[npz_key]  # type: ignore[no-any-return]
    with zipfile.ZipFile(path) as archive, archive.open(f"{npz_key}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        return _Stored(shape, dtype)


def _check_shape(path: str | Path, stored: np.ndarray | _Stored, input_dim: int | None) -> None:
    shape = tuple(stored.shape)
    if stored.dtype.kind not in "fiu":
        raise DataError(f"{path}: features have dtype {stored.dtype}, expected real numbers")
    if len(shape) != 2:
        raise DataError(f"{path}: features have shape {shape}, expected two dimensions [steps, channels]")
    if shape[0] == 0 or shape[1] == 0:
        raise DataError(f"{path}: features have shape {shape}: no steps, expected at least one")
    if input_dim is not None and shape[1] != input_dim:
        hint = "; it looks transposed, save it as [steps, channels]" if shape[0] == input_dim else ""
        raise DataError(f"{path}: features are {shape[1]} wide, expected model.input_dim = {input_dim}{hint}")

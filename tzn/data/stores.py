"""Features of many recordings in one place: a folder, a container (HDF5, LMDB, WebDataset tar, zarr, ``.pt``), an address.

A store opens lazily and in every process anew, so that loader processes may be forked or spawned; what comes over the
network is kept in the cache, one file per recording or the container whole where its format needs a real file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tzn.config import DataConfig
from tzn.data.features import FeatureHeader, checked_features, feature_path, load_features, read_header
from tzn.errors import DataError
from tzn.files import atomic_write, cache_folder
from tzn.optional import require

IN_CONTAINER = "::"  # between a container and the recording in it
CONTAINERS = (".h5", ".hdf5", ".lmdb", ".tar", ".zarr", ".pt")


def is_url(location: str | Path) -> bool:
    """Whether a location is an address that fsspec opens (``s3://``, ``gs://``, ``https://``, ``memory://``, …)."""
    head, found, _ = str(location).partition("://")
    return bool(found) and head.replace("+", "").isalnum()


def located(folder: Path, features: str) -> Path | str:
    """``data.features``: an address as it is, else relative to the data folder."""
    return features if is_url(features) else folder / features


def is_container(location: str | Path) -> bool:
    return str(location).rstrip("/").lower().endswith(CONTAINERS)


class Store:
    """Features by recording id.

    Args:
        location: a folder of feature files, a container, or an address of either.
        config: names of files and arrays (``file_prefix``, ``file_suffix``, ``npz_key``).

    Raises:
        DataError: at the first use: nothing there, a package that is missing, a damaged container; for a recording
            whatever :func:`tzn.data.features.load_features` raises.
    """

    def __init__(self, location: str | Path, config: DataConfig) -> None:
        self.location, self.config = str(location), config
        self._process = 0
        self._inner: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "config": self.config, "_process": 0, "_inner": None}

    def __contains__(self, recording: str) -> bool:
        return bool(self._open().has(self._key(recording)))

    def load(self, recording: str, input_dim: int | None = None) -> np.ndarray:
        """Features ``[T, C]`` float32 of a recording."""
        inner, key, where = self._find(recording)
        with _naming(where):
            if inner.files:
                return load_features(inner.path(key), input_dim, npz_key=self.config.npz_key)
            return checked_features(where, inner.array(key), input_dim)

    def header(self, recording: str, input_dim: int | None = None) -> FeatureHeader:
        """Shape and dtype; of formats that know them without reading the values, without."""
        inner, key, where = self._find(recording)
        with _naming(where):
            if inner.files:
                return read_header(inner.path(key), input_dim, npz_key=self.config.npz_key)
            stored = inner.lazy(key)
            if len(stored.shape) != 2:
                raise DataError(f"{where}: features have shape {tuple(stored.shape)}, expected [steps, channels]")
            return FeatureHeader(stored.shape[0], stored.shape[1], np.dtype(str(stored.dtype).removeprefix("torch.")))

    def stored(self, recording: str) -> np.ndarray:
        """What lies there under this name, of any shape and width: of raw signals too."""
        inner = self._open()
        where = f"{self.location}{IN_CONTAINER}{recording}"
        if not inner.has(recording):
            raise DataError(f"{where}: nothing of this name")
        with _naming(where):
            return np.load(inner.path(recording)) if inner.files else np.asarray(inner.array(recording))

    def describe(self, recording: str) -> str:
        """The place of a recording, for messages."""
        if is_container(self.location):
            return f"{self.location}{IN_CONTAINER}{self._key(recording)}"
        return f"{self.location}/{self._key(recording)}{self.config.file_suffix}"

    def _find(self, recording: str) -> tuple[Any, str, str]:
        """What is opened, the recording's name in it, and its place for messages."""
        inner, key, where = self._open(), self._key(recording), self.describe(recording)
        if not inner.has(key):
            raise DataError(f"{where}: no features of this recording")
        return inner, key, where

    def _key(self, recording: str) -> str:
        return f"{self.config.file_prefix}{recording}"

    def _open(self) -> Any:
        if self._inner is None or self._process != os.getpid():
            with _naming(self.location):
                self._inner, self._process = _opened(self.location, self.config), os.getpid()
        return self._inner


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """What libraries raise as one line that says where."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"{where}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        ) from None


def _opened(location: str, config: DataConfig) -> Any:
    plain = location.rstrip("/").lower()
    if plain.endswith((".h5", ".hdf5")):
        return _Hdf5(location)
    if plain.endswith(".lmdb"):
        return _Lmdb(str(fetched(location)), config)
    if plain.endswith(".tar"):
        return _Tar(location, config)
    if plain.endswith(".zarr"):
        return _Zarr(location)
    if plain.endswith(".pt"):
        return _Pt(str(fetched(location)))
    if is_url(location):
        return _Remote(location, config)
    if not Path(location).is_dir():
        raise DataError(f"{location}: no such folder of features (data.features)")
    return _Folder(Path(location), config)


class _Folder:
    files = True

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.folder, self.suffix = folder, config.file_suffix

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def has(self, key: str) -> bool:
        return self.path(key).is_file()


class _Remote:
    """Feature files at an address; one that was read lies in the cache until it changes there."""

    files = True

    def __init__(self, location: str, config: DataConfig) -> None:
        self.location, self.suffix = location.rstrip("/"), config.file_suffix

    def _url(self, key: str) -> str:
        return f"{self.location}/{key}{self.suffix}"

    def has(self, key: str) -> bool:
        system, path = _system(self._url(key))
        return bool(system.exists(path))

    def path(self, key: str) -> Path:
        return fetched(self._url(key))


class _Hdf5:
    """A data set ``[T, C]`` per recording, at the root or in groups ("a/b"); read through fsspec where it is an address."""

    files = False

    def __init__(self, location: str) -> None:
        h5py = require("h5py", "reading HDF5", "containers")
        self.file = h5py.File(_system(location)[0].open(_system(location)[1]) if is_url(location) else location, "r")
        self.kind = h5py.Dataset

    def has(self, key: str) -> bool:
        return isinstance(self.file.get(key), self.kind)

    def lazy(self, key: str) -> Any:
        return self.file[key]

    def array(self, key: str) -> np.ndarray:
        return self.file[key][()]  # type: ignore[no-any-return]


class _Zarr:
    """An array ``[T, C]`` per recording in a group; chunks are read when they are needed, from addresses too."""

    files = False

    def __init__(self, location: str) -> None:
        zarr = require("zarr", "reading zarr", "containers")
        self.group = zarr.open_group(location, mode="r")

    def has(self, key: str) -> bool:
        return key in self.group

    def lazy(self, key: str) -> Any:
        return self.group[key]

    def array(self, key: str) -> np.ndarray:
        return np.asarray(self.group[key][:])


class _Lmdb:
    """A value per recording: what ``numpy.save`` (or ``numpy.savez``) writes."""

    files = False

    def __init__(self, location: str, config: DataConfig) -> None:
        lmdb = require("lmdb", "reading LMDB", "containers")
        if not Path(location).exists():
            raise DataError(f"{location}: no such LMDB")
        self.config = config
        # Readers of several processes need no lock among themselves, and a read-only file system has no place for one.
        # A process must not open one twice.
        key = (os.path.realpath(location), os.getpid())
        if key not in _ENVIRONMENTS:
            _ENVIRONMENTS[key] = lmdb.open(location, readonly=True, lock=False, subdir=Path(location).is_dir())
        self.environment = _ENVIRONMENTS[key]

    def _get(self, key: str) -> Any:
        with self.environment.begin() as transaction:
            return transaction.get(key.encode())

    def has(self, key: str) -> bool:
        return self._get(key) is not None

    def array(self, key: str) -> np.ndarray:
        return _decoded(self._get(key), self.config)

    lazy = array


class _Tar:
    """The layout of WebDataset: members ``<recording>.npy`` (or ``.npz``); read by their place."""

    files = False

    def __init__(self, location: str, config: DataConfig) -> None:
        self.config = config
        if is_url(location):
            system, path = _system(location)
            self.file: Any = system.open(path, "rb")
        else:
            self.file = open(location, "rb")  # noqa: SIM115  (as long as the store)
        self.places = {}
        with tarfile.open(fileobj=self.file, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                stem = next((name[: -len(s)] for s in (".npy", ".npz") if name.endswith(s)), None)
                if member.isfile() and stem is not None:
                    self.places[stem] = (member.offset_data, member.size)

    def has(self, key: str) -> bool:
        return key in self.places

    def array(self, key: str) -> np.ndarray:
        begin, size = self.places[key]
        self.file.seek(begin)
        return _decoded(self.file.read(size), self.config)

    lazy = array


class _Pt:
    """What ``torch.save`` wrote of a dict from recording to tensor; mapped, and without any code from the file."""

    files = False

    def __init__(self, location: str) -> None:
        import torch

        if not Path(location).is_file():
            raise DataError(f"{location}: no such file")
        content = torch.load(location, weights_only=True, mmap=True, map_location="cpu")
        if not isinstance(content, dict):
            raise DataError(f"{location}: holds a {type(content).__name__}, expected a dict from recording to tensor")
        self.content = content

    def has(self, key: str) -> bool:
        return key in self.content

    def lazy(self, key: str) -> Any:
        return self.content[key]

    def array(self, key: str) -> np.ndarray:
        return self.content[key].numpy()  # type: ignore[no-any-return]


def _decoded(content: bytes, config: DataConfig) -> np.ndarray:
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    if config.npz_key not in loaded.files:
        raise DataError(f"no array {config.npz_key!r} (data.npz_key); there are: {', '.join(loaded.files) or 'none'}")
    return loaded[config.npz_key]  # type: ignore[no-any-return]


def _system(location: str) -> tuple[Any, str]:
    fsspec = require("fsspec", f"reading {location}", "remote")
    return fsspec.core.url_to_fs(location)  # type: ignore[no-any-return]


def fetched(location: str) -> Path:
    """A local path as it is; of an address the copy in the cache, made if what lies there is new.

    Raises:
        DataError: nothing there, or it cannot be reached.
    """
    if not is_url(location):
        return Path(location)
    with _naming(location):
        system, path = _system(location)
        if not system.exists(path):
            raise DataError(f"{location}: nothing there")
        # What tells one content from another differs between kinds of storage; ukey is each one's own.
        key = hashlib.sha256(f"{location} {system.ukey(path)}".encode()).hexdigest()[:32]
        target = cache_folder() / "remote" / key / path.rstrip("/").rsplit("/", 1)[-1]
        if not target.exists():
            if system.isdir(path):
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target.parent) as part:
                    system.get(path, f"{part}/whole", recursive=True)
                    with contextlib.suppress(OSError):  # somebody else was first
                        os.rename(f"{part}/whole", target)
            else:
                with atomic_write(target, "wb") as file, system.open(path, "rb") as source:
                    while block := source.read(1 << 20):
                        file.write(block)
        return target


@contextlib.contextmanager
def read_anywhere(path: str, config: DataConfig) -> Iterator[Path | np.ndarray]:
    """A recording of a manifest: a local file as it is, ``CONTAINER::NAME`` as its array, an address as a copy that is deleted
    afterwards (a corpus passes once).

    Raises:
        DataError: nothing there, or it cannot be read.
    """
    if IN_CONTAINER in path:
        place, _, name = path.rpartition(IN_CONTAINER)
        yield _store(place, config).stored(name)
        return
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="tzn-") as folder:
        target = Path(folder) / path.rstrip("/").rsplit("/", 1)[-1]
        with _naming(path):
            system, there = _system(path)
            system.get_file(there, str(target))
        yield target


_STORES: dict[tuple[str, int], Store] = {}
_ENVIRONMENTS: dict[tuple[str, int], Any] = {}


def _store(place: str, config: DataConfig) -> Store:
    """One that stays open: the recordings of a corpus come from few containers."""
    key = (place, os.getpid())
    if key not in _STORES:
        _STORES[key] = Store(place, config)
    return _STORES[key]


__all__ = ["CONTAINERS", "Store", "feature_path", "fetched", "is_container", "is_url", "located", "read_anywhere"]

"""Feature files from recordings: extracted once, kept in a cache by content, described by a ``features.json`` beside them.

Where the description also goes: :class:`tzn.config.FrontEndConfig` of the run, so that training and prediction see the
same features. Above :mod:`tzn.readers`, which knows nothing of folders, caches and configurations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tzn import __version__
from tzn.config import DataConfig, ExperimentConfig, FrontEndConfig
from tzn.config_loading import config_from_dict
from tzn.data.annotations import read_database, read_json
from tzn.data.features import feature_path, read_header
from tzn.data.signal import signal_to_features
from tzn.data.stores import is_container, is_url
from tzn.errors import ConfigError, DataError
from tzn.files import atomic_write, cache_folder
from tzn.readers import SUFFIXES, kind_of, read_recording

LOG = logging.getLogger("tzn")
SIDECAR = "features.json"
FORMAT = 1  # of the features: raised when the same description would give other numbers
DEFAULTS = {"video": "efficientnet-lite0", "sound": "log-mel"}
FOLDERS = ("recordings", "videos", ".")  # where a data folder may hold its recordings
READ_BYTES = 1 << 20


class FrontEnd:
    """One way from recordings to features.

    Args:
        config: what to do; values left open become the extractor's own in :attr:`config`.

    Raises:
        DataError: unknown extractor, missing package, other weights than the configuration names, no rate for signals.
    """

    def __init__(self, config: FrontEndConfig) -> None:
        if config.extractor is None:
            raise DataError("front_end.extractor is not set: expected a network for video, log-mel or samples")
        self.kind = kind_of_extractor(config.extractor)
        self.config = config
        if self.kind == "samples" and config.rate is None:
            raise DataError("signals need the samples a second that all are brought to (--rate, front_end.rate)")
        if self.kind == "sound":
            self.config = dataclasses.replace(config, rate=config.rate or 100.0)
        if self.kind == "video":
            loaded = self.extractor
            if config.weights not in (None, loaded.weights):
                raise DataError(
                    f"extractor {loaded.name}: the weights here are {loaded.weights[:19]}…, but these features were "
                    f"made with {str(config.weights)[:19]}…; expected the same file (front_end.weights_file)"
                )
            self.config = dataclasses.replace(
                config, rate=config.rate or 5.0, size=config.size or loaded.size, mean=config.mean or loaded.mean,
                std=config.std or loaded.std, weights=loaded.weights,
            )  # fmt: skip

    @cached_property
    def extractor(self) -> Any:
        """The network of a video front end, as loaded."""
        from tzn.readers.extractors import load_extractor

        assert self.config.extractor is not None
        return load_extractor(self.config.extractor, self.config.weights_file)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that this front end reads."""
        return SUFFIXES[self.kind]

    def grid(self) -> dict[str, float]:
        """``feat_stride``, ``num_frames`` and ``fps`` of the features, see :class:`tzn.config.DataConfig`."""
        rate = float(self.config.rate or 0.0)
        if self.kind == "sound":
            from tzn.readers.sound import SAMPLE_RATE, WINDOW

            return {"feat_stride": SAMPLE_RATE / rate, "num_frames": float(WINDOW), "fps": float(SAMPLE_RATE)}
        step = float(self.config.samples_per_step if self.kind == "samples" else 1)
        return {"feat_stride": step, "num_frames": step, "fps": rate}

    def blocks(self, path: Path, device: str = "cpu") -> Iterator[np.ndarray]:
        """Rows of the features of a file, ``[n, C]`` float32 each."""
        c = self.config
        assert c.rate is not None
        if self.kind == "sound":
            from tzn.readers.sound import log_mel_blocks

            yield from log_mel_blocks(path, c.rate)
        elif self.kind == "video":
            from tzn.readers.video import sample_frames

            assert c.size is not None
            extractor = dataclasses.replace(self.extractor, mean=c.mean, std=c.std)
            yield from extractor.run(sample_frames(path, c.rate, c.size, c.fit), device)
        else:
            recording = read_recording(
                path, rate=c.rate, channels=c.channels, time=c.time, time_unit=c.time_unit, sample_rate=c.sample_rate,
                max_gap=c.max_gap,
            )  # fmt: skip
            yield signal_to_features(recording.values, c.samples_per_step)

    def features(self, path: Path, *, cache: bool = True, device: str = "cpu", progress: bool = True) -> Path:
        """The feature file ``[T, C]`` of a recording, named after it, in the cache; made if it is not there yet.

        Raises:
            DataError: unreadable recording, or one without a single step; the message begins with its path.
        """
        check_file(path, self.suffixes)
        target = cache_folder() / "features" / self._key(path) / f"{recording_id(path)}.npy"
        made = target if target.is_file() else next(target.parent.glob("*.npy"), None)
        if made is None or not cache:
            begin = time.perf_counter()
            with _naming(path):
                steps = write_rows(target, _shown(self.blocks(path, device), self, path, progress))
            LOG.info("%s: %d feature steps made in %.1f s", path, steps, time.perf_counter() - begin)
        else:
            LOG.info("%s: features are in the cache (%s)", path, made)
            if made != target:
                copy_file(made, target)
        return target

    def _key(self, path: Path) -> str:
        """Digest of what decides the features: the recording's bytes and the description."""
        digest = hashlib.sha256(json.dumps([FORMAT, self.description()], sort_keys=True).encode())
        # A WFDB header names its signal files, which bear its name.
        parts = sorted(path.parent.glob(f"{path.stem}.*")) if path.suffix.lower() == ".hea" else [path]
        for part in parts:
            digest.update(part.suffix.encode())
            with open(part, "rb") as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
        return digest.hexdigest()[:40]

    def description(self) -> dict[str, Any]:
        """The configuration as plain data, without where the weights lie."""
        plain = config_dict(self.config)
        del plain["weights_file"]
        return plain


def kind_of_extractor(name: str) -> str:
    """ "samples", "sound" or "video": the recordings that an extractor takes."""
    return {"log-mel": "sound", "samples": "samples"}.get(name, "video")


def config_dict(config: FrontEndConfig) -> dict[str, Any]:
    """A front end's configuration as JSON has it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What :func:`extract_files` did.

    Attributes:
        config: the front end, with all values that were left open.
        grid: ``feat_stride``, ``num_frames`` and ``fps`` of the features.
        recordings: source, steps and channels of all recordings that the folder holds now, by id.
    """

    config: FrontEndConfig
    grid: dict[str, float]
    recordings: dict[str, Any]


def extract_files(
    inputs: Sequence[Path],
    out: Path,
    config: FrontEndConfig,
    *,
    cache: bool = True,
    device: str = "cpu",
    progress: bool = True,
) -> Extracted:
    """Feature files of recordings in a folder, with their ``features.json``; the work of ``tzn features``.

    Args:
        inputs: files, or folders of them; the file name without suffix is the recording id.
        out: folder; features of the same description that it holds already stay.
        config: without an extractor: the usual one for video, log-mel for sound, samples for signals.

    Raises:
        DataError: no or unreadable recordings, different kinds at once, two of one name, a folder of other features.
    """
    files = recording_files(inputs, config)
    front_end = FrontEnd(_with_extractor(config, files))
    for path in files:
        check_file(path, front_end.suffixes)
    sidecar = read_sidecar(out)
    if sidecar is not None and sidecar["front_end"] != front_end.description():
        raise DataError(
            f"{out}: holds features of another front end ({_difference(sidecar, front_end)}); choose another"
        )
    entries = dict(sidecar["recordings"]) if sidecar else {}
    bar = tqdm(files, desc="features", unit="recording", disable=not _visible(progress) or len(files) < 2)
    for path in bar:
        made = front_end.features(path, cache=cache, device=device, progress=progress and len(files) < 2)
        name = recording_id(path)
        copy_file(made, out / f"{name}.npy")
        steps, channels, _ = read_header(made)
        entries[name] = {"source": path.name, "steps": steps, "channels": channels}
        # After each recording, so that a stopped run has described what it made.
        write_sidecar(out, front_end, entries)
    return Extracted(front_end.config, front_end.grid(), entries)


def recording_files(inputs: Sequence[Path], config: FrontEndConfig) -> list[Path]:
    """Files named, and those in folders named that some reader (or the front end's) takes."""
    kind = (
        None if config.extractor is None else {"log-mel": "sound", "samples": "samples"}.get(config.extractor, "video")
    )
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.is_file() and kind_of(p) in ((kind,) if kind else SUFFIXES))
            if not found:
                raise DataError(f"{path}: no recordings in this folder")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    names = [recording_id(path) for path in files]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"two inputs are named {doubled!r}; recording ids must differ")
    return files


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that a crash leaves no half of it."""
    with open(source, "rb") as file, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(file, copy)


def recording_id(path: Path) -> str:
    """File name without its suffix (``.csv.gz`` counts as one)."""
    return Path(path.name.removesuffix(".gz")).stem


def check_file(path: Path, suffixes: Iterable[str]) -> None:
    """Raise DataError for a file that is missing, empty or of another kind."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.name.lower().endswith(tuple(suffixes)):
        raise DataError(f"{path}: not a recording of this kind; expected {', '.join(suffixes)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")


def write_rows(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """An ``.npy`` file of rows that come in blocks ``[n, C]`` float32, none of which stays in memory; returns their number."""
    steps, channels = 0, None
    with atomic_write(path, "wb") as file:
        for block in blocks:
            if channels is None:
                channels = block.shape[1]
                _npy_header(file, steps, channels)
                begin = file.tell()
            if not np.isfinite(block).all():
                raise DataError(f"features from step {steps} on are not finite")
            file.write(np.ascontiguousarray(block, np.float32).tobytes())
            steps += len(block)
        if channels is None or steps == 0:
            raise DataError("too short for a single feature step")
        file.seek(0)
        _npy_header(file, steps, channels)  # NumPy leaves room for the number of rows to grow
        assert file.tell() == begin
    return steps


def _npy_header(file: Any, steps: int, channels: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (steps, channels)})


def write_sidecar(folder: Path, front_end: FrontEnd, recordings: Mapping[str, Any]) -> None:
    """Say in ``features.json`` how the features of a folder were made."""
    content = {
        "format": FORMAT, "tzn": __version__, "front_end": front_end.description(),
        "weights_file": front_end.config.weights_file, "grid": front_end.grid(), "recordings": recordings,
    }  # fmt: skip
    with atomic_write(folder / SIDECAR) as file:
        json.dump(content, file, indent=1)


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """Content of a folder's ``features.json``, or None where there is none.

    Raises:
        DataError: not such a file.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    content = read_json(path)
    keys = ("format", "front_end", "grid", "recordings")
    if not isinstance(content, dict) or not all(key in content for key in keys) or content["format"] != FORMAT:
        raise DataError(f"{path}: expected a description of features with {', '.join(keys)}, format {FORMAT}")
    return content


def prepare_features(
    config: ExperimentConfig, data: Path, *, device: str = "cpu", progress: bool = True
) -> ExperimentConfig:
    """A data folder made ready for training or scoring: features extracted where only recordings lie.

    A folder that holds features with a ``features.json`` gives its front end to the configuration; one whose recordings
    (in ``recordings/``, ``videos/`` or itself) have no features yet gets them, by ``config.front_end`` or, without an
    extractor there, the usual one for video and sound. Other folders are left as they are.

    Raises:
        ConfigError: a configuration that says otherwise than the features. DataError: unreadable recordings.
    """
    c, folder = config.data, data / config.data.features
    if is_url(c.features) or is_container(c.features):
        return config  # features made elsewhere
    sidecar = read_sidecar(folder)
    wanted = config.front_end
    if sidecar is not None:
        stored = config_from_dict(
            {"model": {"input_dim": 1, "num_classes": 1}, "front_end": sidecar["front_end"]}
        ).front_end
        stored = dataclasses.replace(stored, weights_file=wanted.weights_file or sidecar.get("weights_file"))
        if wanted.extractor is not None and not _agrees(wanted, stored):
            raise ConfigError(
                f"{folder}: its features were made by another front end than the configuration's: {stored}"
            )
        wanted = stored
    missing = _without_features(config, data)
    if missing and (sidecar is not None or wanted.extractor is not None or not folder.is_dir()):
        files = _recordings_of(data, missing, wanted)
        if files:
            wanted = extract_files(files, folder, wanted, device=device, progress=progress).config
            sidecar = read_sidecar(folder)
    if sidecar is None:
        return config
    return dataclasses.replace(config, front_end=wanted, data=_with_grid(c, sidecar["grid"]))


def is_recording(path: Path, config: FrontEndConfig) -> bool:
    """Whether a run with this front end takes the file as a recording (by its suffix) and not as features."""
    return config.extractor is not None and path.name.lower().endswith(SUFFIXES[kind_of_extractor(config.extractor)])


def as_features(
    inputs: Sequence[Path],
    config: FrontEndConfig,
    fails: Callable[[Path, DataError], None] | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> list[Path]:
    """The inputs of a prediction with every recording that the run's front end reads replaced by its feature file.

    Folders give their recordings, and stay where they hold none. Without a front end nothing changes. ``fails`` takes the
    recordings that cannot be read.

    Raises:
        DataError: unreadable recordings, other weights than the run's.
    """
    if config.extractor is None:
        return list(inputs)
    found: list[Path] = []
    for path in inputs:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [p for p in inside if p.is_file() and is_recording(p, config)] or [path]
    front_end = None
    made = []
    many = sum(is_recording(path, config) for path in found) > 1
    for path in tqdm(found, desc="features", unit="recording", disable=not many or not _visible(progress)):
        if is_recording(path, config):
            front_end = front_end or FrontEnd(config)
            try:
                made.append(front_end.features(path, device=device, progress=progress and not many))
            except DataError as error:
                if fails is None:
                    raise
                fails(path, error)
        else:
            made.append(path)
    return made


def _with_grid(data: DataConfig, grid: Mapping[str, float]) -> DataConfig:
    if data.fps is not None and not np.isclose(data.fps, grid["fps"]):
        raise ConfigError(
            f"data.fps = {data.fps:g}, but these features have {grid['fps']:g} frames a second; leave it out"
        )
    return dataclasses.replace(data, fps=grid["fps"], feat_stride=grid["feat_stride"], num_frames=grid["num_frames"])


def _agrees(wanted: FrontEndConfig, stored: FrontEndConfig) -> bool:
    """Whether all that a configuration sets (what it leaves open may be anything) is as stored."""
    default = FrontEndConfig()
    for field in dataclasses.fields(FrontEndConfig):
        value = getattr(wanted, field.name)
        if (
            field.name != "weights_file"
            and value != getattr(default, field.name)
            and value != getattr(stored, field.name)
        ):
            return False
    return True


def _without_features(config: ExperimentConfig, data: Path) -> set[str]:
    """Ids of the annotated recordings that have no feature file."""
    c = config.data
    database = read_database(data / c.annotations)
    return {name for name in database if not feature_path(data / c.features, name, c).is_file()}


def _recordings_of(data: Path, names: set[str], config: FrontEndConfig) -> list[Path]:
    """The recordings of these ids that a data folder holds."""
    for place in FOLDERS:
        folder = data / place
        if folder.is_dir():
            found = [p for p in sorted(folder.iterdir()) if p.is_file() and kind_of(p) and recording_id(p) in names]
            if found:
                return recording_files(found, config)
    return []


def _with_extractor(config: FrontEndConfig, files: Sequence[Path]) -> FrontEndConfig:
    if config.extractor is not None:
        return config
    kinds = {kind: path for path in files if (kind := kind_of(path))}
    if len(kinds) != 1:
        shown = ", ".join(path.name for path in kinds.values()) or str(files[0])
        raise DataError(f"{shown}: expected recordings of one kind: video, sound or signals")
    kind = next(iter(kinds))
    return dataclasses.replace(config, extractor=DEFAULTS.get(kind, "samples"))


def _difference(sidecar: Mapping[str, Any], front_end: FrontEnd) -> str:
    mine = front_end.description()
    return ", ".join(f"{k} {v!r}, not {mine.get(k)!r}" for k, v in sidecar["front_end"].items() if mine.get(k) != v)[
        :200
    ]


def _visible(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


def _shown(blocks: Iterator[np.ndarray], front_end: FrontEnd, path: Path, progress: bool) -> Iterator[np.ndarray]:
    """The blocks, with a bar in seconds of the recording on a terminal."""
    if not _visible(progress) or front_end.kind == "samples":
        yield from blocks
        return
    total: float | None = None
    if front_end.kind == "video":
        from tzn.readers.video import stated_duration

        total = stated_duration(path)
    grid = front_end.grid()
    with tqdm(total=total and round(total), desc=path.name, unit="s") as bar:
        seconds = 0.0
        for block in blocks:
            yield block
            seconds += len(block) * grid["feat_stride"] / grid["fps"]
            bar.update(round(seconds) - bar.n)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors and warnings that begin with the path."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None

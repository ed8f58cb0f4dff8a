"""Which recordings a corpus has: a table of paths, or folders."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tzn.config import ExperimentConfig
from tzn.data.features import read_header
from tzn.data.stores import IN_CONTAINER, is_url
from tzn.errors import DataError
from tzn.models.pretrained import RawSignal
from tzn.optional import require
from tzn.readers import SIGNAL_SUFFIXES, SUFFIXES
from tzn.readers.front_end import kind_of_extractor, recording_id

COLUMNS = ("path", "recording", "fps", "duration", "steps")  # of a manifest; all but the first may be missing
BYTES_PER_VALUE = 4  # guessed of a file whose header says nothing


@dataclass(frozen=True)
class Item:
    """One recording of a corpus.

    Attributes:
        recording: its id.
        path: a file, ``CONTAINER::NAME`` (``docs/recordings.md``), or an address of either (``s3://…``).
        fps: raw frames (samples of a signal) per second; None: the model's.
        duration: seconds; None: what the features cover.
        steps: feature steps, for packing only; None: looked up.
    """

    recording: str
    path: str
    fps: float | None = None
    duration: float | None = None
    steps: int | None = None


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest and not a recording: a table with a column of texts named "path"."""
    if not path.is_file() or path.suffix.lower() not in (".parquet", ".csv"):
        return False
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return "path" in next(csv.reader(file), [])
    schema = _parquet(path).schema_arrow
    return "path" in schema.names and str(schema.field("path").type) in ("string", "large_string")


def read_manifest(path: Path) -> list[Item]:
    """The recordings of a manifest, ``.parquet`` or ``.csv``; relative paths are relative to its folder.

    Raises:
        DataError: no column "path", an unknown column, a value that is none of its kind, an id twice, no rows.
    """
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            rows: Sequence[Mapping[str, Any]] = list(csv.DictReader(file))
        names = list(rows[0]) if rows else []
    else:
        table = _parquet(path).read()
        rows, names = table.to_pylist(), table.column_names
    if not rows:
        raise DataError(f"{path}: the manifest has no rows, expected one per recording")
    if "path" not in names:
        raise DataError(f"{path}: columns {', '.join(names)}; expected a manifest with the column path")
    found = [_item(path, place, row) for place, row in enumerate(rows)]
    return checked_ids(found, str(path))


def _item(manifest: Path, place: int, row: Mapping[str, Any]) -> Item:
    text = row.get("path")
    if not isinstance(text, str) or not text:
        raise DataError(f"{manifest}: row {place}: path = {text!r}: expected the name of a file")
    whole = text if is_url(text) or Path(text).is_absolute() else str(manifest.parent / text)
    name = row.get("recording") or id_of(text)
    numbers: dict[str, float | None] = {}
    for column in ("fps", "duration", "steps"):
        value = row.get(column)
        if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
            numbers[column] = None
            continue
        try:
            numbers[column] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            numbers[column] = -1.0
        if not 0 < numbers[column] < math.inf:  # type: ignore[operator]
            raise DataError(f"{manifest}: row {place}: {column} = {value!r}: expected a number above 0, or nothing")
    steps = numbers["steps"]
    return Item(str(name), whole, numbers["fps"], numbers["duration"], None if steps is None else int(steps))


def id_of(path: str) -> str:
    """Recording id of a path that says none: the name in its container, else the file name without suffix."""
    inside = path.split(IN_CONTAINER)[-1]
    return inside if IN_CONTAINER in path else recording_id(Path(path.rsplit("/", 1)[-1]))


def checked_ids(items: list[Item], where: str) -> list[Item]:
    """``items``, if their ids differ.

    Raises:
        DataError: one of them twice.
    """
    twice = [name for name, count in Counter(item.recording for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{where}: two recordings are named {twice[0]!r}; recording ids must differ")
    return items


def gather(
    inputs: Sequence[Path], config: ExperimentConfig, signal: RawSignal | None, fps: float | None = None
) -> list[Item]:
    """The recordings of manifests, folders and files, in this order.

    Args:
        inputs: what the command line names.
        config, signal: of the model; they say which files of a folder it can read.
        fps: of recordings whose manifest says none.

    Raises:
        DataError: nothing there, an id twice, a damaged manifest.
    """
    suffixes = {".npy", *SIGNAL_SUFFIXES} if signal else {config.data.file_suffix}
    if signal is None and config.front_end.extractor is not None:
        suffixes |= set(SUFFIXES[kind_of_extractor(config.front_end.extractor)])
    found: list[Item] = []
    for path in inputs:
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if p.name.lower().endswith(tuple(suffixes)) and p.is_file()]
            if not inside:
                raise DataError(f"{path}: no {' or '.join(sorted(suffixes))} files in this folder")
            found += [Item(_unprefixed(p, config), str(p)) for p in inside]
        elif is_manifest(path):
            found += read_manifest(path)
        elif path.is_file():
            found.append(Item(_unprefixed(path, config), str(path)))
        else:
            raise DataError(f"{path}: no such file or folder")
    checked_ids(found, ", ".join(map(str, inputs)))
    if fps is None:
        return found
    return [Item(x.recording, x.path, x.fps or fps, x.duration, x.steps) for x in found]


def _unprefixed(path: Path, config: ExperimentConfig) -> str:
    return recording_id(path).removeprefix(config.data.file_prefix)


def length_of(item: Item, config: ExperimentConfig, signal: RawSignal | None) -> int:
    """Feature steps of a recording, or a guess from the size of its file; 1 where there is nothing to guess from.

    Only the order of work and what goes together depend on it.
    """
    if item.steps is not None:
        return item.steps
    path = Path(item.path)
    width = len(signal.channels) * signal.samples_per_step if signal else config.stored_dim
    try:
        if path.suffix in (".npy", ".npz"):
            header = read_header(path, npz_key=config.data.npz_key)
            return max(header.steps * header.channels // width, 1)
        return max(path.stat().st_size // (BYTES_PER_VALUE * width), 1)
    except (DataError, OSError):
        return 1


def _parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "reading .parquet files", "corpus", "pyarrow")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no Parquet file ({' '.join(str(error).split())[:120]})") from None

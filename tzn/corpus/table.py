"""Detections of many recordings as a Parquet table: its schema, writing and reading it, and putting several together.

The file's metadata hold under "tzn" what rows cannot: of every run (model and configuration) its settings, and the
recordings in which it found nothing. So a file says of every recording whether it was looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tzn.detections import Detections
from tzn.errors import DataError
from tzn.files import atomic_write
from tzn.optional import require

KEY = b"tzn"
FORMAT = 1
ROWS = 131_072  # of a row group, at least, but for the last
# name: (Arrow type, may be null, meaning)
COLUMNS = {
    "recording": ("string", "id of the recording"),
    "start": ("float64", "seconds"),
    "end": ("float64", "seconds"),
    "label": ("string", "name of the class"),
    "score": ("float64", "in [0, 1]"),
    "start_std": ("float64", "standard error of the start, seconds; null: the model knows none"),
    "end_std": ("float64", "standard error of the end, seconds; null: the model knows none"),
    "probability": ("float64", "calibrated chance to be right; null: the model was not calibrated"),
    "model": ("string", "fingerprint of the weights"),
    "configuration": ("string", "fingerprint of every setting that detections depend on"),
}
# No two detections have a number in common: dictionaries of texts alone save a quarter of the time and a tenth of the file.
LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [name for name, (kind, _) in COLUMNS.items() if kind == "string"],
}


@dataclass
class Run:
    """One model with one configuration over recordings.

    Attributes:
        model, configuration: fingerprints, 16 hexadecimal digits.
        settings: what the second one is of.
        classes: names in label order.
        score_threshold: score from which on the model calls a detection confident; None: not known.
        empty: recordings without a detection, sorted.
    """

    model: str
    configuration: str
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    score_threshold: float | None = None
    empty: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.model, self.configuration


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        DataError: it is not installed.
    """
    return require("pyarrow", "writing Parquet tables", "corpus")


def _parquet() -> Any:
    return require("pyarrow.parquet", "Parquet tables", "corpus", "pyarrow")


def schema(runs: Sequence[Run] = ()) -> Any:
    """The table's Arrow schema with ``runs`` in its metadata."""
    pa = arrow()
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, (kind, _) in COLUMNS.items()]
    content = {"format": FORMAT, "runs": [asdict(run) for run in runs]}
    return pa.schema(fields, metadata={KEY: json.dumps(content).encode()})


def rows_of(found: Mapping[str, Detections], run: Run) -> Any:
    """Detections by recording as an Arrow table."""
    pa = arrow()
    every = list(found.values())
    counts = [len(d) for d in every]
    total = sum(counts)

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0)

    std = joined([np.full((len(d), 2), np.nan) if d.std is None else d.std for d in every]).reshape(-1, 2)
    chance = joined([np.full(len(d), np.nan) if d.probability is None else d.probability for d in every])
    segments = joined([d.segments for d in every]).reshape(-1, 2)
    labels = joined([d.labels for d in every]).astype(np.int32)
    names = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(counts), dtype=np.int32), counts)), pa.array(list(found), pa.string())
    )
    classes = pa.DictionaryArray.from_arrays(pa.array(labels), pa.array(run.classes, pa.string()))

    def number(values: np.ndarray) -> Any:
        return pa.array(values.astype(np.float64), from_pandas=True)  # NaN becomes null

    return pa.Table.from_arrays(
        [
            names.cast(pa.string()), number(segments[:, 0]), number(segments[:, 1]), classes.cast(pa.string()),
            number(joined([d.scores for d in every])), number(std[:, 0]), number(std[:, 1]), number(chance),
            pa.array([run.model] * total, pa.string()), pa.array([run.configuration] * total, pa.string()),
        ],
        schema=schema([run]),
    )  # fmt: skip


def write_table(path: Path, table: Any) -> None:
    """Write one Arrow table as one row group, under a temporary name that is renamed."""
    with atomic_write(path, "wb") as file:
        _parquet().write_table(table, file, row_group_size=max(len(table), 1), **LAYOUT)


@dataclass
class Results:
    """A file of detections; the rows are read on demand.

    Attributes:
        path: of the file.
        runs: what made the rows.
        file: ``pyarrow.parquet.ParquetFile``.
    """

    path: Path
    runs: list[Run]
    file: Any

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Its row groups as Arrow tables."""
        for i in range(self.file.num_row_groups):
            yield self.file.read_row_group(i, columns=columns)

    def recordings(self, run: Run | None = None) -> set[str]:
        """Recordings looked at, by one run or by any."""
        found: set[str] = set()
        for chosen in self.runs:
            if run is None or chosen.key == run.key:
                found.update(chosen.empty)
        compute = require("pyarrow.compute", "Parquet tables", "corpus", "pyarrow")
        for group in self.groups(["recording", "model", "configuration"]):
            if run is not None:
                mine = compute.and_(
                    compute.equal(group["model"], run.model), compute.equal(group["configuration"], run.configuration)
                )
                group = group.filter(mine)
            found.update(compute.unique(group["recording"]).to_pylist())
        return found


def open_results(path: Path) -> Results:
    """A file of detections.

    Raises:
        DataError: missing, damaged, or not written by tzn.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of detections (Parquet)")
    try:
        file = _parquet().ParquetFile(path)
        content = json.loads((file.metadata.metadata or {})[KEY])
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']}, which this tzn does not read (expected {FORMAT})")
        return Results(path, [Run(**run) for run in content["runs"]], file)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: no table of detections that tzn wrote, or damaged ({text})") from None


def join(tables: Iterator[Any], runs: Sequence[Run], out: Path) -> int:
    """Write Arrow tables one after the other to one file, in row groups of at least :data:`ROWS` rows; the rows written.

    Memory is that of one row group. ``runs`` may be changed until the last table came: they go into the footer.
    """
    pa, parquet = arrow(), _parquet()
    total = waiting = 0
    group: list[Any] = []
    with atomic_write(out, "wb") as file:
        writer = parquet.ParquetWriter(file, schema().remove_metadata(), **LAYOUT)
        with writer:
            for table in tables:
                group.append(table.replace_schema_metadata(None))
                waiting += len(table)
                if waiting >= ROWS:
                    writer.write_table(pa.concat_tables(group), row_group_size=waiting)
                    total, waiting, group = total + waiting, 0, []
            if waiting:
                writer.write_table(pa.concat_tables(group), row_group_size=waiting)
            writer.add_key_value_metadata(dict(schema(runs).metadata))
    return total + waiting


def merge(paths: Sequence[Path], out: Path) -> tuple[int, int]:
    """Put files of detections together, such as runs over parts of a corpus, or of several models over one.

    A recording that a run (model and configuration) has in several files is taken from the first of them.

    Args:
        paths: what :func:`tzn.corpus.run.predict_corpus` or this function wrote.
        out: the file to write.

    Returns:
        rows written, and rows left out because an earlier file has their recording.

    Raises:
        DataError: unreadable files, fewer than two.
    """
    if len(paths) < 2:
        raise DataError(f"{', '.join(map(str, paths)) or 'no files'}: expected at least two files to merge")
    files = [open_results(path) for path in paths]
    compute = require("pyarrow.compute", "Parquet tables", "corpus", "pyarrow")
    pa = arrow()
    runs: dict[tuple[str, str], Run] = {}
    done: dict[tuple[str, str], set[str]] = {}
    out_rows = [0]

    def tables() -> Iterator[Any]:
        for one in files:
            seen = {run.key: one.recordings(run) for run in one.runs}
            for group in one.groups():
                for run in one.runs:
                    mine = compute.and_(
                        compute.equal(group["model"], run.model),
                        compute.equal(group["configuration"], run.configuration),
                    )
                    rows = group.filter(mine)
                    before = done.get(run.key, set())
                    if before and len(rows):
                        known = compute.is_in(rows["recording"], value_set=pa.array(sorted(before), pa.string()))
                        fresh = rows.filter(compute.invert(known))
                        out_rows[0] += len(rows) - len(fresh)
                        rows = fresh
                    yield rows
            for run in one.runs:
                kept = runs.setdefault(run.key, Run(**{**asdict(run), "empty": []}))
                before = done.setdefault(run.key, set())
                kept.empty = sorted({*kept.empty, *(set(run.empty) - before)})
                before |= seen[run.key]
        collected.extend(runs.values())

    collected: list[Run] = []
    return join(tables(), collected, out), out_rows[0]

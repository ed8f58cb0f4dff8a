"""CSV, TSV and Parquet files as channels in time, read by Arrow."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tzn.errors import DataError
from tzn.optional import require
from tzn.readers.recording import Recording
from tzn.readers.timing import at_one_rate

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
TIME_NAMES = re.compile(
    r"(date_?time|time_?stamp|time|date|seconds|sec|t)\W*_?\(?\[?(s|ms|us|µs|ns|sec|seconds)?\]?\)?$"
)
LARGEST_SECONDS = 1e11  # later than the year 5000: not seconds
SNIFFED = 1 << 16


def read_table(
    path: Path,
    *,
    rate: float | None = None,
    channels: tuple[str, ...] = (),
    time: str | None = None,
    time_unit: str | None = None,
    sample_rate: float | None = None,
    decimal: str | None = None,
    max_gap: float = 1.0,
) -> Recording:
    """A table with a row a sample; arguments as of :func:`tzn.readers.read_recording`.

    Raises:
        DataError: unreadable file, unknown column, text among numbers, no or falling times, holes too long to bridge.
    """
    arrow = require("pyarrow", f"reading {path.name}", "signal")
    try:
        table = _parquet(path) if path.suffix == ".parquet" else _csv(path, decimal)
    except (arrow.ArrowInvalid, arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as a table ({' '.join(str(error).split())[:200]})") from None
    names = table.column_names
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"two columns are named {doubled!r}")
    if not table.num_rows:
        raise DataError("holds no samples")
    clock = _time_column(names, time, sample_rate)
    chosen = _channels(table, clock, channels)
    values = np.stack([_numbers(table, name) for name in chosen], axis=1)
    if clock is not None:
        times = _seconds(table, clock, time_unit)
    elif sample_rate or rate:
        times = np.arange(len(values)) / (sample_rate or rate or 1.0)
    else:
        raise DataError(
            f"no column of times among {', '.join(names[:8])}: name it (time), or say how many samples a second (sample_rate)"
        )
    if not np.isfinite(times).all():
        raise DataError(f"row {int(np.argmax(~np.isfinite(times))) + 1}: the time is missing")
    moved, found = at_one_rate(times, values, chosen, rate, max_gap)
    return Recording(moved, found, chosen, float(times[0]) if clock is not None else 0.0)


def _parquet(path: Path) -> Any:
    return require("pyarrow.parquet", f"reading {path.name}", "signal").read_table(path)


class _Layout(NamedTuple):
    """How a text file holds its table: lines before the numbers, names of the columns, separator, decimal sign, encoding."""

    skipped: int
    names: list[str]
    delimiter: str
    decimal: str
    encoding: str


def clock_of(path: Path) -> str | None:
    """Name of the column that :func:`read_table` takes for the times, seen from the names alone; None: there is none.

    Raises:
        DataError: as :func:`read_table` for a file without names to read, and for two such columns.
    """
    if path.suffix == ".parquet":
        arrow = require("pyarrow", f"reading {path.name}", "signal")
        parquet = require("pyarrow.parquet", f"reading {path.name}", "signal")
        try:
            return _time_column(parquet.read_schema(path).names, None, None)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as a table ({' '.join(str(error).split())[:200]})") from None
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            layout = _layout(file.read(SNIFFED), None)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as a table ({error})") from None
    return _time_column(layout.names, None, None)


def _csv(path: Path, decimal: str | None) -> Any:
    """An Arrow table; separator, decimal sign, encoding and a line of names are seen from the first 64 KiB."""
    arrow = require("pyarrow", f"reading {path.name}", "signal")
    reader = require("pyarrow.csv", f"reading {path.name}", "signal")
    with arrow.input_stream(str(path), compression="detect") as file:
        layout = _layout(file.read(SNIFFED), decimal)
    return reader.read_csv(
        path,
        read_options=reader.ReadOptions(skip_rows=layout.skipped, column_names=layout.names, encoding=layout.encoding),
        parse_options=reader.ParseOptions(delimiter=layout.delimiter),
        convert_options=reader.ConvertOptions(decimal_point=layout.decimal),
    )


def _layout(head: bytes, decimal: str | None) -> _Layout:
    """The layout of a file that begins with ``head``."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(encoding, errors="ignore" if len(head) == SNIFFED else "strict")
    lines = text.splitlines()
    skipped = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if skipped is None:
        raise DataError("holds no samples")
    delimiter = next((sign for sign in "\t;,|" if sign in lines[skipped]), ",")
    if decimal is None:
        decimal = "," if delimiter != "," and re.search(r"(?<![\d.])-?\d+,\d+(?![\d,])", text) else "."
    first = next(csv.reader([lines[skipped]], delimiter=delimiter))
    named = not any(_is_number(field.replace(decimal, ".")) for field in first)
    names = [name.strip() for name in first] if named else [f"column{i}" for i in range(len(first))]
    return _Layout(skipped + named, names, delimiter, decimal, "utf8" if encoding == "utf-8-sig" else encoding)


def _time_column(names: list[str], time: str | None, sample_rate: float | None) -> str | None:
    if time is not None:
        if time not in names:
            raise DataError(f"no column {time!r} (time); the file has: {', '.join(names[:20])}")
        return time
    if sample_rate is not None:
        return None
    found = [name for name in names if TIME_NAMES.match(name.lower())]
    if len(found) > 1:
        raise DataError(f"columns {' and '.join(map(repr, found))} could hold the times: name one (time)")
    return found[0] if found else None


def _channels(table: Any, clock: str | None, channels: tuple[str, ...]) -> tuple[str, ...]:
    """The columns named; else all that hold numbers."""
    missing = [name for name in channels if name not in table.column_names]
    if missing:
        raise DataError(f"no column {missing[0]!r} (channels); the file has: {', '.join(table.column_names[:20])}")
    if channels:
        return channels
    # A column of text is a label or a comment; one with numbers in it is a damaged channel, and _numbers says where.
    found = tuple(n for n in table.column_names if n != clock and not _is_text(table.column(n)))
    if not found:
        raise DataError(f"no column of numbers besides the times; the file has: {', '.join(table.column_names[:20])}")
    return found


def _is_text(column: Any) -> bool:
    kind = str(column.type)
    if kind == "null":
        return True
    if "string" not in kind:
        return kind.startswith(("timestamp", "date", "time", "struct", "list", "dictionary", "binary"))
    return not any(_is_number(text or "") for text in column.to_pylist())


def _numbers(table: Any, name: str) -> np.ndarray:
    """A column as float64 ``[N]``, NaN where it is empty."""
    column = table.column(name)
    if "string" in str(column.type):
        texts = column.to_pylist()
        row = next((i for i, text in enumerate(texts) if text and not _is_number(text)), 0)
        raise DataError(f"row {row + 1}, column {name!r} holds {texts[row]!r}, expected a number")
    try:
        values = column.cast("float64", safe=False).to_numpy()  # nanoseconds since 1970 have more digits
    except Exception:  # Arrow has an error of its own for each pair of types
        raise DataError(f"column {name!r} holds {column.type}, expected numbers") from None
    if np.isinf(values).any():
        raise DataError(f"row {int(np.argmax(np.isinf(values))) + 1}, column {name!r} is infinite, expected a number")
    return np.asarray(values, np.float64)


def _seconds(table: Any, name: str, unit: str | None) -> np.ndarray:
    """Times as float64 seconds ``[N]``."""
    column = table.column(name)
    kind = str(column.type)
    if kind.startswith(("timestamp", "date")):
        stamps = column.cast("timestamp[ns]" if "tz=" not in kind else "timestamp[ns, tz=UTC]").to_numpy()
        missing = np.isnat(stamps)
        return np.where(missing, np.nan, stamps.astype("datetime64[ns]").astype(np.int64) * 1e-9)
    if kind.startswith("time"):
        return np.asarray(column.cast("time64[ns]").cast("int64").to_numpy(), np.float64) * 1e-9
    if "string" in kind:
        text = next(text for text in column.to_pylist() if text is not None)
        raise DataError(f"column {name!r} holds {text!r}, expected seconds or a date such as 2026-01-31T12:00:00.25")
    if unit is None:
        named = TIME_NAMES.match(name.lower())
        written = (named.group(2) if named else None) or "s"
        unit = "s" if written.startswith("s") else written.replace("µ", "u")
    times = _numbers(table, name) * UNITS[unit]
    if np.nanmax(np.abs(times)) > LARGEST_SECONDS:
        raise DataError(
            f"column {name!r} holds {times[0]:g}, which are no seconds: say the unit (time_unit: ms, us or ns)"
        )
    return times


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

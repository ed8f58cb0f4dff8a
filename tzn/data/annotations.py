"""Reading and checking annotations in the ActivityNet / ActionFormer JSON schema."""

from __future__ import annotations

import difflib
import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tzn.errors import DataError

END_SLACK = 0.5  # seconds that a segment may end after the duration: durations are often rounded down


@dataclass(frozen=True)
class Recording:
    """One recording's annotations."""

    id: str
    subset: str
    duration: float | None  # seconds
    fps: float | None  # raw frames per second
    segments: np.ndarray  # [N, 2] float64 seconds
    labels: np.ndarray  # [N] int64, index into Annotations.classes


@dataclass(frozen=True)
class Annotations:
    """All recordings of an annotation file."""

    classes: tuple[str, ...]
    recordings: dict[str, Recording]
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> how many segments

    def subset(self, name: str) -> list[Recording]:
        """Recordings of a subset, case-insensitive.

        Raises:
            DataError: no such subset; the message lists those there are.
        """
        chosen = [r for r in self.recordings.values() if r.subset.lower() == name.lower()]
        if not chosen:
            there = ", ".join(f"{k} ({n})" for k, n in Counter(r.subset for r in self.recordings.values()).items())
            raise DataError(f"no recordings in subset {name!r}; the annotations have: {there or 'none'}")
        return chosen


def load_annotations(path: str | Path, *, strict: bool = True, classes: Sequence[str] | None = None) -> Annotations:
    """Read ``{"database": {id: {"subset", "duration", "fps", "annotations": [{"segment", "label", "label_id"}]}}}``.

    Args:
        path: ``.json`` or ``.json.gz``.
        strict: raise on the first problems; otherwise drop bad segments, clip those past the duration, and count both
            in ``dropped``.
        classes: class order to use (a checkpoint's); None: by ``label_id`` where the file has consistent ones, else by
            name.

    Raises:
        DataError: unreadable file, wrong schema, duplicate recording id, unknown label; with ``strict`` also end <= start,
            non-finite times, segments outside the recording.
    """
    path = Path(path)
    database = read_database(path)
    order = tuple(classes) if classes is not None else _class_order(database, path)
    index = {name: i for i, name in enumerate(order)}
    problems: list[str] = []
    dropped: Counter[str] = Counter()
    recordings = {
        name: _recording(name, entry, index, problems, dropped, path) for name, entry in database.items()
    }
    if strict and problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DataError(f"{path}: {'; '.join(problems[:3])}{more}")
    return Annotations(order, recordings, dict(dropped))


def read_database(path: Path) -> dict[str, Any]:
    """The "database" object of an annotation file, as it stands.

    Raises:
        DataError: missing, truncated or not JSON, no "database", duplicate recording id.
    """
    content = read_json(path, unique_keys=True)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataError(f'{path}: expected a JSON object with "database": {{id: {{"subset", "annotations", …}}}}')
    for name, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
            raise DataError(f'{path}: recording {name!r}: expected an object with a list "annotations"')
    return database


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """Content of a ``.json`` or ``.json.gz`` file; with ``unique_keys`` an object that repeats a key is an error."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]
        if repeated:
            raise DataError(f"{path}: duplicate id {repeated[0]!r}")
        return dict(items)

    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            return json.load(file, object_pairs_hook=pairs if unique_keys else None)
    except (json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None


def _class_order(database: dict[str, Any], path: Path) -> tuple[str, ...]:
    ids: dict[str, set[Any]] = {}
    for name, entry in database.items():
        for annotation in entry.get("annotations", []):
            label = annotation.get("label") if isinstance(annotation, dict) else None
            if not isinstance(label, str):
                raise DataError(f'{path}: recording {name!r}: an annotation has no "label"')
            ids.setdefault(label, set()).add(annotation.get("label_id"))
    numbers = [next(iter(values)) for values in ids.values() if len(values) == 1]
    consistent = len(numbers) == len(ids) == len(set(numbers)) and all(isinstance(n, int) for n in numbers)
    if consistent:
        return tuple(sorted(ids, key=lambda label: next(iter(ids[label]))))
    return tuple(sorted(ids))


def _recording(
    name: str, entry: dict[str, Any], index: dict[str, int], problems: list[str], dropped: Counter[str], path: Path
) -> Recording:
    duration, fps = _positive(entry.get("duration")), _positive(entry.get("fps"))
    segments, labels = [], []
    for annotation in entry.get("annotations", []):
        label = annotation.get("label") if isinstance(annotation, dict) else None
        if label not in index:
            raise DataError(f"{path}: recording {name!r}: unknown label {label!r}{_nearest(label, index)}")
        segment, problem = _checked_segment(annotation.get("segment"), duration)
        if problem:
            reason, text = problem
            problems.append(f"recording {name!r}, label {label!r}: {text}")
            dropped[reason] += 1
        if segment is not None:
            segments.append(segment)
            labels.append(index[label])
    return Recording(
        name, str(entry.get("subset", "")), duration, fps,
        np.array(segments, dtype=np.float64).reshape(-1, 2), np.array(labels, dtype=np.int64),
    )  # fmt: skip


def _checked_segment(
    segment: Any, duration: float | None
) -> tuple[tuple[float, float] | None, tuple[str, str] | None]:
    """(segment to keep or None, (reason, message) or None)."""
    try:
        start, end = (float(x) for x in segment)
    except (TypeError, ValueError):
        return None, ("not a pair of numbers", f"segment {segment!r} is not a pair of numbers")
    text = f"segment [{start:g}, {end:g}]"
    if not (math.isfinite(start) and math.isfinite(end)):
        return None, ("non-finite time", f"{text} has a time that is not finite")
    if end <= start:
        return None, ("end <= start", f"{text} ends at or before its start")
    if duration is not None and start >= duration:
        return None, ("starts after the end of the recording", f"{text} starts after the duration {duration:g} s")
    low, high = max(start, 0.0), end if duration is None else min(end, duration)
    if start < 0:
        return (low, high), ("start < 0: clipped", f"{text} starts before 0")
    if duration is not None and end > duration + END_SLACK:
        return (low, high), ("end after the duration: clipped", f"{text} ends after the duration {duration:g} s")
    return (low, high), None


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else None


def _nearest(label: Any, index: dict[str, int]) -> str:
    close = difflib.get_close_matches(str(label), index, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known labels: {', '.join(list(index)[:8])}"

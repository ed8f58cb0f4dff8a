"""Annotation files in the ActivityNet / ActionFormer schema, strictly checked.

``{"database": {id: {"subset", "duration", "fps", "annotations": [{"segment": [start, end], "label", "label_id"}]}}}``
with times in seconds; ``duration``, ``fps`` and ``label_id`` are optional.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tzn.errors import DataError

# Durations and segment ends are rounded independently in most releases (ActivityNet: 172 ends up to 0.5 s late).
OVERHANG_SECONDS = 0.5
MAX_LISTED = 5
CLIPPED = ("starts before 0 s", "ends after the recording")  # reasons to clip a segment; all others drop it
MAX_BYTES = 1 << 30  # of JSON: about 10 million detections; a compressed file can unpack to anything


@dataclass(frozen=True)
class Recording:
    """One untrimmed recording and its ground truth.

    Attributes:
        id: name; feature files are named after it.
        subset: as in the file, e.g. "training".
        duration: seconds, or None where the file does not say.
        fps: raw frames per second, or None.
        segments: ``[N, 2]`` float64 (start, end) in seconds.
        labels: ``[N]`` int64, index into :attr:`Annotations.classes`.
    """

    id: str
    subset: str
    duration: float | None
    fps: float | None
    segments: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """A whole annotation file.

    Attributes:
        classes: class names; ordered by ``label_id`` where the file has consistent ids, else by name.
        recordings: by id, in file order.
        dropped: reason -> how many segments were dropped or clipped for it (only with ``strict=False``).
    """

    classes: tuple[str, ...]
    recordings: dict[str, Recording]
    dropped: dict[str, int] = field(default_factory=dict)

    def repairs(self) -> list[str]:
        """Lines that count what reading with ``strict=False`` dropped or clipped, and why."""
        return [f"{n} segments {'clipped' if why in CLIPPED else 'left out'}: {why}" for why, n in self.dropped.items()]

    def subset(self, name: str) -> list[Recording]:
        """Recordings of a subset (case-insensitive).

        Raises:
            DataError: no recording has this subset; the message lists those that exist.
        """
        found = [r for r in self.recordings.values() if r.subset.lower() == name.lower()]
        if not found:
            counts = Counter(r.subset for r in self.recordings.values())
            existing = ", ".join(f"{subset!r} ({count})" for subset, count in sorted(counts.items())) or "none"
            raise DataError(f"no recording in subset {name!r}; the annotations have: {existing}")
        return found


@dataclass(frozen=True)
class Problem:
    """One segment that is not as it should be, and what ``strict=False`` does about it."""

    recording: str
    index: int
    segment: object
    reason: str
    note: str = ""

    def __str__(self) -> str:
        return f"recording {self.recording!r}, segment {self.index}: {self.segment}: {self.reason}{self.note}"


def load_annotations(path: str | Path, *, strict: bool = True, classes: Sequence[str] | None = None) -> Annotations:
    """Read a ``.json`` or ``.json.gz`` annotation file.

    Args:
        path: the file.
        strict: raise on bad segments. Otherwise segments without positive length, with non-finite times or outside the
            recording are dropped, those that overhang it are clipped, and ``dropped`` counts both.
        classes: fixes the class order (a checkpoint's).

    Raises:
        DataError: missing or unreadable file, wrong schema, duplicate recording id, label that is not in ``classes``
            (always); bad segments (with ``strict``; an end up to 0.5 s past the duration passes for rounding).
    """
    path = Path(path)
    annotations, problems = parse_annotations(path, classes=classes, overhang=OVERHANG_SECONDS if strict else 0.0)
    if strict and problems:
        listed = "; ".join(str(p) for p in problems[:MAX_LISTED])
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise DataError(f"{path}: {len(problems)} bad segment{'s' if len(problems) > 1 else ''}: {listed}{more}")
    return annotations


def parse_annotations(
    path: str | Path, *, classes: Sequence[str] | None = None, overhang: float = 0.0
) -> tuple[Annotations, list[Problem]]:
    """Annotations with bad segments repaired or dropped, and the list of them.

    Args:
        path: the file.
        classes: fixed class order, or None.
        overhang: seconds that a segment may reach outside its recording without being a problem.

    Raises:
        DataError: everything but bad segments, see :func:`load_annotations`.
    """
    path = Path(path)
    database = read_database(path)
    names = _class_order(database, path) if classes is None else tuple(classes)
    index = {name: i for i, name in enumerate(names)}
    problems: list[Problem] = []
    recordings = {}
    for key, entry in database.items():
        recordings[key] = _recording(key, entry, index, path, overhang, problems)
    dropped = dict(Counter(p.reason for p in problems))
    return Annotations(names, recordings, dropped), problems


def read_database(path: Path) -> dict[str, Any]:
    """The ``"database"`` object of an annotation file: entries by recording id, segments unchecked.

    Raises:
        DataError: unreadable file, wrong schema, duplicate recording id.
    """
    return _database(read_json(path), path)


def read_json(path: Path) -> Any:
    """Content of a ``.json`` or ``.json.gz`` file.

    Raises:
        DataError: missing, truncated or invalid file; a ``.gz`` that unpacks to more than 1 GiB; an object that repeats
            a key.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected .json or .json.gz in the ActivityNet schema")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB of JSON, unpacked; expected less")
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path), parse_int=_integer)
    except RecursionError:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _integer(text: str) -> int | float:
    """An integer that no float holds is infinite: those are refused wherever numbers are checked, with their place."""
    return int(text) if len(text) < 300 else float(text)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        what = "recording id" if isinstance(found[key], dict) else "key"
        raise DataError(f"{path}: {what} {key!r} appears twice")
    return found


def _database(content: Any, path: Path) -> dict[str, Any]:
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        found = f"keys {sorted(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f'{path}: expected an object with "database": {{recording id: ...}}, found {found}')
    if not database:
        raise DataError(f'{path}: "database" has no recordings')
    for key, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("subset"), str):
            raise DataError(f'{path}: recording {key!r}: expected an object with a "subset" name')
        annotations = entry.get("annotations") or []
        if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
            raise DataError(f'{path}: recording {key!r}: "annotations" is not a list of objects')
    return database


def _annotations(database: dict[str, Any]) -> Iterable[tuple[str, int, dict[str, Any]]]:
    for key, entry in database.items():
        for i, annotation in enumerate(entry.get("annotations") or []):
            yield key, i, annotation


def class_label_ids(path: str | Path) -> dict[str, int]:
    """``label_id`` by class name in ascending order of ids; empty where names and ids do not correspond one to one.

    Raises:
        DataError: unreadable file, wrong schema.
    """
    return _label_ids(_named_labels(read_database(Path(path)), Path(path)))


def _class_order(database: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Names of all labels in the file, all subsets together, so training and test agree."""
    pairs = _named_labels(database, path)
    return tuple(_label_ids(pairs)) or tuple(sorted({label for label, _ in pairs}))


def _named_labels(database: dict[str, Any], path: Path) -> set[tuple[str, int]]:
    """(name, ``label_id`` or -1) of all labels in the file."""
    pairs: set[tuple[str, int]] = set()
    for key, i, annotation in _annotations(database):
        label, number = annotation.get("label"), annotation.get("label_id")
        if not isinstance(label, str):
            raise DataError(f'{path}: recording {key!r}, segment {i}: "label" is {label!r}, expected a class name')
        pairs.add((label, number if isinstance(number, int) else -1))
    return pairs


def _label_ids(pairs: set[tuple[str, int]]) -> dict[str, int]:
    names, numbers = {label for label, _ in pairs}, {number for _, number in pairs}
    one_to_one = min(numbers, default=0) >= 0 and len(pairs) == len(names) == len(numbers)
    return dict(sorted(pairs, key=lambda pair: pair[1])) if one_to_one else {}


def _recording(
    key: str, entry: dict[str, Any], index: dict[str, int], path: Path, overhang: float, problems: list[Problem]
) -> Recording:
    duration = _positive(entry.get("duration"), f"{path}: recording {key!r}: duration")
    fps = _positive(entry.get("fps"), f"{path}: recording {key!r}: fps")
    segments, labels = [], []
    for i, annotation in enumerate(entry.get("annotations") or []):
        label = annotation.get("label")
        if label not in index:
            raise DataError(f"{path}: recording {key!r}, segment {i}: unknown label {label!r}{_nearest(label, index)}")
        segment, reason, note = _checked(annotation.get("segment"), duration, overhang)
        if reason:
            problems.append(Problem(key, i, annotation.get("segment"), reason, note))
        if segment is not None:
            segments.append(segment)
            labels.append(index[label])
    return Recording(
        key, entry["subset"], duration, fps,
        np.array(segments, np.float64).reshape(-1, 2), np.array(labels, np.int64),
    )  # fmt: skip


def _positive(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
        raise DataError(f"{what} is {value!r}, expected a positive number")
    return float(value)


def _nearest(label: object, index: dict[str, int]) -> str:
    close = difflib.get_close_matches(str(label), index, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {len(index)} classes: {_short(index)}"


def _short(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _checked(segment: Any, duration: float | None, overhang: float) -> tuple[tuple[float, float] | None, str, str]:
    """(segment to use or None, reason of the problem or "", detail of this segment)."""
    if not (isinstance(segment, list) and len(segment) == 2 and all(type(x) in (int, float) for x in segment)):
        return None, "not a [start, end] pair of numbers", ""
    try:
        start, end = map(float, segment)
    except OverflowError:  # an integer of more than 308 digits
        return None, "start or end is not finite", ""
    if not (math.isfinite(start) and math.isfinite(end)):
        return None, "start or end is not finite", ""
    if end < start:
        return None, "end before start", ""
    if end == start:
        return None, "zero length", ""
    last = math.inf if duration is None else duration
    note = "" if duration is None else f" (duration {duration:g} s)"
    if end <= 0 or start >= last:
        return None, "outside the recording", note
    if start < -overhang:
        return (0.0, min(end, last)), CLIPPED[0], note
    if end > last + overhang:
        return (max(start, 0.0), last), CLIPPED[1], note
    return (start, end), "", ""

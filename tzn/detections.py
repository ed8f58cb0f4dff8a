"""Detections of a recording, and the files they are written to and read from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import read_json
from tzn.errors import DataError
from tzn.files import atomic_write

CSV_HEADER = ("video", "start", "end", "label", "score", "start_std", "end_std")


@dataclass(frozen=True)
class Detections:
    """Detections of one recording, by falling score.

    Attributes:
        segments: ``[N, 2]`` float64 (start, end) in seconds.
        scores: ``[N]`` float64 in [0, 1].
        labels: ``[N]`` int64, index into the classes.
        std: ``[N, 2]`` float64, standard errors of start and end in seconds, NaN where unknown; None: all unknown.
    """

    segments: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    std: np.ndarray | None = None


def write_predictions(path: str | Path, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """Write detections in the format that the suffix names.

    ``.json`` and ``.json.gz``: the ActivityNet schema plus ``segment_std``, one detection a line, numbers exact, so
    that reading gives the same detections. ``.csv``: one detection a row, microseconds. ``.srt``: subtitles of one
    recording.

    Args:
        path: file to write or replace; missing parent folders are made.
        detections: by recording id.
        classes: names in label order.

    Raises:
        DataError: another suffix, or ``.srt`` with more or less than one recording.
    """
    path = Path(path)
    if path.name.endswith(".json"):
        _write_text(path, _json_text(detections, classes))
    elif path.name.endswith(".json.gz"):
        # Without a name and a time stamp, the same detections give the same bytes.
        with atomic_write(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            packed.writelines(text.encode() for text in _json_text(detections, classes))
    elif path.suffix == ".csv":
        _write_text(path, _csv_text(detections, classes))
    elif path.suffix == ".srt":
        if len(detections) != 1:
            raise DataError(
                f"{path}: one .srt file holds one recording, there are {len(detections)}; "
                "give a folder to write a file each (--format srt)"
            )
        _write_text(path, [_srt_text(next(iter(detections.values())), classes)])
    else:
        raise DataError(f"{path}: predictions are written as .json, .json.gz, .csv or .srt, not as {path.suffix!r}")


def write_srt_folder(folder: str | Path, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """Write ``<recording id>.srt`` per recording: a subtitle "label score" per detection, by rising start.

    Raises:
        DataError: a recording id that is no file name; nothing is written then.
    """
    for name in detections:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise DataError(f"recording id {name!r} cannot name a file in {folder}")
    for name, found in detections.items():
        _write_text(Path(folder) / f"{name}.srt", [_srt_text(found, classes)])


def read_predictions(path: str | Path, classes: Sequence[str]) -> tuple[dict[str, Detections], int]:
    """Read an ActivityNet JSON file (``.json`` or ``.json.gz``).

    Args:
        path: ``{"results": {id: [{"segment": [start, end], "label", "score", "segment_std": optional}]}}``.
        classes: names in label order.

    Returns:
        detections by recording id in file order, by falling score (equal scores in file order), and how many were left
        out because their label is not in ``classes``.

    Raises:
        DataError: unreadable file, recording id twice, missing key, segment not a pair of finite numbers or with
            end < start, score not finite, negative standard error. Names the recording and the detection.
    """
    path = Path(path)
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DataError(f'{path}: expected an object with "results": {{id: [{{"segment", "label", "score"}}]}}')
    index = {label: i for i, label in enumerate(classes)}
    found, unknown = {}, 0
    for name, rows in results.items():
        where = f"{path}: recording {name!r}"
        if not isinstance(rows, list):
            raise DataError(f"{where}: expected a list of detections, not {type(rows).__name__}")
        every = _parsed(rows, index, where)
        known = every.labels >= 0
        unknown += int((~known).sum())
        order = np.flatnonzero(known)
        order = order[np.argsort(-every.scores[order], kind="stable")]
        std = None if every.std is None else every.std[order]
        found[name] = Detections(every.segments[order], every.scores[order], every.labels[order], std)
    return found, unknown


def _parsed(rows: list[Any], index: Mapping[str, int], where: str) -> Detections:
    """Detections in the order of ``rows``; label -1 where it is not in ``index``."""
    try:
        segments = np.array([row["segment"] for row in rows]).reshape(-1, 2) if rows else np.zeros((0, 2))
        scores = np.array([row["score"] for row in rows]) if rows else np.zeros(0)
        labels = np.array([index.get(str(row["label"]), -1) for row in rows], dtype=np.int64)
        std = None
        if any("segment_std" in row for row in rows):
            std = np.array([row.get("segment_std") or (None, None) for row in rows], dtype=np.float64)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _fault(rows, where) from None
    numbers = segments.dtype.kind in "if" and scores.dtype.kind in "if" and segments.shape == (scores.size, 2)
    if (
        not numbers
        or scores.ndim != 1
        or not (np.isfinite(segments).all() and np.isfinite(scores).all())
        or (segments[:, 1] < segments[:, 0]).any()
        or (std is not None and (std.shape != segments.shape or (std < 0).any() or np.isinf(std).any()))
    ):
        raise _fault(rows, where)
    return Detections(segments.astype(np.float64), scores.astype(np.float64), labels, std)


def _fault(rows: list[Any], where: str) -> DataError:
    """The first thing wrong with ``rows``."""
    for i, row in enumerate(rows):
        if problem := next(_problems(row), None):
            return DataError(f"{where}, detection {i}: {problem}: {_shortened(row)}")
    return DataError(f"{where}: detections are not {{segment, label, score}} objects of plain numbers")


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield "expected an object"
        return
    for key in ("segment", "label", "score"):
        if key not in row:
            yield f"no {key!r}"
            return
    segment, std = row["segment"], row.get("segment_std")
    if not (isinstance(segment, list) and len(segment) == 2 and all(map(_is_number, segment))):
        yield "segment is not a [start, end] pair of finite numbers"
    elif segment[1] < segment[0]:
        yield "segment ends before it starts"
    if not _is_number(row["score"]):
        yield "score is not a finite number"
    if std is not None and not (
        isinstance(std, list) and len(std) == 2 and all(x is None or (_is_number(x) and x >= 0) for x in std)
    ):
        yield "segment_std is not a pair of numbers >= 0 or null"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shortened(row: Any) -> str:
    text = repr(row)
    return text if len(text) <= 120 else text[:117] + "..."


def _rows(found: Detections, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    std = None if found.std is None else found.std.tolist()
    for i, (segment, label, score) in enumerate(
        zip(found.segments.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ):
        row = {"segment": segment, "label": classes[label], "score": score}
        if std is not None:
            row["segment_std"] = [x if math.isfinite(x) else None for x in std[i]]
        yield row


def _json_text(detections: Mapping[str, Detections], classes: Sequence[str]) -> Iterator[str]:
    """The file's text recording by recording, so that no more than one of them need be in memory."""
    before = '{"version": "tzn 1", "results": {\n '
    for name, found in detections.items():
        rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in _rows(found, classes))
        yield f"{before}{json.dumps(name)}: " + (f"[\n  {rows}\n ]" if rows else "[]")
        before = ",\n "
    yield "\n}}\n" if before.startswith(",") else before + "\n}}\n"


def _csv_text(detections: Mapping[str, Detections], classes: Sequence[str]) -> Iterator[str]:
    yield ",".join(CSV_HEADER) + "\n"
    for name, found in detections.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in _rows(found, classes):
            start, end = (f"{x:.6f}" for x in row["segment"])
            std = ["" if x is None else f"{x:.6f}" for x in row.get("segment_std", (None, None))]
            writer.writerow([name, start, end, row["label"], f"{row['score']:.9g}", *std])
        yield text.getvalue()


def _srt_text(found: Detections, classes: Sequence[str]) -> str:
    blocks = []
    for number, i in enumerate(np.argsort(found.segments[:, 0], kind="stable"), start=1):
        start, end = (_srt_time(t) for t in found.segments[i])
        blocks.append(f"{number}\n{start} --> {end}\n{classes[found.labels[i]]} {found.scores[i]:.2f}\n")
    return "\n".join(blocks)


def _srt_time(seconds: float) -> str:
    rest, milliseconds = divmod(round(max(float(seconds), 0.0) * 1000), 1000)
    minutes, seconds_ = divmod(rest, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds_:02d},{milliseconds:03d}"


def _write_text(path: Path, text: Iterable[str]) -> None:
    with atomic_write(path) as file:
        file.writelines(text)

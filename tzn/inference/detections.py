"""Detections of a recording, and the files they are written to and read from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import _read_json as read_json
from tzn.errors import DataError
from tzn.files import atomic_write


@dataclass(frozen=True)
class Detections:
    """Detections of one recording, by falling score."""

    segments: np.ndarray  # [N, 2] float64 seconds
    scores: np.ndarray  # [N] float64
    labels: np.ndarray  # [N] int64
    std: np.ndarray | None = None  # [N, 2] float64 seconds, standard errors of start and end, NaN where unknown


def write_predictions(path: str | Path, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """Write detections by suffix: ``.json`` or ``.json.gz`` (ActivityNet schema plus ``segment_std``), or ``.csv``.

    Raises:
        DataError: another suffix.
    """
    path = Path(path)
    if path.name.endswith((".json", ".json.gz")):
        text = json.dumps({"version": "tzn 1", "results": results_object(detections, classes)}, indent=1)
        with atomic_write(path, "wb") as file:
            file.write(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    elif path.suffix == ".csv":
        with atomic_write(path) as file:
            file.write(_csv_text(detections, classes))
    else:
        raise DataError(f"{path}: predictions are written as .json, .json.gz or .csv (or a folder of .srt)")


def results_object(detections: Mapping[str, Detections], classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """``{id: [{"segment", "label", "score", "segment_std"}]}``; unknown standard errors are left out or null."""
    results = {}
    for name, found in detections.items():
        rows = []
        for i in range(len(found.scores)):
            row: dict[str, Any] = {
                "segment": [round(float(x), 6) for x in found.segments[i]],
                "label": classes[found.labels[i]],
                "score": round(float(found.scores[i]), 8),
            }
            if found.std is not None:
                row["segment_std"] = [round(float(x), 6) if math.isfinite(x) else None for x in found.std[i]]
            rows.append(row)
        results[name] = rows
    return results


def write_srt_folder(folder: str | Path, detections: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """One SubRip file per recording, a subtitle per detection, in order of time."""
    for name, found in detections.items():
        blocks = []
        for number, i in enumerate(np.argsort(found.segments[:, 0], kind="stable"), start=1):
            start, end = (_srt_time(t) for t in found.segments[i])
            blocks.append(f"{number}\n{start} --> {end}\n{classes[found.labels[i]]} {found.scores[i]:.2f}\n")
        with atomic_write(Path(folder) / f"{name}.srt") as file:
            file.write("\n".join(blocks))


def read_predictions(path: str | Path, classes: Sequence[str]) -> tuple[dict[str, Detections], int]:
    """Read ActivityNet JSON (``.json``, ``.json.gz``), by falling score per recording.

    Returns:
        detections by recording, and how many were left out because their label is not in ``classes``.

    Raises:
        DataError: unreadable file, missing key, segment not a pair of finite numbers, end < start, score not finite.
    """
    path = Path(path)
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DataError(f'{path}: expected a JSON object with "results": {{id: [{{"segment", "label", "score"}}]}}')
    index = {label: i for i, label in enumerate(classes)}
    found, unknown = {}, 0
    for name, rows in results.items():
        if not isinstance(rows, list):
            raise DataError(f"{path}: recording {name!r}: expected a list of detections")
        parsed = [_parsed(row, name, path) for row in rows]
        known = [(index[label], segment, score, std) for label, segment, score, std in parsed if label in index]
        unknown += len(parsed) - len(known)
        found[name] = _sorted_detections(known)
    return found, unknown


def _parsed(row: Any, name: str, path: Path) -> tuple[str, list[float], float, list[float] | None]:
    where = f"{path}: recording {name!r}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: a detection is {row!r}, expected an object")
    for key in ("segment", "label", "score"):
        if key not in row:
            raise DataError(f"{where}: a detection has no {key!r}: {row!r}")
    try:
        start, end = (float(x) for x in row["segment"])
        score = float(row["score"])
        std = row.get("segment_std")
        errors = None if std is None else [math.nan if x is None else float(x) for x in std]
    except (TypeError, ValueError):
        raise DataError(f"{where}: a detection is not [start, end] with a number as score: {row!r}") from None
    if not (math.isfinite(start) and math.isfinite(end) and math.isfinite(score)):
        raise DataError(f"{where}: a detection has a value that is not finite: {row!r}")
    if end < start:
        raise DataError(f"{where}: a detection ends before it starts: {row!r}")
    return str(row["label"]), [start, end], score, errors


def _sorted_detections(rows: list[tuple[int, list[float], float, list[float] | None]]) -> Detections:
    scores = np.array([r[2] for r in rows], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    segments = np.array([r[1] for r in rows], dtype=np.float64).reshape(-1, 2)[order]
    labels = np.array([r[0] for r in rows], dtype=np.int64)[order]
    std = None
    if any(r[3] is not None for r in rows):
        std = np.array([r[3] or [math.nan] * 2 for r in rows], dtype=np.float64).reshape(-1, 2)[order]
    return Detections(segments, scores[order], labels, std)


def _csv_text(detections: Mapping[str, Detections], classes: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "start", "end", "label", "score", "start_std", "end_std"])
    for name, rows in results_object(detections, classes).items():
        for row in rows:
            errors = ["" if x is None else x for x in row.get("segment_std", [None, None])]
            writer.writerow([name, *row["segment"], row["label"], row["score"], *errors])
    return text.getvalue()


def _srt_time(seconds: float) -> str:
    milliseconds = round(max(float(seconds), 0.0) * 1000)
    rest, ms = divmod(milliseconds, 1000)
    minutes, s = divmod(rest, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours:02d}:{m:02d}:{s:02d},{ms:03d}"

"""Scoring a predictions file against an annotation file, as they are (``tzn score``)."""

from __future__ import annotations

import decimal
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import read_database, read_json
from tzn.detections import Detections, read_predictions
from tzn.errors import DataError
from tzn.evaluation.detection_map import score_detections
from tzn.evaluation.flat import MIN_LENGTH, GroundTruth, distinct

MAX_THRESHOLDS = 1000


def score_files(
    predictions: str | Path,
    annotations: str | Path,
    *,
    split: str,
    tiou: Sequence[float],
    top_k: Sequence[int] = (1, 5),
    ties: str = "first",
    split_only: bool = False,
    lenient: bool = False,
    blocked: str | Path | None = None,
) -> dict[str, Any]:
    """Score ActivityNet-style files (``.json`` or ``.json.gz``).

    Ground truth is taken as annotated: segments past the duration are neither clipped nor dropped.

    Args:
        split: subset name, case-insensitive.
        tiou, top_k, ties: see :func:`tzn.evaluation.detection_map.score_detections`; with ``ties="numpy"`` detections are
            sorted from the order of the file, as the ActivityNet toolkit does.
        split_only: leave detections in recordings outside the split out; else they are false positives.
        lenient: leave malformed detections out; else they are an error.
        blocked: JSON file with a list of recording ids that are left out of ground truth and detections (videos that are
            no longer online, on ActivityNet).

    Returns:
        JSON-able: ``tiou``, ``mAP`` per threshold, ``average_mAP``, ``ap`` [tIoU][class], ``classes`` (those with
        ground truth in the split; by ``label_id`` where the file has consistent ones, else by name), ``recall``
        [tIoU][k], and ``warnings``: lines that count what was left out and why.

    Raises:
        DataError: unreadable file, no recording in the split, malformed or no usable ground truth, malformed
            detections, thresholds or multiples out of range.
    """
    annotations, predictions = Path(annotations), Path(predictions)
    blocked_ids = frozenset[str]() if blocked is None else _blocked(Path(blocked))
    truth, classes, dirt = _ground_truth(annotations, split, blocked_ids)
    bad = Counter[str]() if lenient else None
    found, unknown = read_predictions(predictions, classes, bad=bad, in_file_order=True)
    dropped = [f"{count} detections left out: {what}" for what, count in (bad or {}).items()]
    if gone := sum(len(found.pop(name)) for name in blocked_ids & found.keys()):
        dropped.append(f"{gone} detections left out: their recordings are blocked")
    if split_only and (outside := sum(len(found.pop(name)) for name in found.keys() - truth.keys())):
        dropped.append(f"{outside} detections left out: their recordings are outside subset {split!r}")
    try:
        score = score_detections(truth, found, classes, tiou, top_k, ties=ties)
    except DataError as error:
        raise DataError(f"{annotations}: subset {split!r}: {error}") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    warnings = [f"{annotations}: {line}" for line in dirt]
    warnings += [f"{predictions}: {line}" for line in dropped + _mismatches(truth, found, unknown, split)]
    return {
        "tiou": list(score.tiou), "mAP": score.mAP.tolist(), "average_mAP": score.average_mAP, "ap": score.ap.tolist(),
        "classes": list(score.classes), "recall": score.recall.tolist(), "warnings": warnings,
    }  # fmt: skip


def parse_tiou(text: str) -> tuple[float, ...]:
    """Thresholds of ``first:last:step`` (``last`` included when a step lands on it), a comma list, or one number.

    Steps are counted in decimals: ``0.3:0.7:0.1`` gives exactly 0.3, 0.4, 0.5, 0.6, 0.7.

    Raises:
        DataError: not numbers, outside (0, 1], a repeated threshold, an empty range, more than 1,000 thresholds.
    """
    expected = "expected first:last:step such as 0.3:0.7:0.1, or a list such as 0.5,0.75"
    try:
        numbers = [Decimal(part.strip()) for part in text.split(":" if ":" in text else ",")]
    except decimal.InvalidOperation:
        raise DataError(f"tiou {text!r}: {expected}") from None
    if any(x.is_nan() or not 0 < x <= 1 for x in numbers):
        raise DataError(f"tiou {text!r}: numbers lie outside (0, 1]; {expected}")
    if ":" in text:
        if len(numbers) != 3:
            raise DataError(f"tiou {text!r}: {len(numbers)} numbers; {expected}")
        first, last, step = numbers
        if last < first or (last - first) / step >= MAX_THRESHOLDS:
            raise DataError(f"tiou {text!r}: expected first <= last and at most {MAX_THRESHOLDS} thresholds")
        numbers = [first + i * step for i in range(int((last - first) / step) + 1)]
    if len(set(numbers)) < len(numbers):
        raise DataError(f"tiou {text!r}: a threshold appears twice")
    return tuple(float(x) for x in numbers)


def _blocked(path: Path) -> frozenset[str]:
    ids = read_json(path)
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise DataError(f"{path}: expected a JSON list of recording ids")
    return frozenset(ids)


def _ground_truth(
    path: Path, split: str, blocked: frozenset[str]
) -> tuple[dict[str, GroundTruth], list[str], list[str]]:
    """Ground truth of a split exactly as annotated, its classes, and what had to be left out."""
    database = read_database(path)
    chosen = {name: entry for name, entry in database.items() if entry["subset"].lower() == split.lower()}
    if not chosen:
        there = ", ".join(f"{subset!r} ({n})" for subset, n in Counter(e["subset"] for e in database.values()).items())
        raise DataError(f"{path}: no recording in subset {split!r}; it has {there}")
    rows = {name: entry.get("annotations") or [] for name, entry in chosen.items() if name not in blocked}
    classes = _class_order(rows, path)
    index = {label: i for i, label in enumerate(classes)}
    truth, counts = {}, Counter[str]()
    for name, items in rows.items():
        segments = np.array([_segment(a, f"{path}: recording {name!r}, segment {i}") for i, a in enumerate(items)])
        labels = np.array([index[a["label"]] for a in items], dtype=np.int64)
        truth[name] = _usable(segments.reshape(-1, 2), labels, counts)
    dirt = [f"{count} {what}" for what, count in counts.items() if count]
    if gone := len(chosen) - len(rows):
        dirt.append(f"{gone} recordings left out: blocked")
    return truth, classes, dirt


def _class_order(rows: dict[str, list[dict[str, Any]]], path: Path) -> list[str]:
    """Names by ``label_id`` where names and ids correspond one to one, else alphabetically."""
    pairs: dict[tuple[str, Any], None] = {}
    for name, items in rows.items():
        for i, annotation in enumerate(items):
            label = annotation.get("label")
            if not isinstance(label, str):
                raise DataError(f"{path}: recording {name!r}, segment {i}: label is {label!r}, expected a class name")
            number = annotation.get("label_id")
            pairs[label, number if isinstance(number, int) else None] = None
    names, numbers = {label for label, _ in pairs}, {number for _, number in pairs}
    if None not in numbers and len(names) == len(numbers) == len(pairs):
        return [label for label, _ in sorted(pairs, key=lambda pair: pair[1])]
    return sorted(names)


def _segment(annotation: dict[str, Any], where: str) -> list[float]:
    segment = annotation.get("segment")
    if not (isinstance(segment, list) and len(segment) == 2 and all(type(x) in (int, float) for x in segment)):
        raise DataError(f"{where}: {segment!r} is not a [start, end] pair of numbers")
    return [float(x) for x in segment]


def _usable(segments: np.ndarray, labels: np.ndarray, counts: Counter[str]) -> GroundTruth:
    """Segments with finite ends; counts what scoring leaves out."""
    finite = np.isfinite(segments).all(1)
    counts["segments with an end that is not finite left out"] += int((~finite).sum())
    segments, labels = segments[finite], labels[finite]
    length = segments[:, 1] - segments[:, 0]
    counts["segments that end before they start left out"] += int((length < 0).sum())
    counts["segments shorter than 1 ms left out"] += int(((length >= 0) & (length < MIN_LENGTH)).sum())
    counts["repeated segments left out"] += int((length >= MIN_LENGTH).sum() - distinct(segments, labels).sum())
    return GroundTruth(segments, labels)


def _mismatches(truth: dict[str, GroundTruth], found: dict[str, Detections], unknown: int, split: str) -> list[str]:
    lines = []
    if unknown:
        lines.append(f"{unknown} detections left out: their class has no ground truth in subset {split!r}")
    elsewhere = sum(len(d.scores) for name, d in found.items() if name not in truth)
    if elsewhere:
        lines.append(f"{elsewhere} detections in recordings outside subset {split!r} count as false positives")
    missing = sum(1 for name, t in truth.items() if len(t.labels) and name not in found)
    if missing:
        lines.append(f"no detections for {missing} of {len(truth)} recordings in subset {split!r}: all missed")
    return lines

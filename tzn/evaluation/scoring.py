"""Scoring a predictions file against an annotation file, as they are (``tzn score``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import _database, _read_json
from tzn.errors import DataError
from tzn.evaluation.detection_map import GroundTruth, score_detections, without_duplicates
from tzn.inference.detections import read_predictions


def score_files(
    predictions: str | Path, annotations: str | Path, *, split: str, tiou: Sequence[float], top_k: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """Score ActivityNet-style files (plain or gzip).

    Returns:
        ``tiou``, ``mAP`` per threshold, ``average_mAP``, ``ap`` [tIoU][class], ``classes``, ``recall`` [tIoU][k],
        ``warnings``: what was dropped, how often and why.

    Raises:
        DataError: unreadable files, no recording in the split, no usable ground truth, bad ``top_k``.
    """
    if any(k < 1 for k in top_k):
        raise DataError(f"top_k = {list(top_k)}: expected positive integers")
    truth, classes, warnings = _ground_truth(Path(annotations), split)
    found, unknown = read_predictions(predictions, classes)
    if unknown:
        warnings.append(f"{predictions}: {unknown} detections of classes without ground truth in {split!r} left out")
    elsewhere = sum(len(d.scores) for name, d in found.items() if name not in truth)
    if elsewhere:
        warnings.append(f"{predictions}: {elsewhere} detections in recordings outside {split!r} count as false positives")
    score = score_detections(truth, found, classes, tiou, top_k)
    return {
        "tiou": list(score.tiou), "mAP": score.mAP.tolist(), "average_mAP": score.average_mAP, "ap": score.ap.tolist(),
        "classes": list(score.classes), "recall": score.recall.tolist(), "warnings": warnings,
    }  # fmt: skip


def parse_tiou(text: str) -> tuple[float, ...]:
    """``first:last:step`` (last included) or a comma list to thresholds.

    Raises:
        DataError: not numbers, outside (0, 1], empty or descending.
    """
    try:
        if ":" in text:
            first, last, step = (float(x) for x in text.split(":"))
            count = math.floor((last - first) / step + 1e-6) + 1
            values = [round(first + i * step, 10) for i in range(count)]
        else:
            values = [float(x) for x in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise DataError(f"--tiou {text!r}: expected first:last:step such as 0.3:0.7:0.1, or a list such as 0.5,0.75") from None
    if not values or not all(0 < v <= 1 for v in values):
        raise DataError(f"--tiou {text!r}: expected thresholds in (0, 1]")
    return tuple(values)


def _ground_truth(path: Path, split: str) -> tuple[dict[str, GroundTruth], list[str], list[str]]:
    """Ground truth of a split exactly as annotated (nothing clipped), its classes, and warnings about dirt."""
    database = _database(_read_json(path), path)
    chosen = {n: e for n, e in database.items() if str(e.get("subset", "")).lower() == split.lower()}
    if not chosen:
        there = sorted({str(e.get("subset")) for e in database.values()})
        raise DataError(f"{path}: no recordings in subset {split!r}; it has {', '.join(there)}")
    try:
        rows = {n: [(a["segment"], a["label"]) for a in e.get("annotations", [])] for n, e in chosen.items()}
        labels = sorted({label for annotations in rows.values() for _, label in annotations})
        index = {label: i for i, label in enumerate(labels)}
        truth = {
            name: GroundTruth(
                np.array([s for s, _ in annotations], dtype=np.float64).reshape(-1, 2),
                np.array([index[label] for _, label in annotations], dtype=np.int64),
            )
            for name, annotations in rows.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an annotation is not {{segment: [start, end], label}} ({error!r})") from None
    return truth, labels, [f"{path}: {text}" for text in _dirt(truth)]


def _dirt(truth: dict[str, GroundTruth]) -> list[str]:
    counts: Counter[str] = Counter()
    for annotations in truth.values():
        length = annotations.segments[:, 1] - annotations.segments[:, 0]
        counts["segments that end before their start left out"] += int((length < 0).sum())
        counts["segments shorter than 1 ms left out"] += int(((length >= 0) & (length < 1e-3)).sum())
        kept = len(without_duplicates(annotations).labels)
        counts["exact duplicates left out"] += int((length >= 1e-3).sum()) - kept
    return [f"{count} {what}" for what, count in counts.items() if count]

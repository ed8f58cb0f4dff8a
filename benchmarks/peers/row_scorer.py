"""A row-by-row scorer in the style of the ActivityNet toolkit, written anew to compare with.

One Python loop over detections per class, one small NumPy computation per detection, one Python loop over thresholds and
candidates inside. Semantics as :func:`tzn.evaluation.detection_map.score_detections` with ``ties="first"``. Rows are
plain dicts; :mod:`benchmarks.peers.frame_scorer` keeps them in pandas frames as the toolkit does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import read_json

Row = dict[str, Any]


def score_rows(truth: list[Row], found: list[Row], tiou: Sequence[float], top_k: Sequence[int]) -> Row:
    """mAP ``[tiou]`` and recall ``[tiou][k]``."""
    classes = sorted({row["label"] for row in truth})
    aps, recalls = [], []
    for label in classes:
        truth_of_class = [row for row in truth if row["label"] == label]
        found_of_class = [row for row in found if row["label"] == label]
        aps.append(class_average_precision(truth_of_class, found_of_class, tiou))
        recalls.append(class_recall(truth_of_class, found_of_class, tiou, top_k))
    return {"mAP": np.mean(aps, axis=0).tolist(), "recall": np.mean(recalls, axis=0).tolist()}


def truth_rows(path: Path, split: str) -> list[Row]:
    rows: list[Row] = []
    for video, entry in read_json(path)["database"].items():
        if entry["subset"].lower() != split.lower():
            continue
        kept: list[Row] = []
        for annotation in entry["annotations"]:
            row = _row(video, annotation)
            if row["t-end"] - row["t-start"] >= 1e-3 and not any(_same(row, other) for other in kept):
                kept.append(row)
        rows += kept
    return rows


def prediction_rows(path: Path) -> list[Row]:
    results = read_json(path)["results"]
    return [{**_row(video, d), "score": d["score"]} for video, detections in results.items() for d in detections]


def class_average_precision(truth: list[Row], found: list[Row], tiou: Sequence[float]) -> np.ndarray:
    """AP ``[tiou]`` of one class."""
    true_positive = np.zeros((len(tiou), len(found)))
    taken = np.zeros((len(tiou), len(truth)), dtype=bool)
    by_video = _by_video(truth)
    for i, row in enumerate(sorted(found, key=lambda row: -row["score"])):
        if row["video-id"] not in by_video:
            continue
        candidates = by_video[row["video-id"]]
        iou = iou_of(row["t-start"], row["t-end"], _ends([truth[j] for j in candidates]))
        by_falling_iou = np.argsort(iou, kind="stable")[::-1]
        for t, threshold in enumerate(tiou):
            for j in by_falling_iou:
                if iou[j] < threshold:
                    break
                if taken[t, candidates[j]]:
                    continue
                taken[t, candidates[j]] = True
                true_positive[t, i] = 1
                break
    return np.array([average_precision(hits, len(truth)) for hits in true_positive])


def class_recall(truth: list[Row], found: list[Row], tiou: Sequence[float], top_k: Sequence[int]) -> np.ndarray:
    """Recall ``[tiou, k]`` of one class."""
    ranked = sorted(found, key=lambda row: -row["score"])
    rows_of = _by_video(ranked)
    hits = np.zeros((len(tiou), len(top_k)))
    for video, candidates in _by_video(truth).items():
        for column, k in enumerate(top_k):
            best = _ends([ranked[i] for i in rows_of.get(video, [])[: k * len(candidates)]])
            for j in candidates:
                reached = iou_of(truth[j]["t-start"], truth[j]["t-end"], best).max(initial=0.0)
                hits[:, column] += [reached >= threshold for threshold in tiou]
    return hits / len(truth)


def _row(video: str, item: Row) -> Row:
    return {"video-id": video, "t-start": item["segment"][0], "t-end": item["segment"][1], "label": item["label"]}


def _same(a: Row, b: Row) -> bool:
    near = abs(a["t-start"] - b["t-start"]) <= 1e-3 and abs(a["t-end"] - b["t-end"]) <= 1e-3
    return near and a["label"] == b["label"]


def _by_video(rows: list[Row]) -> dict[str, list[int]]:
    places = defaultdict(list)
    for i, row in enumerate(rows):
        places[row["video-id"]].append(i)
    return dict(places)


def _ends(rows: list[Row]) -> np.ndarray:
    return np.array([(row["t-start"], row["t-end"]) for row in rows], dtype=float).reshape(-1, 2)


def iou_of(start: float, end: float, others: np.ndarray) -> np.ndarray:
    """IoU ``[N]`` of one segment with ``others`` ``[N, 2]``."""
    overlap = np.maximum(0.0, np.minimum(end, others[:, 1]) - np.maximum(start, others[:, 0]))
    return overlap / ((end - start) + (others[:, 1] - others[:, 0]) - overlap)


def average_precision(hits: np.ndarray, positives: int) -> float:
    """All-point interpolated average precision of detections by falling score."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * hits).sum() / positives)

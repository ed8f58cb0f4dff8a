"""The row-by-row scorer with its rows in pandas frames, as the ActivityNet toolkit keeps them; written anew.

Same loops and same numbers as :mod:`.row_scorer`; what differs is that every access to a row goes through pandas:
a group lookup and a frame slice per detection, a filtered and sorted frame per recording for recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers.row_scorer import average_precision, iou_of

ENDS = ["t-start", "t-end"]


def score_frames(
    truth: pd.DataFrame, found: pd.DataFrame, tiou: Sequence[float], top_k: Sequence[int]
) -> dict[str, Any]:
    """mAP ``[tiou]`` and recall ``[tiou][k]``; a row of a frame is a row of :mod:`benchmarks.peers.row_scorer`."""
    aps, recalls = [], []
    for label in sorted(truth["label"].unique()):
        truth_of_class = truth[truth["label"] == label].reset_index(drop=True)
        found_of_class = found[found["label"] == label].reset_index(drop=True)
        aps.append(class_average_precision(truth_of_class, found_of_class, tiou))
        recalls.append(class_recall(truth_of_class, found_of_class, tiou, top_k))
    return {"mAP": np.mean(aps, axis=0).tolist(), "recall": np.mean(recalls, axis=0).tolist()}


def class_average_precision(truth: pd.DataFrame, found: pd.DataFrame, tiou: Sequence[float]) -> np.ndarray:
    """AP ``[tiou]`` of one class."""
    true_positive = np.zeros((len(tiou), len(found)))
    taken = np.zeros((len(tiou), len(truth)), dtype=bool)
    of_video = truth.groupby("video-id")
    ranked = found.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    for i, row in ranked.iterrows():
        try:
            candidates = of_video.get_group(row["video-id"]).reset_index()
        except KeyError:
            continue
        iou = iou_of(row["t-start"], row["t-end"], candidates[ENDS].to_numpy())
        by_falling_iou = np.argsort(iou, kind="stable")[::-1]
        for t, threshold in enumerate(tiou):
            for j in by_falling_iou:
                if iou[j] < threshold:
                    break
                place = candidates.loc[j]["index"]
                if not taken[t, place]:
                    taken[t, place] = True
                    true_positive[t, i] = 1
                    break
    return np.array([average_precision(hits, len(truth)) for hits in true_positive])


def class_recall(truth: pd.DataFrame, found: pd.DataFrame, tiou: Sequence[float], top_k: Sequence[int]) -> np.ndarray:
    """Recall ``[tiou, k]`` of one class."""
    hits = np.zeros((len(tiou), len(top_k)))
    for video, candidates in truth.groupby("video-id"):
        ranked = found[found["video-id"] == video].sort_values("score", ascending=False, kind="stable")
        for column, k in enumerate(top_k):
            best = ranked.head(k * len(candidates))[ENDS].to_numpy()
            for _, row in candidates.iterrows():
                reached = iou_of(row["t-start"], row["t-end"], best).max(initial=0.0)
                hits[:, column] += reached >= np.array(tiou)
    return hits / len(truth)

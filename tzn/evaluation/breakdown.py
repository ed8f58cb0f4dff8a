"""mAP of parts of the ground truth: length buckets and named groups of classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tzn.detections import Detections
from tzn.evaluation.detection_map import Score, average_precision, matched
from tzn.evaluation.flat import GroundTruth, flatten


class Bucket(NamedTuple):
    """Scores of the ground truth in one range of lengths."""

    segments: int  # ground-truth segments in the bucket
    mAP: np.ndarray  # [tiou], mean over the classes with ground truth in the bucket


def group_mAP(score: Score, names: Sequence[str]) -> np.ndarray | None:
    """mAP ``[tiou]`` over the named classes that have ground truth; None when none has."""
    columns = [i for i, name in enumerate(score.classes) if name in names]
    return score.ap[:, columns].mean(1) if columns else None


def bucket_mAP(
    ground_truth: Mapping[str, GroundTruth],
    detections: Mapping[str, Detections],
    num_classes: int,
    tiou: Sequence[float],
    edges: Sequence[float],
) -> dict[str, Bucket]:
    """mAP per bucket of ground-truth length, with COCO's rule for object areas.

    Matching runs once on all ground truth. For a bucket, only its own segments are positives; a detection matched to a
    segment of another bucket is left out (neither true nor false positive), and so is an unmatched detection whose own
    length lies outside the bucket.

    Args:
        ground_truth, detections: by recording id, as for :func:`tzn.evaluation.detection_map.score_detections`.
        edges: ascending upper edges in seconds, each belonging to the bucket below it; the last bucket is open.

    Returns:
        by name ("<= 2 s", "2 - 4 s", "> 4 s"); buckets without ground truth are absent, and all are without edges.

    Raises:
        DataError: see :func:`tzn.evaluation.flat.flatten`.
        ValueError: edges not ascending.
    """
    if any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges = {list(edges)}: expected ascending lengths in seconds")
    if not edges:
        return {}
    flat = flatten(ground_truth, detections, num_classes)
    taken = matched(flat, tiou)[1]
    of_truth = np.searchsorted(edges, flat.truth_segments[:, 1] - flat.truth_segments[:, 0])
    of_detection = np.searchsorted(edges, flat.segments[:, 1] - flat.segments[:, 0])
    # The bucket in which a detection counts: that of the segment it takes, else its own.
    counts_in = np.where(taken >= 0, of_truth[taken] if len(of_truth) else of_detection, of_detection)
    buckets = {}
    for bucket in range(len(edges) + 1):
        positives = np.bincount(flat.truth_labels[of_truth == bucket], minlength=num_classes)
        if positives.any():
            inside = counts_in == bucket
            ap = [average_precision(flat.labels[i], t[i] >= 0, positives) for i, t in zip(inside, taken, strict=True)]
            buckets[_name(edges, bucket)] = Bucket(int(positives.sum()), np.stack(ap)[:, positives > 0].mean(1))
    return buckets


def _name(edges: Sequence[float], bucket: int) -> str:
    if bucket == 0:
        return f"<= {edges[0]:g} s"
    return f"> {edges[-1]:g} s" if bucket == len(edges) else f"{edges[bucket - 1]:g} - {edges[bucket]:g} s"

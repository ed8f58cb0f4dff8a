"""mAP of parts of the ground truth: length buckets and named groups of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tzn.evaluation.detection_map import Flat, GroundTruth, Score, average_precision, flatten
from tzn.evaluation.matching import match, overlapping_pairs
from tzn.inference.detections import Detections


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
) -> dict[str, tuple[int, np.ndarray]]:
    """mAP ``[tiou]`` and number of segments for each bucket of ground-truth length in seconds.

    Matching runs on all ground truth. For a bucket, detections matched to segments of other buckets are left out, and so
    are unmatched detections whose own length lies outside the bucket (COCO's rule for object areas). The mean is over the
    classes with ground truth in the bucket; empty buckets are absent.

    Args:
        edges: ascending upper edges; the last bucket is open.
    """
    flat = flatten(ground_truth, detections, num_classes)
    pairs = overlapping_pairs(flat.segments, flat.group, flat.truth_segments, flat.truth_group, min(tiou))
    taken = [match(pairs, flat.rank, len(flat.truth_segments), t) for t in tiou]
    bucket_of_truth = np.searchsorted(edges, flat.truth_segments[:, 1] - flat.truth_segments[:, 0], side="left")
    bucket_of_found = np.searchsorted(edges, flat.segments[:, 1] - flat.segments[:, 0], side="left")
    results = {}
    for bucket in range(len(edges) + 1):
        inside = bucket_of_truth == bucket
        if inside.any():
            values = [_bucket_ap(flat, t, bucket, inside, bucket_of_truth, bucket_of_found) for t in taken]
            results[_bucket_name(edges, bucket)] = (int(inside.sum()), np.array(values))
    return results


def _bucket_ap(
    flat: Flat, taken: np.ndarray, bucket: int, inside: np.ndarray, bucket_of_truth: np.ndarray, bucket_of_found: np.ndarray
) -> float:
    matched = taken >= 0
    of_match = bucket_of_truth[np.maximum(taken, 0)] if len(bucket_of_truth) else bucket_of_found
    counted = np.where(matched, of_match == bucket, bucket_of_found == bucket)
    part = flat._replace(truth_labels=flat.truth_labels[inside])
    ap = average_precision(part, matched, counted)
    return float(ap[np.unique(part.truth_labels)].mean())


def _bucket_name(edges: Sequence[float], bucket: int) -> str:
    if bucket == 0:
        return f"<= {edges[0]:g} s"
    return f"> {edges[-1]:g} s" if bucket == len(edges) else f"{edges[bucket - 1]:g} - {edges[bucket]:g} s"

"""What training finds out from its data and stores with the model.

Neither in the configuration, which knows no data, nor in :mod:`tzn.training.fit`, which runs Lightning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tzn.config import LEAST_SEGMENTS, ExperimentConfig
from tzn.data.annotations import Recording
from tzn.data.dataset import RecordingDataset
from tzn.detections import Detections
from tzn.evaluation.detection_map import matched
from tzn.evaluation.flat import GroundTruth, flatten
from tzn.inference.localize import LIMIT_STEPS

# On eye movements (5,344 segments of 5 classes, as dense as data here get) mAP@0.3 is 37.8 when as many detections are kept as
# there are segments, 50.3 with four times as many, 51.9 with eight and 52.0 with all. The densest test stretch holds up to
# twice the segments of the densest training stretch (MultiTHUMOS 1,235 and 622, THUMOS14 218 and 128): eight then leave four.
SEGMENTS_MARGIN = 8
LEAST_STEPS = 1024
THRESHOLD_TIOU = 0.5


def resolve_config(config: ExperimentConfig, train: RecordingDataset) -> ExperimentConfig:
    """The configuration with what the training recordings decide: ``inference.max_segments`` and ``data.usual_fps``."""
    data = config.data
    rates = {r.fps for r in train.recordings}
    # Not data.fps: that would hold for recordings of other rates too.
    if data.fps is None and data.usual_fps is None and len(rates) == 1:
        data = data.replace(usual_fps=next(iter(rates)))
    most = config.inference.max_segments
    if most is None:
        most = max(LEAST_SEGMENTS, math.ceil(SEGMENTS_MARGIN * densest_span(train)))
    return dataclasses.replace(config, data=data, inference=config.inference.replace(max_segments=most))


def densest_span(dataset: RecordingDataset, span: int = LIMIT_STEPS) -> float:
    """Most annotated segments that a stretch of ``span`` grid steps of a recording holds (their centres).

    A recording that is shorter counts as if it went on alike: the electrocardiograms of LUDB have up to 43 waves in ten
    seconds, and an hour of the same heart has as many in every ten. Below LEAST_STEPS steps that says too little.
    """
    most = 0.0
    for i, recording in enumerate(dataset.recordings):
        count = len(recording.segments)
        if dataset.config.fixed_length is not None or not count:  # at a fixed length nothing goes on
            most = max(most, count)
            continue
        rate = dataset.frame_rate(i) / (dataset.config.feat_stride * dataset.config.pool)
        centre = np.sort(recording.segments.mean(1)) * rate
        inside = np.searchsorted(centre, centre + span, "right") - np.arange(count)
        steps = max((recording.duration or float(recording.segments.max())) * rate, LEAST_STEPS)
        most = max(most, float(inside.max()) * max(span / steps, 1.0))
    return most


def fingerprint(classes: Sequence[str], recordings: Sequence[Recording]) -> dict[str, Any]:
    """What tells one set of annotated recordings from another; plain data for a checkpoint."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for r in sorted(recordings, key=lambda r: r.id):
        digest.update(f"\0{r.id}\0{r.fps}\0".encode() + r.segments.tobytes() + r.labels.tobytes())
    return {
        "recordings": len(recordings),
        "segments": sum(len(r.labels) for r in recordings),
        "digest": digest.hexdigest()[:12],
    }


def best_f1_threshold(
    recordings: Sequence[Recording], found: Mapping[str, Detections], num_classes: int
) -> float | None:
    """Score from which on detections have the best F1 at tIoU 0.5, all classes together; None: none is right."""
    flat = flatten({r.id: GroundTruth(r.segments, r.labels) for r in recordings}, found, num_classes)
    if not len(flat.truth_labels) or not len(flat.scores):
        return None
    hit = matched(flat, [THRESHOLD_TIOU])[1][0] >= 0
    order = np.argsort(-flat.scores, kind="stable")
    scores, right = flat.scores[order], np.cumsum(hit[order])
    f1 = 2 * right / (np.arange(1, len(right) + 1) + len(flat.truth_labels))
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # a threshold takes all detections of one score, or none
    best = int(f1.argmax())
    return float(scores[best]) if f1[best] > 0 else None

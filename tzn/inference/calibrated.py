"""Detections of a calibrated model with what its calibration says of them, where it speaks of these settings."""

from __future__ import annotations

import dataclasses

from tzn.calibration import Calibration
from tzn.config import InferenceConfig
from tzn.detections import Detections
from tzn.models.checkpoint import LoadedCheckpoint


def calibration_of(checkpoint: LoadedCheckpoint, settings: InferenceConfig) -> Calibration | None:
    """The checkpoint's calibration, or None where there is none or it was measured with other settings."""
    known = checkpoint.calibration
    return known if known is not None and known.fits(dataclasses.asdict(settings)) else None


def calibrated(found: Detections, calibration: Calibration | None) -> Detections:
    """Detections with probabilities and intervals; as they are where ``calibration`` is None."""
    if calibration is None:
        return found
    return dataclasses.replace(
        found, probability=calibration.probability(found.scores), intervals=calibration.intervals
    )

"""Running a trained localizer. Empty on purpose: reading and writing detections needs no torch."""

"""Everything that is reported about a set of detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tzn.config import EvaluationConfig
from tzn.data.annotations import Recording
from tzn.evaluation.boundary_error import boundary_errors, summarize_errors
from tzn.evaluation.breakdown import bucket_mAP, group_mAP
from tzn.evaluation.detection_map import GroundTruth, Score, score_detections
from tzn.inference.detections import Detections


@dataclass(frozen=True)
class EvaluationReport:
    """Scores with their breakdowns; ``to_dict`` is JSON-able, ``table`` is Markdown."""

    score: Score
    short: np.ndarray | None  # [tiou] mAP over EvaluationConfig.short_classes
    buckets: dict[str, tuple[int, np.ndarray]]  # name -> (segments, mAP [tiou])
    errors: dict[str, Any]  # see summarize_errors

    def to_dict(self) -> dict[str, Any]:
        s = self.score
        keys = [f"{t:g}" for t in s.tiou]
        result: dict[str, Any] = {
            "tiou": list(s.tiou), "mAP": s.mAP.tolist(), "average_mAP": s.average_mAP, "ap": s.ap.tolist(),
            "classes": list(s.classes), "top_k": list(s.top_k), "recall": s.recall.tolist(),
            "length_buckets": {n: {"segments": c, "mAP": v.tolist()} for n, (c, v) in self.buckets.items()},
            "boundary_error": self.errors,
        }  # fmt: skip
        if self.short is not None:
            result["short_mAP"] = dict(zip(keys, self.short.tolist(), strict=True))
        return result

    def table(self) -> str:
        """Markdown: mAP and recall per tIoU, per class, per length, and boundary errors."""
        s = self.score
        header = ["", *(f"{t:g}" for t in s.tiou), "average"]
        rows = [_row("mAP @ tIoU", s.mAP)]
        if self.short is not None:
            rows.append(_row("mAP, short classes", self.short))
        rows += [_row(f"mAP, length {name} ({count})", values) for name, (count, values) in self.buckets.items()]
        rows += [_row(f"Recall@{k}x", s.recall[:, i]) for i, k in enumerate(s.top_k)]
        rows += [_row(f"AP {name}", s.ap[:, i]) for i, name in enumerate(s.classes)]
        return _markdown(header, rows) + "\n\n" + self._error_table()

    def _error_table(self) -> str:
        rows = [
            [f"{name}, {side}", *(f"{values[key]:+.3f}" if key == "bias" else f"{values[key]:.3f}" for key in ERROR_KEYS)]
            for name, sides in [("all", self.errors["overall"]), *self.errors["per_class"].items()]
            for side, values in sides.items()
        ]
        title = f"boundary error, s ({self.errors['matched']} matched, {self.errors['missed']} missed)"
        return _markdown([title, *ERROR_KEYS], rows)


ERROR_KEYS = ["bias", "median", "p90"]


def evaluate(
    recordings: Sequence[Recording], detections: Mapping[str, Detections], classes: Sequence[str], config: EvaluationConfig
) -> EvaluationReport:
    """Score detections of annotated recordings.

    Args:
        recordings: ground truth; detections: by recording id; classes: names in label order.

    Raises:
        DataError: no ground truth at all.
    """
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in recordings}
    score = score_detections(truth, detections, classes, config.tiou, config.top_k)
    errors = boundary_errors(truth, detections, len(classes))
    return EvaluationReport(
        score,
        group_mAP(score, config.short_classes),
        bucket_mAP(truth, detections, len(classes), config.tiou, config.length_buckets),
        summarize_errors(errors, list(classes)),
    )


def _row(name: str, values: np.ndarray) -> list[str]:
    return [name, *(f"{100 * v:.1f}" for v in values), f"{100 * float(np.mean(values)):.1f}"]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in lines)

"""Everything that is reported about a set of detections."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tzn.config import EvaluationConfig
from tzn.data.annotations import Recording
from tzn.detections import Detections
from tzn.errors import ConfigError
from tzn.evaluation.boundary_error import SIDES, boundary_errors, summarize_errors
from tzn.evaluation.breakdown import Bucket, bucket_mAP, group_mAP
from tzn.evaluation.detection_map import Score, score_detections
from tzn.evaluation.error_costs import ErrorCost, costs_table, error_costs
from tzn.evaluation.flat import GroundTruth

ERROR_KEYS = ("bias", "median", "p90")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """Scores with their breakdowns; fractions in [0, 1] (the table prints per cent), errors in seconds.

    Attributes:
        score: mAP, AP per class and recall.
        short: ``[tiou]`` mAP over ``EvaluationConfig.short_classes``; None when none of them has ground truth.
        buckets: mAP by length bucket, see :func:`tzn.evaluation.breakdown.bucket_mAP`.
        errors: boundary errors, see :func:`tzn.evaluation.boundary_error.summarize_errors`.
        costs: what keeps mAP down, the dearest first (:func:`tzn.evaluation.error_costs.error_costs`); empty: not asked for.
    """

    score: Score
    short: np.ndarray | None
    buckets: dict[str, Bucket]
    errors: dict[str, Any]
    costs: tuple[ErrorCost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``ap`` is ``[tiou][class]``, ``recall`` is ``[tiou][k]``, ``short_mAP`` is by tIoU."""
        s = self.score
        result: dict[str, Any] = {
            "tiou": list(s.tiou), "mAP": s.mAP.tolist(), "average_mAP": s.average_mAP, "ap": s.ap.tolist(),
            "classes": list(s.classes), "segments": s.counts.tolist(),
            "top_k": list(s.top_k), "recall": s.recall.tolist(),
            "length_buckets": {n: {"segments": b.segments, "mAP": b.mAP.tolist()} for n, b in self.buckets.items()},
            "boundary_error": self.errors,
        }  # fmt: skip
        if self.short is not None:
            result["short_mAP"] = {f"{t:g}": float(v) for t, v in zip(s.tiou, self.short, strict=True)}
        if self.costs:
            result["error_costs"] = [cost._asdict() for cost in self.costs]
        return result

    def table(self) -> str:
        """Markdown tables: scores in per cent per tIoU, boundary errors in seconds, and (where known) costs of errors."""
        s = self.score
        rows = [_row(f"mAP ({s.counts.sum()} segments)", s.mAP)]
        if self.short is not None:
            rows.append(_row("mAP, short classes", self.short))
        rows += [_row(f"mAP, length {name} ({b.segments})", b.mAP) for name, b in self.buckets.items()]
        rows += [_row(f"Recall@{k}x", s.recall[:, i]) for i, k in enumerate(s.top_k)]
        rows += [_row(f"AP {name} ({s.counts[i]})", s.ap[:, i]) for i, name in enumerate(s.classes)]
        return (
            _markdown(["%", *(f"@{t:g}" for t in s.tiou), "average"], rows)
            + "\n\n"
            + self._error_table()
            + self._costs_text()
        )

    def _costs_text(self) -> str:
        return "\n\n" + costs_table(self.costs) if self.costs else ""

    def _error_table(self) -> str:
        header = ["boundary error, s", "matched", *(f"{side} {key}" for side in SIDES for key in ERROR_KEYS)]
        rows = []
        for name, part in [("all", self.errors["overall"]), *self.errors["per_class"].items()]:
            cells = [_seconds(part[side][key], key) if side in part else "-" for side in SIDES for key in ERROR_KEYS]
            rows.append([name, f"{part['matched']} of {part['matched'] + part['missed']}", *cells])
        table = _markdown(header, rows)
        if calibration := self.errors.get("calibration"):
            within = f"{100 * calibration['within_1_std']:.0f} % and {100 * calibration['within_2_std']:.0f} %"
            table += f"\n\nerrors within 1 and 2 reported standard errors: {within} (Gaussian: 68 % and 95 %)"
        return table


def evaluate(
    recordings: Sequence[Recording],
    detections: Mapping[str, Detections],
    classes: Sequence[str],
    config: EvaluationConfig,
    *,
    costs: bool = False,
) -> EvaluationReport:
    """Score detections of annotated recordings.

    Args:
        recordings: ground truth; recordings that have no entry in ``detections`` count as missed altogether.
        detections: by recording id.
        classes: names in label order.
        config: thresholds, recall multiples, length buckets and short classes.
        costs: also find out what keeps mAP down; short is what belongs to the first length bucket.

    Raises:
        DataError: no ground truth at all, or arrays that do not fit together.
        ConfigError: ``config.short_classes`` has a name that is not a class, or ``length_buckets`` do not ascend.
    """
    for name in config.short_classes:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(classes)}"
            raise ConfigError(f"evaluation.short_classes: {name!r} is not a class; {hint}")
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in recordings}
    score = score_detections(truth, detections, classes, config.tiou, config.top_k)
    try:
        buckets = bucket_mAP(truth, detections, len(classes), config.tiou, config.length_buckets)
    except ValueError as error:
        raise ConfigError(f"evaluation.length_buckets: {error}") from None
    errors = summarize_errors(boundary_errors(truth, detections, len(classes)), classes)
    short = config.length_buckets[0] if config.length_buckets else None
    dear = error_costs(truth, detections, len(classes), config.tiou, short) if costs else []
    return EvaluationReport(score, group_mAP(score, config.short_classes), buckets, errors, tuple(dear))


def _row(name: str, values: np.ndarray) -> list[str]:
    return [name, *(f"{100 * v:.1f}" for v in values), f"{100 * float(np.mean(values)):.1f}"]


def _seconds(value: float, key: str) -> str:
    return f"{value:+.3f}" if key == "bias" else f"{value:.3f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in lines)

"""The picture of distillation: work of a training step over the training, and mAP against the work of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.distillation.training_work import LEARNS
from benchmarks.lib import pictures
from benchmarks.lib.runs import percent
from tzn.visualization.style import PALETTE, new_figure

SHOWN = {"mAP 0.3:0.7": "o", "mAP 0.5:0.95": "^"}
COSTS = {"actionformer": None, "teacher": "TemporalZoomNet", "taught": "not amortised", "alone": "student alone"}
SHORT = {"actionformer": "ActionFormer", "teacher": "TemporalZoomNet", "taught": "student, taught", "alone": "alone"}


def draw(path: Path, content: dict[str, Any]) -> None:
    figure = new_figure(8.6, 3.2)
    left, right = figure.subplots(1, 2)
    draw_course(left, content["course"])
    draw_scores(right, content)
    pictures.save(figure, path)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean; at the ends over what is there."""
    kernel = np.ones(min(width, len(values) - (len(values) % 2 == 0)))  # odd: the mean stays where its values are
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_course(axes: Any, course: dict[str, list[dict[str, float]]]) -> None:
    own, taught, alone = (course[name] for name in ("student_counted", "taught", "alone"))
    lines = {
        "uniform, four blocks": (own, lambda n: n["four blocks"]),
        "TemporalZoomNet": (own, lambda n: n["self"]),
        "uniform, two blocks": (own, lambda n: n["two blocks"]),
        "student and teacher's answers": (taught, lambda n: n["self"] + n["teacher"] / LEARNS),
        "student alone": (alone, lambda n: n["self"]),
    }
    for colour, (name, (notes, work)) in zip(PALETTE, lines.items(), strict=False):
        share = np.array([work(n) / n["actionformer"] for n in notes])
        axes.plot([n["step"] for n in notes], smooth(share), color=colour, linewidth=1.3, label=name)
    axes.axhline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set(xlabel="training step", ylabel="multiply-adds of a step, of ActionFormer's", ylim=(0, 1.1))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def draw_scores(axes: Any, content: dict[str, Any]) -> None:
    for colour, (name, cost) in zip(PALETTE, COSTS.items(), strict=False):
        work = 1.0 if cost is None else content["costs"][cost]
        for metric, marker in SHOWN.items():
            scores = [percent(e, metric) for e in content["results"][name]]
            label = SHORT[name] if marker == "o" else None
            axes.plot([work] * len(scores), scores, marker, color=colour, markersize=5, alpha=0.7, label=label)
    axes.set(xlabel="multiply-adds of training, of ActionFormer's", ylabel="mAP (%)", xlim=(0, 1.1))
    axes.set_title("circles: mAP 0.3:0.7, triangles: 0.5:0.95", fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)

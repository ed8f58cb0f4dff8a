"""The picture of benchmarks.evidence.ludb: mAP by tIoU, and median boundary errors by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import pictures
from tzn.visualization.style import PALETTE, new_figure


def draw(
    path: Path, content: dict[str, Any], models: Mapping[str, str], classes: Sequence[str], tiou: Sequence[float]
) -> None:
    figure = new_figure(10, 3.6)
    scores, errors = figure.subplots(1, 2)
    names = [f"{c} {side}" for c in classes for side in ("start", "end")]
    for i, (model, title) in enumerate(models.items()):
        results = content["results"][model]
        values = 100 * np.array([r["mAP"] for r in results])
        scores.plot(tiou, values.mean(0), "-o", markersize=3, color=PALETTE[i], label=title)
        scores.fill_between(tiou, values.min(0), values.max(0), color=PALETTE[i], alpha=0.2, linewidth=0)
        found = [[e for c in classes for e in medians(r, c)] for r in results]
        errors.bar(np.arange(len(names)) + 0.4 * i - 0.2, np.mean(found, axis=0), 0.38, color=PALETTE[i], label=title)
        for run in found:
            errors.plot(np.arange(len(names)) + 0.4 * i - 0.2, run, "k.", markersize=3)
    scores.set(xlabel="tIoU", ylabel="mAP (%)", title="LUDB test people", ylim=(0, 100))
    errors.set_xticks(range(len(names)), names, fontsize=8)
    errors.set(ylabel="median absolute error (ms)", title="boundaries; dots: seeds")
    for axes in (scores, errors):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    pictures.save(figure, path)


def medians(result: dict[str, Any], name: str) -> list[float]:
    """Median absolute error of start and end in milliseconds."""
    part = result["boundary_error"]["per_class"][name]
    return [1e3 * part[side]["median"] if side in part else float("nan") for side in ("start", "end")]

"""One recording along time: truth, detections with standard errors, distance fields, depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import Recording
from tzn.inference.detections import Detections
from tzn.visualization.style import END_COLOUR, START_COLOUR, colour_of, new_figure, save_figure

WIDTH = 16.0  # inches; 1600 pixels


def plot_timeline(
    path: str | Path,
    recording: Recording,
    classes: Sequence[str],
    detections: Detections | None = None,
    trace: Mapping[str, np.ndarray] | None = None,
    *,
    window: tuple[float, float] | None = None,
    min_score: float = 0.2,
) -> Path:
    """Draw a recording to ``.png`` or ``.svg``.

    Args:
        recording: its annotations; classes: names in label order.
        detections: those with score >= ``min_score`` are drawn, one row per class, darker for higher scores, with
            whiskers of one standard error at both ends.
        trace: arrays of :func:`tzn.inference.traces.trace_arrays`: signed distances to the nearest start and end with a
            band of one Laplace scale, dots on their zero crossings, and the depth tau as a band of colour.
        window: (start, end) in seconds; None: everything.

    Raises:
        DataError: another suffix. TznError: matplotlib missing.
    """
    first, last = window or _extent(recording, detections, trace)
    shown = _shown(detections, min_score, first, last)
    used = sorted({*_inside(recording, first, last).tolist(), *(shown.labels.tolist() if shown else [])})
    heights = [max(0.35 * len(used), 1.0)] + ([2.4, 0.5] if trace else [])
    figure = new_figure(WIDTH, sum(heights) + 1.6)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_segments(axes[0], recording, shown, used, classes, (first, last))
    if trace:
        _draw_distance(axes[1], trace, first, last)
        _draw_depth(figure, axes[2], trace)
    axes[0].set_xlim(first, last)
    axes[-1].set_xlabel("time in seconds")
    figure.suptitle(recording.id, fontsize=13)
    return save_figure(figure, path)


def _extent(recording: Recording, detections: Detections | None, trace: Mapping[str, np.ndarray] | None):  # type: ignore[no-untyped-def]
    ends = [recording.duration or 0.0, float(recording.segments.max(initial=0.0))]
    if detections is not None:
        ends.append(float(detections.segments.max(initial=0.0)))
    if trace is not None:
        ends.append(float(trace["time"][-1]))
    return 0.0, max(max(ends), 1e-3)


def _inside(recording: Recording, first: float, last: float) -> np.ndarray:
    seen = (recording.segments[:, 1] > first) & (recording.segments[:, 0] < last)
    return recording.labels[seen]


def _shown(detections: Detections | None, min_score: float, first: float, last: float) -> Detections | None:
    if detections is None:
        return None
    keep = (detections.scores >= min_score) & (detections.segments[:, 1] > first) & (detections.segments[:, 0] < last)
    std = None if detections.std is None else detections.std[keep]
    return Detections(detections.segments[keep], detections.scores[keep], detections.labels[keep], std)


def _draw_segments(
    axis: Any, recording: Recording, shown: Detections | None, used: list[int], classes: Sequence[str],
    window: tuple[float, float],
) -> None:  # fmt: skip
    row = {label: i for i, label in enumerate(used)}
    for segment, label in zip(recording.segments, recording.labels.tolist(), strict=True):
        if label in row:
            axis.broken_barh([(segment[0], segment[1] - segment[0])], (row[label] - 0.42, 0.38), color=colour_of(label))
    if shown is not None:
        for i in np.argsort(shown.scores):  # strongest on top
            start, end = shown.segments[i]
            label, score = int(shown.labels[i]), float(shown.scores[i])
            axis.broken_barh(
                [(start, end - start)], (row[label] + 0.04, 0.38), facecolor=colour_of(label), alpha=0.15 + 0.6 * score,
                edgecolor="black", linewidth=0.6,
            )  # fmt: skip
            if shown.std is not None and np.isfinite(shown.std[i]).all():
                axis.errorbar([start, end], [row[label] + 0.23] * 2, xerr=shown.std[i], fmt="none", ecolor="black", capsize=2, elinewidth=1)
    axis.set_yticks(range(len(used)), [classes[label] for label in used], fontsize=9)
    axis.set_ylim(len(used) - 0.5, -0.5)
    for edge in range(1, len(used)):
        axis.axhline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
    half = "upper bar: annotated" + (", lower bar: detected (darker: higher score, whiskers: 1 standard error)" if shown else "")
    axis.set_title(half, fontsize=9, loc="left", color="0.3")


def _draw_distance(axis: Any, trace: Mapping[str, np.ndarray], first: float, last: float) -> None:
    time = trace["time"]
    for side, colour in (("start", START_COLOUR), ("end", END_COLOUR)):
        distance, scale = trace[f"{side}_distance"], trace[f"{side}_scale"]
        axis.fill_between(time, distance - scale, distance + scale, color=colour, alpha=0.18, linewidth=0)
        axis.plot(time, distance, color=colour, linewidth=1, label=f"to nearest {side}")
        crossings = trace[f"{side}_crossings"]
        seen = crossings[(crossings >= first) & (crossings <= last)]
        marker = ">" if side == "start" else "<"
        axis.plot(seen, np.zeros(len(seen)), marker, color=colour, markersize=6, markeredgecolor="white")
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_ylabel("signed distance\nin seconds", fontsize=9)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)


def _draw_depth(figure: Any, axis: Any, trace: Mapping[str, np.ndarray]) -> None:
    time, depth = trace["time"], trace["depth"]
    step = time[1] - time[0] if len(time) > 1 else 1.0
    edges = np.append(time, time[-1] + step) - 0.5 * step
    image = axis.pcolormesh(edges, [0, 1], depth[None], cmap="cividis", vmin=0, vmax=1, rasterized=True)
    axis.set_yticks([])
    axis.set_ylabel("depth τ", fontsize=9, rotation=0, ha="right", va="center")
    figure.colorbar(image, ax=axis, ticks=[0, 1], pad=0.01, aspect=4)

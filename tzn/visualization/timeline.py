"""One recording along time: ground truth, detections with standard errors, distance fields, depth."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import Recording
from tzn.detections import Detections
from tzn.errors import DataError
from tzn.visualization.panels import draw_depth, draw_distance, draw_segments
from tzn.visualization.style import new_figure, plain, save_figure

WIDTH = 16.0  # inches; 1600 pixels
AXIS_PIXELS = 1300  # of the time axis, roughly: names and colour bars take the rest
READABLE_PIXELS = 10  # three in four bars should be at least this wide, else time wraps
MAX_HEIGHT = 11.0  # inches of panels
ROW, DISTANCE, DEPTH = 0.3, 1.5, 0.25  # inches
MAX_ROWS = 24  # classes with a row of their own
CLOCK_AFTER = 600  # seconds: later times read better as minutes:seconds
CLOCK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


@dataclass(frozen=True)
class Rows:
    """Which class is drawn in which row; classes without a row of their own share the last one."""

    labels: tuple[int, ...]
    shared: bool

    def __len__(self) -> int:
        return len(self.labels) + self.shared

    def of(self, label: int) -> int:
        return self.labels.index(label) if label in self.labels else len(self.labels)


def plot_timeline(
    path: str | Path,
    recording: Recording,
    classes: Sequence[str],
    detections: Detections | None = None,
    trace: Mapping[str, np.ndarray] | None = None,
    *,
    window: tuple[float, float] | None = None,
    min_score: float | None = None,
) -> Path:
    """Draw a recording to ``.png`` or ``.svg``; see :func:`draw_timeline`.

    Raises:
        DataError: another suffix, or a window that ends before it starts. TznError: matplotlib missing.
    """
    figure = draw_timeline(recording, classes, detections, trace, window=window, min_score=min_score)
    return save_figure(figure, path)


def draw_timeline(
    recording: Recording,
    classes: Sequence[str],
    detections: Detections | None = None,
    trace: Mapping[str, np.ndarray] | None = None,
    *,
    window: tuple[float, float] | None = None,
    min_score: float | None = None,
) -> Any:
    """A matplotlib figure; where segments would be too narrow to see, time wraps into several strips.

    Args:
        recording: its annotations; classes: names in label order.
        detections: those with score >= ``min_score`` that no stronger one of their class mostly covers are drawn below
            the annotations of their class, darker for higher scores, with whiskers of one standard error at both ends.
            Classes that are not annotated here share the last row.
        min_score: None: the detections' own threshold of confidence, or all of them where it is not known; the caption
            says which.
        trace: arrays of :func:`tzn.inference.traces.trace_arrays`: signed distances to the nearest start and end with a
            band of one Laplace scale, marks on their zero crossings, and the depth tau as a band of colour.
        window: (start, end) in seconds; None: everything.

    Raises:
        DataError: a window that ends before it starts. TznError: matplotlib missing.
    """
    if window is not None and not window[1] > window[0]:
        raise DataError(f"window {window}: expected (start, end) in seconds, end after start")
    first, last = window or _extent(recording, detections, trace)
    confident = None if detections is None or min_score is not None else detections.score_threshold
    if min_score is None:
        min_score = -math.inf if confident is None else confident
    shown = None if detections is None else _strongest(detections, min_score, first, last)
    rows = _rows(recording, shown, first, last)
    distances = trace is not None and any(np.isfinite(trace[f"{side}_distance"]).any() for side in ("start", "end"))
    panels = [max(ROW * len(rows), 0.5)] + [DISTANCE] * distances + [DEPTH] * (trace is not None)
    strips, readable = _strips(recording, shown, first, last, sum(panels))
    clock = last > CLOCK_AFTER
    figure = new_figure(WIDTH, len(strips) * (sum(panels) + 0.55) + 0.75)
    axes = figure.subplots(len(strips) * len(panels), 1, height_ratios=panels * len(strips), squeeze=False)[:, 0]
    for i, strip in enumerate(strips):
        mine = list(axes[i * len(panels) : (i + 1) * len(panels)])
        draw_segments(mine[0], recording, shown, rows, classes, strip, AXIS_PIXELS)
        if distances:
            assert trace is not None
            draw_distance(mine[1], trace, recording.segments, strip, legend=i == 0)
        if trace is not None:
            draw_depth(figure, mine[-1], trace, strip)
        for axis in mine:
            axis.set_xlim(*strip)
            axis.tick_params(labelbottom=axis is mine[-1], labelsize=9)
            _time_ticks(axis, strip, clock)
    axes[-1].set_xlabel("time in minutes:seconds" if clock else "time in seconds")
    figure.suptitle(f"{plain(recording.id)}\n", fontsize=13)
    caption = _caption(recording, detections, shown, min_score, confident is not None) + (
        "" if readable else "; choose a window of time to see details"
    )
    figure.text(0.5, 0.995, f"\n\n{caption}", ha="center", va="top", fontsize=9, color="0.3")
    return figure


def _caption(
    recording: Recording, detections: Detections | None, shown: Detections | None, min_score: float, confident: bool
) -> str:
    if detections is None or shown is None:
        return "annotated segments"
    which = "all of them, no threshold"
    if min_score > -math.inf:
        which = f"{'confident: ' if confident else ''}score ≥ {min_score:g}"
    annotated = "annotated segments; " if len(recording.labels) else ""
    if not len(shown):
        return f"{annotated}none of {len(detections)} detections to draw here ({which})"
    bars = "upper bars: annotated; lower bars: " if annotated else ""
    return (
        f"{bars}the {len(shown)} strongest of {len(detections)} detections "
        f"({which}; darker: higher), whiskers: one standard error"
    )


def _extent(
    recording: Recording, detections: Detections | None, trace: Mapping[str, np.ndarray] | None
) -> tuple[float, float]:
    ends = [recording.duration or 0.0, float(recording.segments.max(initial=0.0))]
    if detections is not None:
        ends.append(float(detections.segments.max(initial=0.0)))
    if trace is not None and len(trace["time"]):
        ends.append(float(trace["time"][-1]))
    last = max(max(ends), 1e-3)
    return -0.004 * last, 1.004 * last  # room for whiskers


def _strongest(detections: Detections, min_score: float, first: float, last: float) -> Detections:
    """Detections in the window of at least ``min_score`` that no stronger one of their class mostly covers."""
    keep: list[int] = []
    rivals: dict[int, list[tuple[float, float]]] = {}  # kept segments of a class, by start
    longest: dict[int, float] = {}
    segments, labels = detections.segments.tolist(), detections.labels.tolist()
    for i in np.argsort(-detections.scores, kind="stable").tolist():
        (start, end), label = segments[i], labels[i]
        if detections.scores[i] < min_score or end <= first or start >= last:
            continue
        kept, reach = rivals.setdefault(label, []), longest.get(label, 0.0)
        near = kept[bisect.bisect_left(kept, (start - reach, -math.inf)) : bisect.bisect_left(kept, (end, -math.inf))]
        if not any(min(end, e) - max(start, s) > 0.5 * min(end - start, e - s) for s, e in near):
            keep.append(i)
            bisect.insort(kept, (start, end))
            longest[label] = max(reach, end - start)
    return detections[keep]


def _rows(recording: Recording, shown: Detections | None, first: float, last: float) -> Rows:
    inside = (recording.segments[:, 1] > first) & (recording.segments[:, 0] < last)
    annotated = recording.labels[inside]
    detected = np.zeros(0, np.int64) if shown is None else shown.labels
    labels, counts = np.unique(annotated if len(annotated) else detected, return_counts=True)
    own = sorted(labels[np.argsort(-counts, kind="stable")][:MAX_ROWS].tolist())
    return Rows(tuple(own), bool((~np.isin(np.concatenate([annotated, detected]), own)).any()))


def _strips(
    recording: Recording, shown: Detections | None, first: float, last: float, height: float
) -> tuple[list[tuple[float, float]], bool]:
    """Equal pieces of the window that make most bars wide enough to see; False where that needs too tall a picture."""
    segments = recording.segments if len(recording.segments) or shown is None else shown.segments
    segments = segments[(segments[:, 1] > first) & (segments[:, 0] < last)]
    wanted = count = 1
    if len(segments):
        typical = max(float(np.quantile(segments[:, 1] - segments[:, 0], 0.25)), 1e-9)
        wanted = math.ceil(READABLE_PIXELS / AXIS_PIXELS * (last - first) / typical)
        count = max(1, min(wanted, int(MAX_HEIGHT // height)))
    edges = np.linspace(first, last, count + 1).tolist()
    return list(itertools.pairwise(edges)), wanted <= 2 * count


def _time_ticks(axis: Any, strip: tuple[float, float], clock: bool) -> None:
    if not clock:
        axis.xaxis.set_major_formatter("{x:g}")
        return
    from matplotlib.ticker import MultipleLocator

    step = next(
        (s for s in CLOCK_STEPS if (strip[1] - strip[0]) / s <= 12), 3600 * math.ceil((strip[1] - strip[0]) / 43200)
    )
    axis.xaxis.set_major_locator(MultipleLocator(step))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds // 60:.0f}:{seconds % 60:02.0f}")

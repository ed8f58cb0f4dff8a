"""The panels of a timeline: bars of segments, distance fields, depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tzn.data.annotations import Recording
from tzn.detections import Detections
from tzn.visualization.style import END_COLOUR, START_COLOUR, colour_of, plain

if TYPE_CHECKING:
    from tzn.visualization.timeline import Rows

THIN = 5  # pixels: narrower bars get neither outline nor whiskers, which would hide them
LETTER = 5.5  # pixels of a 7-point letter
MAX_POINTS = 6000  # of a curve; more do not show
MAX_LINES = 150  # annotated boundaries in a strip; more would be a grey curtain


def draw_segments(
    axis: Any,
    recording: Recording,
    shown: Detections | None,
    rows: Rows,
    classes: Sequence[str],
    strip: tuple[float, float],
    pixels: float,
) -> None:
    """A row per class: annotated segments above, detections below, labelled "annotated i" and "detected i"."""
    scale = pixels / (strip[1] - strip[0])
    height = 0.4 if shown is not None else 0.7
    for i, (segment, label) in enumerate(zip(recording.segments, recording.labels.tolist(), strict=True)):
        if segment[1] > strip[0] and segment[0] < strip[1] and len(rows):
            _bar(axis, segment, rows.of(label) - 0.45 if shown is not None else rows.of(label) - 0.35, height,
                 f"annotated {i}", facecolor=colour_of(label), linewidth=0)  # fmt: skip
    if shown is not None:
        _draw_detections(axis, shown, rows, strip, scale)
    names = [plain(classes[label]) for label in rows.labels] + ["other classes"] * rows.shared
    if rows.shared and shown is not None:
        _name_others(axis, shown, rows, classes, strip, scale)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(len(names), 1) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axis.axhline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)


def _draw_detections(axis: Any, shown: Detections, rows: Rows, strip: tuple[float, float], scale: float) -> None:
    whiskers: list[tuple[float, float, float]] = []  # left, right, height
    for i in np.argsort(shown.scores, kind="stable"):  # strongest on top
        start, end = shown.segments[i]
        if end <= strip[0] or start >= strip[1]:
            continue
        label, wide = int(shown.labels[i]), (end - start) * scale >= THIN
        row = rows.of(label)
        strength = 0.2 + 0.65 * min(max(float(shown.scores[i]), 0.0), 1.0)
        _bar(axis, (start, end), row + 0.02, 0.4, f"detected {i}", facecolor=colour_of(label), alpha=strength,
             edgecolor="black", linewidth=0.6 * wide)  # fmt: skip
        for time, error in zip((start, end), (np.nan,) * 2 if shown.std is None else shown.std[i], strict=True):
            if np.isfinite(error) and wide:
                whiskers.append((time - error, time + error, row + 0.22))
    if whiskers:
        left, right, height = np.array(whiskers).T
        axis.hlines(height, left, right, color="black", linewidth=1, label="whiskers")
        axis.vlines(np.concatenate([left, right]), np.tile(height, 2) - 0.09, np.tile(height, 2) + 0.09, color="black",
                    linewidth=1)  # fmt: skip


def _bar(axis: Any, segment: Sequence[float], bottom: float, height: float, name: str, **look: Any) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((segment[0], bottom), segment[1] - segment[0], height, label=name, **look))


def _name_others(
    axis: Any, shown: Detections, rows: Rows, classes: Sequence[str], strip: tuple[float, float], scale: float
) -> None:
    """Names beside the bars of the shared row, where there is room for them."""
    mine = [i for i in np.argsort(shown.segments[:, 0]) if rows.of(int(shown.labels[i])) == len(rows.labels)]
    for i, following in zip(mine, [*mine[1:], None], strict=True):
        room = strip[1] if following is None else min(float(shown.segments[following, 0]), strip[1])
        error = 0.0 if shown.std is None else float(np.nan_to_num(shown.std[i, 1]))
        name, left = classes[int(shown.labels[i])], float(shown.segments[i, 1]) + error + 4 / scale
        if strip[0] < left and (room - left) * scale > LETTER * (len(name) + 1):
            axis.text(left, len(rows.labels) + 0.22, plain(name), fontsize=7, va="center", color="0.3")


def draw_distance(
    axis: Any, trace: Mapping[str, np.ndarray], truth: np.ndarray, strip: tuple[float, float], *, legend: bool
) -> None:
    """Signed distances with a band of one scale, marks on their zero crossings, thin lines at annotated boundaries."""
    inside = _inside(trace["time"], strip)
    time = trace["time"][inside]
    largest = 1e-3
    for i, (side, colour) in enumerate((("start", START_COLOUR), ("end", END_COLOUR))):
        distance, scale = trace[f"{side}_distance"][inside], trace[f"{side}_scale"][inside]
        largest = max(largest, float(np.nanmax(np.abs(distance), initial=0.0)))
        axis.fill_between(time, distance - scale, distance + scale, color=colour, alpha=0.18, linewidth=0)
        axis.plot(time, distance, color=colour, linewidth=1, label=f"distance to the nearest {side} ± scale")
        crossings = trace[f"{side}_crossings"]
        seen = crossings[(crossings >= strip[0]) & (crossings <= strip[1])]
        # A caret's tip touches the zero line, starts from below and ends from above: neither hides the other.
        axis.plot(seen, np.zeros(len(seen)), linestyle="", marker=(6, 7)[i], color=colour, markersize=6,
                  label=f"{side} found")  # fmt: skip
        boundaries = truth[(truth[:, i] > strip[0]) & (truth[:, i] < strip[1]), i]
        if len(boundaries) <= MAX_LINES:
            for boundary in boundaries:
                axis.axvline(boundary, color=colour, linewidth=0.5, linestyle=(0, (1, 2)), zorder=0)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_ylim(-1.2 * largest, 1.2 * largest)
    axis.set_ylabel("seconds", fontsize=9)
    if legend:
        axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, fontsize=8, frameon=False, borderaxespad=0.1)


def draw_depth(figure: Any, axis: Any, trace: Mapping[str, np.ndarray], strip: tuple[float, float]) -> None:
    """Depth tau as a band of colour from 0 (skips every refinement) to 1 (all of them)."""
    inside = _inside(trace["time"], strip)
    time, depth = trace["time"][inside], trace["depth"][inside]
    if len(time) == 0:
        axis.set_yticks([])
        return
    half = 0.5 * (time[-1] - time[0]) / max(len(time) - 1, 1) or 0.5
    image = axis.imshow(
        depth[None], aspect="auto", extent=(time[0] - half, time[-1] + half, 0, 1), cmap="cividis", vmin=0, vmax=1
    )
    axis.set_yticks([0.5], ["depth τ"])
    axis.tick_params(axis="y", length=0)
    figure.colorbar(image, ax=axis, ticks=[0, 1], pad=0.01, aspect=4)


def _inside(time: np.ndarray, strip: tuple[float, float]) -> np.ndarray:
    """Indices of the steps to draw, with one beyond either end so that curves reach the rim."""
    low, high = np.searchsorted(time, strip[0]), np.searchsorted(time, strip[1])
    index = np.arange(max(low - 1, 0), min(high + 1, len(time)))
    return index[:: max(len(index) // MAX_POINTS, 1)]

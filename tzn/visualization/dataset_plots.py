"""Pictures of a whole split: precision and recall, boundary errors, costs of errors, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.visualization.style import END_COLOUR, START_COLOUR, colour_of, new_figure, plain, save_figure

MAX_NAMED = 24  # classes; of more, only the best and the worst get a colour and a name
EXTREMES = 6


def plot_precision_recall(
    path: str | Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = ""
) -> Path:
    """One line per class; the area under it, its AP, stands in the legend.

    Args:
        path: ``.png`` or ``.svg``.
        curves: name -> (recall ``[N]`` rising, interpolated precision ``[N]``); both empty where nothing was detected.
        title: above the picture.

    Raises:
        DataError: another suffix. TznError: matplotlib missing.
    """
    figure = new_figure(11, 6.5)
    axis = figure.subplots()
    area = {
        name: float(np.sum(np.diff(recall, prepend=0.0) * precision)) for name, (recall, precision) in curves.items()
    }
    named = list(curves)
    if len(curves) > MAX_NAMED:
        ranked = sorted(curves, key=area.__getitem__, reverse=True)
        named = ranked[:EXTREMES] + ranked[-EXTREMES:]
    for name, (recall, precision) in curves.items():
        if name not in named:
            _precision_line(axis, recall, precision, color="0.85", linewidth=0.8, zorder=1)
    for i, name in enumerate(named):
        _precision_line(axis, *curves[name], color=colour_of(i), linestyle=("-", "--", ":")[i // 8 % 3], linewidth=1.6,
                        label=f"{plain(name)}  {100 * area[name]:.1f}")  # fmt: skip
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03), title=plain(title))
    axis.grid(color="0.92")
    if named:
        best = "" if len(named) == len(curves) else f"\n{EXTREMES} best and {EXTREMES} worst of {len(curves)}"
        mean = 100 * float(np.mean(list(area.values())))
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False, title_fontsize=9,
            title=f"AP in %, mean {mean:.1f}{best}", alignment="left",
        )  # fmt: skip
    return save_figure(figure, path)


def _precision_line(axis: Any, recall: np.ndarray, precision: np.ndarray, **look: Any) -> None:
    # Interpolated precision at recall r is the best at any recall >= r: constant up to each point.
    axis.step(
        np.append(0.0, recall), np.append(precision[:1] if len(precision) else 0.0, precision), where="pre", **look
    )


def plot_boundary_errors(path: str | Path, errors: np.ndarray) -> Path:
    """Histograms of signed start and end errors; the outermost bars hold the tails beyond the 98th percentile.

    Args:
        path: ``.png`` or ``.svg``.
        errors: ``[M, 2]`` detected minus annotated start and end, seconds.

    Raises:
        DataError: another suffix. TznError: matplotlib missing.
    """
    figure = new_figure(10, 4.5)
    axis = figure.subplots()
    limit = max(float(np.quantile(np.abs(errors), 0.98)), 1e-6) if errors.size else 1.0
    bins = np.linspace(-limit, limit, 41)
    for side, (name, colour) in enumerate((("start", START_COLOUR), ("end", END_COLOUR))):
        values = np.clip(errors[:, side], -limit, limit)
        median = f", median |error| {np.median(np.abs(errors[:, side])):.3g} s" if errors.size else ""
        axis.hist(values, bins, histtype="stepfilled", alpha=0.35, color=colour)
        axis.hist(values, bins, histtype="step", color=colour, linewidth=1.5, label=name + median)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set(xlabel="detected minus annotated, seconds", ylabel="segments")
    axis.set_title(f"boundary errors of {len(errors)} matched segments")
    axis.legend(fontsize=9, frameon=False)
    return save_figure(figure, path)


def plot_lengths(path: str | Path, lengths: Mapping[str, Sequence[float] | np.ndarray]) -> Path:
    """Histograms of segment lengths on a logarithmic axis, each adding up to 1.

    Args:
        path: ``.png`` or ``.svg``.
        lengths: name (a class, or annotated and detected) -> ``[N]`` seconds; those without length are left out.

    Raises:
        DataError: another suffix. TznError: matplotlib missing.
    """
    figure = new_figure(10, 4.5)
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = figure.subplots()
    positive = {name: np.asarray(values, dtype=float) for name, values in lengths.items()}
    positive = {name: values[values > 0] for name, values in positive.items()}
    everything = np.concatenate([*positive.values(), *([] if any(map(len, positive.values())) else [np.ones(1)])])
    bins = np.geomspace(everything.min() * 0.95, everything.max() * 1.05, 31)
    for i, (name, values) in enumerate(positive.items()):
        share = np.full(len(values), 1 / max(len(values), 1))
        axis.hist(
            values, bins, weights=share, histtype="step", linewidth=1.8, color=colour_of(i),
            linestyle=("-", "--", ":")[i // 8 % 3], label=f"{plain(name)} ({len(values)})",
        )  # fmt: skip
    axis.set(xscale="log", xlabel="length in seconds", ylabel="share of segments", title="segment lengths")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)


def plot_error_costs(path: str | Path, costs: Sequence[tuple[str, float, int]], average_mAP: float) -> Path:
    """Bars of the mAP that every kind of error costs.

    Args:
        path: ``.png`` or ``.svg``.
        costs: (name, mAP as a fraction, detections or segments), as :func:`tzn.evaluation.error_costs.error_costs` gives.
        average_mAP: of the detections, for the title.

    Raises:
        DataError: another suffix. TznError: matplotlib missing.
    """
    figure = new_figure(8, 0.5 * len(costs) + 1.6)
    axis = figure.subplots()
    names = [f"{name} ({count})" for name, _, count in costs]
    gains = [100 * gain for _, gain, _ in costs]
    bars = axis.barh(names, gains, color=[colour_of(i) for i in range(len(costs))])
    axis.bar_label(bars, [f"{gain:.1f}" for gain in gains], padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="points of average mAP that these errors cost", title=f"average mAP {100 * average_mAP:.1f}")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)

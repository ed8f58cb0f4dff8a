"""Pictures of a whole split: precision and recall, boundary errors, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tzn.visualization.style import END_COLOUR, START_COLOUR, colour_of, new_figure, save_figure


def plot_precision_recall(
    path: str | Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = ""
) -> Path:
    """One line per class; ``curves``: name -> (recall ``[N]``, precision ``[N]``), interpolated."""
    figure = new_figure(11, 6.5)
    axis = figure.subplots()
    styles = ("-", "--", ":")
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        axis.step(
            recall, precision, where="post", color=colour_of(i), linestyle=styles[i // 8 % 3], label=name, linewidth=1.6
        )
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03), title=title)
    axis.grid(color="0.92")
    if curves:
        columns = 1 + len(curves) // 26
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False, ncols=columns)
    return save_figure(figure, path)


def plot_boundary_errors(path: str | Path, errors: np.ndarray) -> Path:
    """Histograms of signed start and end errors ``[M, 2]`` in seconds; tails beyond the 98th percentile are in the rims."""
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
    axis.set(
        xlabel="detected minus annotated, seconds",
        ylabel="segments",
        title=f"boundary errors of {len(errors)} segments",
    )
    axis.legend(fontsize=9, frameon=False)
    return save_figure(figure, path)


def plot_lengths(path: str | Path, lengths: Mapping[str, Sequence[float] | np.ndarray]) -> Path:
    """Histograms of segment lengths in seconds on a logarithmic axis; ``lengths``: name -> ``[N]``, all > 0."""
    figure = new_figure(10, 4.5)
    axis = figure.subplots()
    positive = {name: np.asarray(values, dtype=float) for name, values in lengths.items()}
    positive = {name: values[values > 0] for name, values in positive.items()}
    everything = np.concatenate(list(positive.values()) or [np.ones(1)])
    if everything.size == 0:
        everything = np.ones(1)
    bins = np.geomspace(everything.min() * 0.95, everything.max() * 1.05, 31)
    for i, (name, values) in enumerate(positive.items()):
        share = np.full(len(values), 1 / max(len(values), 1))
        axis.hist(
            values,
            bins,
            weights=share,
            histtype="step",
            linewidth=1.8,
            color=colour_of(i),
            label=f"{name} ({len(values)})",
        )
    axis.set(xscale="log", xlabel="length in seconds", ylabel="share of segments", title="segment lengths")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.legend(fontsize=9, frameon=False)
    return save_figure(figure, path)

"""The pictures of the depth sweep: mAP against multiply-adds, tau by distance and by class, tau over one recording."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import pictures
from benchmarks.lib.runs import dataset_of
from tzn.config_loading import config_from_dict
from tzn.inference.localize import localize
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.visualization.style import PALETTE, new_figure

SHOWN = ("mAP 0.3:0.7", "mAP 0.5:0.95")
WINDOW = 90.0  # seconds of the recording that are drawn


def draw(
    path: Path, runs: dict[str, Any], trained: dict[str, Any], checkpoint: LoadedCheckpoint, data: Path,
    edges: tuple[float, ...],
) -> None:  # fmt: skip
    figure = new_figure(8.6, 5.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    curve, near, by_class = top.subplots(1, 3, width_ratios=[1.3, 1, 1])
    draw_curve(curve, runs, trained)
    draw_near(near, [run["where"] for run in runs.values()], edges)
    draw_classes(by_class, [run["where"] for run in runs.values()])
    draw_recording(bottom, checkpoint, data)
    pictures.save(figure, path)


def draw_curve(axes: Any, runs: dict[str, Any], trained: dict[str, Any]) -> None:
    for colour, metric in zip(PALETTE, SHOWN, strict=False):
        sweeps = [list(run["dial"].values()) for run in runs.values()]
        work = np.mean([[p["gmac"] for p in sweep] for sweep in sweeps], axis=0)
        values = np.array([[p[metric] for p in sweep] for sweep in sweeps])
        axes.plot(work, values.mean(0), "-o", markersize=3, color=colour, label=f"{metric}, dial")
        axes.fill_between(work, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        own = [run["point"] for run in runs.values()]
        at = np.mean([p["gmac"] for p in own]), np.mean([p[metric] for p in own])
        axes.plot(*at, "*", markersize=11, color=colour, label="as trained")
        for other in trained.values():
            axes.plot(other["point"]["gmac"], other["point"][metric], "D", markersize=5, color=colour, mfc="white")
            axes.annotate(
                f"{other['target']:g}", (other["point"]["gmac"], other["point"][metric]), fontsize=7,
                xytext=(3, -9), textcoords="offset points",
            )  # fmt: skip
    axes.set(xlabel="GMAC per recording, counted", ylabel="mAP (%)", title="dial (lines), trained for depth (diamonds)")
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def draw_near(axes: Any, wheres: list[dict[str, Any]], edges: tuple[float, ...]) -> None:
    values = np.array([w["near"] for w in wheres], dtype=float)
    names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(edges)]
    for value in values:
        axes.plot(value, color=PALETTE[0], alpha=0.3, linewidth=1)
    axes.plot(values.mean(0), "-o", color=PALETTE[0], markersize=4)
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=7)
    axes.set(xlabel="seconds to the nearest boundary", title="mean tau by distance", ylim=(0, None))
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)


def draw_classes(axes: Any, wheres: list[dict[str, Any]]) -> None:
    means = sorted((float(np.mean([w["class"][n] for w in wheres])), n) for n in wheres[0]["class"])
    axes.barh([n.lower().replace("_", " ") for _, n in means], [v for v, _ in means], color=PALETTE[5])
    axes.tick_params(axis="y", labelsize=6)
    axes.set_title("mean tau by class", fontsize=9)


def draw_recording(figure: Any, checkpoint: LoadedCheckpoint, data: Path) -> None:
    """The stretch of the first test recording with most segments: signal, annotated segments, tau."""
    config = config_from_dict(checkpoint.config)
    dataset = dataset_of(config, data, "test", checkpoint.classes, most=1)
    example, recording = dataset[0], dataset.recordings[0]
    _, trace = localize(checkpoint.model, example.features, example.grid, example.duration, config.inference)
    starts = recording.segments[:, 0]
    begin = max(starts, key=lambda s: ((starts >= s) & (starts < s + WINDOW)).sum()) - 2
    times = example.grid.to_seconds(np.arange(example.features.shape[0]))
    seen = (times >= begin) & (times < begin + WINDOW)
    signal, depth = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 1])
    values = example.features.numpy()[seen]
    for channel in range(3):
        signal.plot(times[seen], values[:, channel], linewidth=0.8, color=PALETTE[channel])
    for (start, end), label in zip(recording.segments, recording.labels, strict=True):
        if end > begin and start < begin + WINDOW:
            for axes in (signal, depth):
                axes.axvspan(start, end, color=PALETTE[label % len(PALETTE)], alpha=0.25, linewidth=0)
    depth.fill_between(times[seen], trace.depth.numpy()[seen], color="#555555", linewidth=0)
    signal.set(ylabel="first channels", title=f"{example.id}: annotated segments (bands), depth tau below")
    signal.title.set_fontsize(9)
    depth.set(ylabel="tau", xlabel="seconds", ylim=(0, 1), xlim=(begin, begin + WINDOW))

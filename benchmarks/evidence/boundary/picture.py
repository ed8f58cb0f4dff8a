"""The pictures of variance.py and calibration.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.evidence.boundary.fields import ESTIMATORS, NOISES, PEAKS
from benchmarks.lib import pictures
from tzn.visualization.style import PALETTE, new_figure

COLOUR = dict(zip((*PEAKS, *ESTIMATORS), PALETTE, strict=False))
STYLE = dict.fromkeys(PEAKS, "--s") | dict.fromkeys(ESTIMATORS, "-o")


def draw_variance(path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Left: trained heads' error against kappa; middle: against stride; right: efficiency of votes against their number."""
    figure = new_figure(11, 3.6)
    width, stride, votes = figure.subplots(1, 3)
    draw_errors(width, [r for r in rows["pooled"] if (r["noise"], r["stride"]) == ("gaussian", 1)], "kappa")
    widest = max(r["kappa"] for r in rows["pooled"])
    draw_errors(stride, [r for r in rows["pooled"] if (r["noise"], r["kappa"]) == ("gaussian", widest)], "stride")
    width.set_title("trained heads, Gaussian noise, stride 1", fontsize=9)
    stride.set_title(f"the same, kappa = {widest:g}", fontsize=9)
    width.legend(fontsize=7)
    draw_efficiency(votes, [r for r in rows["distance"] if r["sigma"] == 0.1 and r["stride"] == 1])
    pictures.save(figure, path)


def draw_errors(axes: Any, rows: list[dict[str, Any]], key: str) -> None:
    rows = sorted(rows, key=lambda r: r[key])
    where = [r[key] for r in rows]
    for name, colour in COLOUR.items():
        values = [r[name]["mse"] for r in rows]
        axes.plot(where, values, STYLE[name], color=colour, markersize=3, label=name.replace("_", " "))
    axes.plot(where, [r["bound"] for r in rows], ":", color="black", label="Cramer-Rao bound")
    axes.set(xscale="log", yscale="log", xlabel=f"{key} (frames)", ylabel="mean squared error (frames²)")
    axes.set_xticks(where, [f"{w:g}" for w in where])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw_efficiency(axes: Any, rows: list[dict[str, Any]]) -> None:
    for kind, colour in zip(NOISES, PALETTE, strict=False):
        mine = sorted((r for r in rows if r["noise"] == kind), key=lambda r: r["votes"])
        for name, style in (("vote_mean", "-o"), ("vote_median", "--s"), ("crossing", ":^")):
            axes.plot(
                [r["votes"] for r in mine], [r[name]["efficiency"] for r in mine], style, color=colour, markersize=3,
                label=f"{kind}, {name.replace('_', ' ')}",
            )  # fmt: skip
    axes.set(xlabel="votes", ylabel="bound / mean squared error", ylim=(0, 1.1))
    axes.set_title("distance fields alone, sigma = 0.1", fontsize=9)
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)


def draw_calibration(path: Path, backbones: dict[str, list[dict[str, Any]]], best: dict[str, str]) -> None:
    """A row per backbone. Left: shares of errors below a limit; right: coverage before and after."""
    figure = new_figure(9, 3.3 * len(backbones))
    grid = figure.subplots(len(backbones), 2, squeeze=False)
    for (left, right), (name, results) in zip(grid, backbones.items(), strict=True):
        kappa = best[name].split(", ")[1]
        shown = {best[name]: 0, f"argmax, {kappa}": 1, "crossing": 3, "vote_median": 4}
        for estimator, colour in shown.items():
            curves = [r["quantiles"][estimator] for r in results if r["quantiles"][estimator]]
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            share = [k / max(len(mean) - 1, 1) for k in range(len(mean))]
            left.plot(mean, share, color=PALETTE[colour], label=estimator.replace("_", " "))
        left.set(xlabel="|error| (s)", ylabel="share of those found", ylim=(0, 1))
        left.set_title(name, fontsize=9)
        left.legend(fontsize=7)
        left.grid(alpha=0.3)
        draw_coverage(right, results)
    pictures.save(figure, path)


def draw_coverage(axes: Any, results: list[dict[str, Any]]) -> None:
    kinds = ("claimed", "scaled", "scaled with floor")
    for at, name in enumerate(ESTIMATORS):
        each = [r["calibration"][name]["coverage"] for r in results if r["calibration"][name]]
        for offset, kind in enumerate(kinds if each else ()):
            x = at + 0.25 * (offset - 1)
            for k, marker in ((0, "o"), (1, "^")):
                values = [100 * c[kind][k] for c in each]
                axes.plot([x] * len(values), values, marker, markersize=3, color=PALETTE[offset], linestyle="none")
    for offset, kind in enumerate(kinds):
        axes.plot([], [], "s", color=PALETTE[offset], label=kind)
    for nominal in (68.3, 95.4):
        axes.axhline(nominal, color="black", linewidth=0.8, linestyle=":")
        axes.axhspan(nominal - 5, nominal + 5, color="#999999", alpha=0.2, linewidth=0)
    axes.set_xticks(range(len(ESTIMATORS)), [n.replace("_", " ") for n in ESTIMATORS])
    axes.set(ylabel="covered by ±1 (dots), ±2 (triangles), %", ylim=(0, 101))
    axes.set_title("test subjects; grey: within 5 points", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")

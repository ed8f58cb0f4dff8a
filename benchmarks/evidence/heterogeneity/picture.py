"""The picture of benchmarks.evidence.heterogeneity: gain against each statistic, a dot per class, a colour per set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib import pictures
from tzn.visualization.style import PALETTE, new_figure


def draw(path: Path, rows: list[dict[str, Any]], correlations: dict[str, Any], titles: Mapping[str, str]) -> None:
    figure = new_figure(12, 3)
    panels = figure.subplots(1, len(titles), sharey=True)
    sets = list(dict.fromkeys(r["set"] for r in rows))
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for i, name in enumerate(sets):
            mine = [r for r in rows if r["set"] == name]
            axes.plot([r[key] for r in mine], [100 * r["gain"] for r in mine], "o", color=PALETTE[i], ms=4, label=name)
        found = correlations[key]
        axes.set_title(f"{title}\nall {found['all']:+.2f}, inside sets {found['within']:+.2f}", fontsize=8)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        if key == "length":
            axes.set_xscale("log")
            axes.set_xticks([20, 50, 100, 200], ["20", "50", "100", "200"])
            axes.minorticks_off()
    panels[0].set_ylabel("gain in boundary error (%)")
    panels[0].legend(fontsize=6)
    pictures.save(figure, path)

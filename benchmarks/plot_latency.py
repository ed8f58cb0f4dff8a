"""Pictures of benchmarks/results/latency.json: latency against multiply-adds, and cost against T.

usage: python -m benchmarks.plot_latency [--out benchmarks/results]
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.lib.contenders import FULL, PORT, SHARES, SLOW, share_name
from benchmarks.lib.pictures import save
from benchmarks.lib.provenance import parser
from tzn.visualization.style import new_figure

LINES = {
    SLOW: ("tab:red", "s"),
    PORT: ("tab:orange", "o"),
    FULL: ("tab:blue", "o"),
    share_name(0.25): ("tab:green", "o"),
}


def main() -> None:
    folder = parser(__doc__).parse_args().out
    content = json.loads((folder / "latency.json").read_text())
    figure = new_figure(13, 5)
    left, right = figure.subplots(1, 2)
    against_multiply_adds(left, content["cells"], steps=2304)
    against_steps(right, content["cells"])
    figure.suptitle(f"{content['machine']}, {content['date']}, forward pass, batch 1", fontsize=10)
    save(figure, folder / "latency.png")
    print(f"written: {folder / 'latency.png'}")


def against_multiply_adds(axes: Any, cells: list[dict[str, Any]], steps: int) -> None:
    rows = {c["row"]: c for c in cells if (c["batch"], c["steps"]) == (1, steps)}
    dial = [rows[name] for name in (FULL, *map(share_name, SHARES))]
    axes.plot([c["gmac"] for c in dial], [1e3 * c["forward"]["median"] for c in dial], color="tab:blue", alpha=0.5)
    full = dial[0]
    # Where time follows multiply-adds exactly.
    axes.plot([0, full["gmac"]], [0, 1e3 * full["forward"]["median"]], ":", color="grey", linewidth=1)
    for index, (name, c) in enumerate(rows.items()):
        forward = c["forward"]
        spread = [[1e3 * (forward["median"] - forward["q1"])], [1e3 * (forward["q3"] - forward["median"])]]
        marker = "osD^vP*X<>"[index % 10]
        axes.errorbar(c["gmac"], 1e3 * forward["median"], yerr=spread, fmt=marker, capsize=2, label=name)
    top = 1.6e3 * max(c["forward"]["median"] for c in rows.values())  # a bar of a disturbed run may leave the picture
    axes.set(xlabel="multiply-adds (1e9)", ylabel="forward (ms)", title=f"T = {steps}", xlim=(0, None), ylim=(0, top))
    axes.legend(fontsize=7, loc="upper left")


def against_steps(axes: Any, cells: list[dict[str, Any]]) -> None:
    alone = [c for c in cells if c["batch"] == 1 and c["steps"] != 600]  # 600 is too near to 576 to be drawn
    for name, (colour, marker) in LINES.items():
        points = sorted((c["steps"], 1e3 * c["forward"]["median"]) for c in alone if c["row"] == name)
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    axes.set(xlabel="T (steps)", ylabel="forward (ms)", title="cost against length", xscale="log", yscale="log")
    lengths = sorted({c["steps"] for c in alone})
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)


if __name__ == "__main__":
    main()

"""One table for several evaluations side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one row per result with mAP per tIoU, average, mean depth and GMAC per recording.

    Args:
        results: by row name, what :meth:`CheckpointEvaluation.to_dict` returns.
    """
    tiou = next(iter(results.values()))["tiou"]
    header = ["", *(f"mAP@{t:g}" for t in tiou), "average", "short @0.7", "mean depth", "GMAC"]
    rows = []
    for name, result in results.items():
        short = result.get("short_mAP", {}).get("0.7")
        rows.append(
            [name, *(f"{100 * v:.1f}" for v in result["mAP"]), f"{100 * result['average_mAP']:.1f}",
             "-" if short is None else f"{100 * short:.1f}", f"{result['mean_depth']:.3f}",
             f"{result['gmac_per_recording']:.3f}"]
        )  # fmt: skip
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

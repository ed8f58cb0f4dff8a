"""Multiply-adds of ActionFormer and TemporalZoomNet at THUMOS14 shape, by part and over recording lengths.

usage: python benchmarks/flops.py [--out benchmarks/results/flops.json]

Counted by ``tzn.profiling.count_flops`` from runs, not from formulas on paper: no timing, nothing random in the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from contenders import SHARES, actionformer, batch, share_name, temporal_zoom_net
from peers.actionformer_slow import ActionFormerSlow

from tzn.files import atomic_write
from tzn.profiling import FlopCount, count_flops

STEPS = (576, 2304, 9216)
OF_PARTS = 2304


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results/flops.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    published = actionformer()
    models = {"ActionFormer": published, "TemporalZoomNet, every token at full depth": temporal_zoom_net(1.0)}
    models |= {share_name(share): temporal_zoom_net(share) for share in SHARES}
    counts: dict[str, dict[int, FlopCount]] = {name: {} for name in ["ActionFormer, padded as published", *models]}
    for steps in STEPS:
        inputs = batch(1, steps)
        counts["ActionFormer, padded as published"][steps] = count_flops(
            published, ActionFormerSlow(published).padded(*inputs)
        )
        for name, model in models.items():
            counts[name][steps] = count_flops(model, inputs)
    text = markdown(counts)
    with atomic_write(options.out) as file:
        json.dump({"command": "python benchmarks/flops.py", "counts": as_dict(counts)}, file, indent=1)
    with atomic_write(options.out.with_suffix(".md")) as file:
        file.write(text)
    print(text)


def as_dict(counts: dict[str, dict[int, FlopCount]]) -> dict[str, Any]:
    return {
        name: {
            str(steps): {
                "gmac": c.gmac,
                "padded_steps": c.padded_steps,
                "active_share": c.active_share,
                "parts": c.parts,
            }
            for steps, c in of_steps.items()
        }
        for name, of_steps in counts.items()
    }


def markdown(counts: dict[str, dict[int, FlopCount]]) -> str:
    lines = ["`python benchmarks/flops.py`: multiply-adds (1e9) of a forward pass, heads everywhere, batch 1.", ""]
    lines += ["| | " + " | ".join(f"T = {steps}" for steps in STEPS) + " |", "|" + "---|" * (1 + len(STEPS))]
    for name, of_steps in counts.items():
        lines.append(f"| {name} | " + " | ".join(f"{of_steps[steps].gmac:.2f}" for steps in STEPS) + " |")
    for name in ("ActionFormer", "TemporalZoomNet, every token at full depth"):
        lines += ["", f"{name}, T = {OF_PARTS}:", "", counts[name][OF_PARTS].table()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Multiply-adds of ActionFormer and TemporalZoomNet at THUMOS14 shape, by part and over recording lengths.

usage: python -m benchmarks.flops [--out benchmarks/results]

Counted by ``tzn.profiling.count_flops`` from runs, not from formulas on paper: no timing, nothing random in the result.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lib.contenders import SHARES, actionformer, batch, share_name, temporal_zoom_net
from benchmarks.lib.provenance import facts, line, parser, write
from benchmarks.lib.tables import table
from benchmarks.peers.actionformer_slow import ActionFormerSlow
from tzn.profiling import FlopCount, count_flops

STEPS = (576, 2304, 9216)
OF_PARTS = 2304


def main() -> None:
    options = parser(__doc__).parse_args()
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
    content = {**facts(), "counts": as_dict(counts)}
    write(options.out, "flops", content, markdown(content, counts))


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


def markdown(content: dict[str, Any], counts: dict[str, dict[int, FlopCount]]) -> str:
    rows = [[name, *(f"{of_steps[steps].gmac:.2f}" for steps in STEPS)] for name, of_steps in counts.items()]
    lines = [f"{line(content)} Multiply-adds (1e9) of a forward pass, heads everywhere, batch 1.", ""]
    lines += [table(["", *(f"T = {steps}" for steps in STEPS)], rows).rstrip()]
    for name in ("ActionFormer", "TemporalZoomNet, every token at full depth"):
        lines += ["", f"{name}, T = {OF_PARTS}:", "", counts[name][OF_PARTS].table()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

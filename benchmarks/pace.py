"""Pace of TemporalZoomNet at THUMOS14 shape: forward time at full depth, and saved time over saved multiply-adds.

usage: python benchmarks/pace.py [--out benchmarks/results/pace.json] [--repeats 15]

Runs are interleaved (one of each kind per round), medians and quartiles over rounds. Depths are set by a fixed pattern of
token depths: a share of the tokens, in clusters, skips all refinement layers.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch

from tzn import ops
from tzn.files import atomic_write
from tzn.models.temporal_zoom_net import Depths, TemporalZoomNet, TemporalZoomNetConfig
from tzn.profiling import count_multiply_adds

STEPS, CLUSTER = 2304, 64


def clustered_depth(share: float) -> torch.Tensor:
    """tau ``[1, T]``: 1 for ``share`` of the tokens, in clusters of 64 steps spread over the recording; else 0."""
    clusters = STEPS // CLUSTER
    chosen = torch.linspace(0, clusters - 1, max(round(share * clusters), 1)).round().long() if share else []
    tau = torch.zeros(clusters, CLUSTER)
    tau[chosen] = 1.0
    return tau.flatten()[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = TemporalZoomNet(TemporalZoomNetConfig(input_dim=2048, num_classes=20)).eval()
    features, mask = torch.randn(1, STEPS, 2048), torch.ones(1, STEPS, dtype=torch.bool)
    shares = (1.0, 0.75, 0.5, 0.25, 0.0)

    def forward(share: float) -> None:
        tau = clustered_depth(share)
        model._depths = lambda *_: Depths(tau, ops.depth_gates(tau, model.config.refinement_layers))
        model(features, mask)

    with torch.no_grad():
        gmac = {share: count_multiply_adds(lambda s=share: forward(s))[1] / 1e9 for share in shares}
        times: dict[float, list[float]] = {share: [] for share in shares}
        for round_ in range(options.repeats + 2):
            for share in shares:
                begin = time.perf_counter()
                forward(share)
                if round_ >= 2:
                    times[share].append(time.perf_counter() - begin)
    median = {share: statistics.median(t) for share, t in times.items()}
    rows = []
    for share in shares:
        quartiles = statistics.quantiles(times[share], n=4)
        row = {
            "active_share": share,
            "gmac": gmac[share],
            "median_s": median[share],
            "quartiles_s": [quartiles[0], quartiles[2]],
        }
        if share < 1:
            saved_time = 1 - median[share] / median[1.0]
            saved_work = 1 - gmac[share] / gmac[1.0]
            row |= {"saved_time": saved_time, "saved_multiply_adds": saved_work, "ratio": saved_time / saved_work}
        rows.append(row)
    print(
        "| active | GMAC | median ms (quartiles) | saved time | saved multiply-adds | ratio |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        low, high = (1e3 * q for q in row["quartiles_s"])
        saved = (
            f"{row['saved_time']:.1%} | {row['saved_multiply_adds']:.1%} | {row['ratio']:.2f}"
            if "ratio" in row
            else "- | - | -"
        )
        print(
            f"| {row['active_share']:.0%} | {row['gmac']:.2f} | {1e3 * row['median_s']:.0f} ({low:.0f}-{high:.0f}) | {saved} |"
        )
    if options.out:
        content = {
            "command": "python benchmarks/pace.py", "date": date.today().isoformat(), "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", "threads": options.threads,
            "shape": {"steps": STEPS, "input_dim": 2048, "width": 512}, "rows": rows,
        }  # fmt: skip
        with atomic_write(options.out) as file:
            json.dump(content, file, indent=1)


if __name__ == "__main__":
    main()

"""A front end for raw signals against the samples as they are, everything else alike.

usage: python -m benchmarks.evidence.front_end --data ../shared/data [--sets hapt hapt_coarse ludb] [--kinds none mean conv …]
       [--seeds 0] [--runs runs/front_end]

hapt: 50 samples a second of 6 channels, 5 samples a step; hapt_coarse: the same, 25 samples a step (half a second), where
"mean" averages what "none" lays side by side; ludb: 250 samples a second of 12 leads, a sample a step. The networks
are those of benchmarks/evidence/calibration/hapt.yaml and configs/ludb.yaml with fewer epochs, the same data, steps and
augmentation (which treats the samples of a step as one signal) in every row. Differences to "none": mean over seeds, 95 %
interval of a paired bootstrap over test recordings (and seeds).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.lib.provenance import CONFIGS, EVIDENCE, ROOT, evidence_parser, write
from benchmarks.lib.runs import SMOKE, differences, ends_of, mean_of, scored, trained, work_of
from benchmarks.lib.tables import table
from tzn.config_loading import load_config

SETS = {
    "hapt": (ROOT / "benchmarks/evidence/calibration/hapt.yaml", 5, ["training.epochs=14"], "mAP 0.3:0.7"),
    # A grid five times coarser, and what counts steps with it.
    "hapt_coarse": (
        ROOT / "benchmarks/evidence/calibration/hapt.yaml",
        25,
        [
            "data.pool=5",
            "model.first_stride=1",
            "data.max_length=464",
            "model.boundary_radius=2",
            "training.epochs=30",
            "model.regression_ranges=[[0, 3], [3, 6], [6, 12], [12, 25], [25, 10000]]",
        ],
        "mAP 0.3:0.7",
    ),
    "ludb": (CONFIGS / "ludb.yaml", 1, ["training.epochs=4"], "mAP 0.5:0.95"),
}
METRICS = ("mAP 0.3:0.7", "mAP 0.5:0.95", "@0.7", "@0.9")


def settings(kind: str, name: str) -> list[str]:
    """Overrides of a kind of front end on a set."""
    samples, coarse = SETS[name][1], name == "hapt_coarse"
    common = ["data.samples_per_step=5"] if coarse else [f"data.samples_per_step={samples}"]
    if kind == "mean":
        return [*common, "data.pool_kind=mean"]
    common += ["data.pool_kind=flatten", "model.input_dim=150"] if coarse else []
    if kind == "none":
        return common
    kind, gates = kind.split("+")[0], "+" in kind
    common += [f"model.front_end={kind}", f"model.front_end_samples={samples}", "model.front_end_width=48"]
    common += ["model.front_end_layers=2", "model.front_end_kernel=5"] if kind == "conv" else []
    # A second of HAPT's motion, a quarter of a second of LUDB's heart.
    common += [f"model.front_end_window={55 if samples > 1 else 63}"] if kind == "spectrogram" else []
    return common + (["model.front_end_squeeze=16"] if gates else [])


def compared(name: str, options: Any) -> dict[str, Any]:
    """Rows of a set by kind, and their differences to "none"."""
    path, _, fewer, _ = SETS[name]
    data, results, seconds = options.data / name.removesuffix("_coarse"), {}, {}
    kinds = [kind for kind in options.kinds if kind != "mean" or name == "hapt_coarse"]  # elsewhere nothing is pooled
    for kind in kinds:
        results[kind], seconds[kind] = [], []
        for seed in options.seeds:
            config = load_config(path, [*settings(kind, name), *fewer, "training.validate_every=0",
                                        *(SMOKE if options.smoke else [])])  # fmt: skip
            run = options.runs / f"{name}_{kind.replace('+', '_')}_seed{seed}"
            checkpoint = trained(config, data, run, seed)
            results[kind].append(scored(checkpoint, data))
            seconds[kind].append(json.loads((run / "run.json").read_text())["cpu_seconds"])
    pairs = {kind: ("none", kind) for kind in kinds if kind != "none"}
    return {
        "rows": {kind: [e.to_dict() for e in found] for kind, found in results.items()},
        "cpu_seconds": seconds,
        "differences": differences(results, pairs, METRICS, checkpoint, data, smoke=options.smoke),
    }


def markdown(sets: Mapping[str, dict[str, Any]]) -> str:
    lines = ["# Front ends for raw signals", ""]
    for name, s in sets.items():
        rows = [
            [kind, *(mean_of(found, m) for m in METRICS), ends_of(found), work_of(found),
             f"{fmean(s['cpu_seconds'][kind]):.0f} s"]
            for kind, found in s["rows"].items()
        ]  # fmt: skip
        gains = [
            [kind, *(f"{d[m][0]:+.1f} ({d[m][1]:+.1f} to {d[m][2]:+.1f})" for m in METRICS)]
            for kind, d in s["differences"].items()
        ]
        lines += [
            f"## {name}, {len(next(iter(s['rows'].values())))} seed(s)", "",
            table(["front end", *METRICS, "median error start / end", "GMAC", "CPU time of training"], rows),
            'Points of mAP against "none" (95 % interval):', "", table(["front end", *METRICS], gains),
        ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = evidence_parser(__doc__, EVIDENCE)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per set")
    parser.add_argument("--runs", type=Path, default=Path("runs/front_end"), help="folder of the trained runs")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--kinds", nargs="+", default=["none", "mean", "conv", "spectrogram"],
                        choices=["none", "mean", "conv", "spectrogram", "conv+gates", "spectrogram+gates"])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "none" not in options.kinds:
        parser.error("--kinds: expected none among them, which the others are compared with")
    kept = options.out / "front_end.json"  # rows of the other sets stay
    before = json.loads(kept.read_text())["sets"] if kept.is_file() else {}
    sets = before | {name: compared(name, options) for name in options.sets}
    write(options.out, "front_end", {"seeds": options.seeds, "sets": sets}, markdown(sets))


if __name__ == "__main__":
    main()

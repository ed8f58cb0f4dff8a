"""Does the gain in boundary error over ActionFormer follow how difficult a class's boundaries are?

usage: python -m benchmarks.evidence.heterogeneity [--runs runs] [--seeds 0 1]
           [--pair NAME DATA OURS BASE ...]      OURS, BASE: glob patterns of trained runs, quoted

Synthetic sets with boundaries from sharp to ambiguous are made and trained on here (a finished run in --runs is used
again, a stopped one goes on); real sets come with their trained runs. Per class and set: two statistics of the training
data (how much of the mean change of the features at a boundary happens within one step; how much that varies between
single boundaries), two of the trained distance head on test recordings (median and spread of its scale at true
boundaries), the length of the segments for comparison, and the gain: 1 - median |error| of TemporalZoomNet / that of
ActionFormer. Spearman correlations with permutation tests, over all classes and inside the sets.
"""

from __future__ import annotations

import dataclasses
import glob
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.heterogeneity import picture
from benchmarks.evidence.heterogeneity.sharpness import (
    boundary_scales,
    class_sharpness,
    examples,
    local_sharpness,
)  # fmt: skip
from benchmarks.lib.parts import Parts
from benchmarks.lib.provenance import CONFIGS, evidence_parser, write
from benchmarks.lib.ranks import PERMUTATIONS, correlation
from benchmarks.lib.runs import load_run, recordings_of, trained
from benchmarks.lib.tables import table
from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, load_config
from tzn.data.dataset import Example
from tzn.data.synthetic import generate_synthetic
from tzn.evaluation.boundary_error import boundary_errors
from tzn.evaluation.flat import GroundTruth
from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.config import ActionFormerConfig

# Steps from 10 % to 90 % of the fade at the (sharpest, most ambiguous) boundary.
SYNTHETIC = {"sharp": (0.5, 1.5), "middle": (3.0, 6.0), "soft": (8.0, 16.0), "mixed": (0.5, 16.0)}
STATISTICS = {
    "sharpness": "sharpness of the mean change",
    "sharpness_spread": "its spread between boundaries",
    "scale": "scale of the distance head",
    "scale_spread": "spread of the scale",
    "length": "median length of the segments",
}


def equal_width_actionformer(config: ExperimentConfig) -> ExperimentConfig:
    """An ActionFormer of the same width, window and heads, with everything else as it is."""
    m = config.model
    model = ActionFormerConfig(
        m.input_dim, m.num_classes, embd_dim=m.width, fpn_dim=m.width, head_dim=m.width, n_head=m.num_heads,
        n_mha_win_size=m.window,
    )  # fmt: skip
    return dataclasses.replace(config, model=model)


def synthetic_runs(name: str, folder: Path, seeds: list[int], smoke: bool) -> tuple[Path, list[Path], list[Path]]:
    """(data, runs of TemporalZoomNet, runs of ActionFormer), made where they are missing."""
    data = folder / f"synthetic_{name}"
    recordings, epochs = (6, 2) if smoke else (60, 15)
    if not (data / "annotations.json").is_file():  # written last
        generate_synthetic(data, num_recordings=recordings, sharpness=SYNTHETIC[name], seed=1)
    found: tuple[list[Path], list[Path]] = ([], [])
    for seed in seeds:
        changes = [
            f"training.seed={seed}",
            f"training.epochs={epochs}",
            "training.warmup_epochs=1",
            "training.batch_size=2",
        ]
        config = load_config(CONFIGS / "synthetic.yaml", changes)
        for runs, kind, settings in zip(
            found, ("ours", "base"), (config, equal_width_actionformer(config)), strict=True
        ):
            run = folder / f"synthetic_{name}_{kind}_seed{seed}"
            print(run.name, file=sys.stderr, flush=True)
            trained(settings, data, run, seed)
            runs.append(run)
    return data, *found


def class_errors(checkpoint: LoadedCheckpoint, data: Path) -> dict[str, float]:
    """Median absolute error in grid steps by class, starts and ends together, over detections matched at tIoU 0.5."""
    config = config_from_dict(checkpoint.config)
    evaluation = evaluate_checkpoint(checkpoint, data, progress=False)
    test = recordings_of(checkpoint, data)
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in test}
    errors = boundary_errors(truth, evaluation.detections, len(checkpoint.classes))
    fps = config.data.fps or test[0].fps
    step = config.data.feat_stride / fps
    return {
        name: float(np.median(np.abs(errors.error[errors.labels == i]))) / step
        for i, name in enumerate(checkpoint.classes)
        if (errors.labels == i).sum() >= 5
    }


def lengths(example: Example, label: int) -> np.ndarray:
    """``[N]`` grid steps of the segments of a class."""
    mine = example.segments[example.labels == label].numpy()
    return mine[:, 1] - mine[:, 0]


def statistics(checkpoint: LoadedCheckpoint, data: Path) -> dict[str, dict[str, float]]:
    """:data:`STATISTICS` by class; sharpness from training recordings, scales from test recordings."""
    recordings = examples(checkpoint, data, "train")
    scales = boundary_scales(checkpoint, data, checkpoint.classes)
    found = {}
    for label, name in enumerate(checkpoint.classes):
        local = local_sharpness(recordings, label)
        found[name] = {
            "sharpness": class_sharpness(recordings, label),
            "sharpness_spread": float(np.subtract(*np.percentile(local, [75, 25]))),
            "scale": float(np.median(scales[name])),
            "scale_spread": float(np.std(np.log(scales[name]))),
            "length": float(np.median(np.concatenate([lengths(e, label) for e in recordings]))),
        }
    return found


def measured(name: str, data: Path, ours: list[Path], base: list[Path], parts: Parts) -> list[dict[str, Any]]:
    """One row per class that both sides found in every run."""
    checkpoint = load_run(ours[0])
    errors = [
        [parts.get(f"{name} {run}", lambda r=run: class_errors(load_run(r), data)) for run in runs]
        for runs in (ours, base)
    ]
    by_class = parts.get(f"statistics of {name}", lambda: statistics(checkpoint, data))
    rows = []
    for label in checkpoint.classes:
        if not all(label in run for runs in errors for run in runs):
            continue
        mine, theirs = (float(np.mean([run[label] for run in runs])) for runs in errors)
        rows.append(
            {"set": name, "class": label, "ours": mine, "base": theirs, "gain": 1 - mine / theirs} | by_class[label]
        )
    return rows


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def markdown(rows: list[dict[str, Any]], correlations: dict[str, Any], runs: dict[str, int]) -> str:
    sets = list(dict.fromkeys(r["set"] for r in rows))
    by_set = []
    for name in sets:
        mine = [r for r in rows if r["set"] == name]
        means = {k: float(np.nanmean([r[k] for r in mine])) for k in (*STATISTICS, "ours", "base")}
        by_set.append([
            name, str(len(mine)), str(runs[name]), *(f"{means[k]:.2f}" for k in STATISTICS),
            f"{means['base']:.2f}", f"{means['ours']:.2f}", f"{100 * np.mean([r['gain'] for r in mine]):.0f} %",
        ])  # fmt: skip
    tested = [
        [title, str(c["classes"]), *(f"{c[k]:+.2f} ({p_value(c[f'{k}_p'])})" for k in ("all", "within"))]
        for title, c in ((STATISTICS[k], correlations[k]) for k in STATISTICS)
    ]  # fmt: skip
    full = [
        [r["set"], r["class"], *(f"{r[k]:.3f}" for k in STATISTICS), f"{r['base']:.2f}", f"{r['ours']:.2f}",
         f"{100 * r['gain']:.0f} %"]
        for r in rows
    ]  # fmt: skip
    return "\n".join([
        "# Boundary difficulty and the gain in boundary error", "",
        "`python -m benchmarks.evidence.heterogeneity --pair ...`: gain = 1 - median |error| of TemporalZoomNet / "
        "ActionFormer, by class, mean over seeds. Errors and scales in grid steps.", "",
        table(
            ["set", "classes", "seeds", *STATISTICS.values(), "error ActionFormer", "error TemporalZoomNet", "gain"], by_set
        ),
        "![gain against difficulty](heterogeneity.png)", "",
        f"Spearman correlation with the gain, {PERMUTATIONS:,} permutations; p-values are two-sided, not corrected for "
        f"the {2 * len(STATISTICS)} tests; over all classes they take classes of one set for independent, which they "
        "are not:", "",
        table(["statistic", "classes", "over all classes", "inside the sets"], tested), "## By class", "",
        table(["set", "class", *STATISTICS.values(), "error ActionFormer", "error TemporalZoomNet", "gain"], full),
    ])  # fmt: skip


def runs_matching(pattern: str) -> list[Path]:
    found = sorted(Path(p) for p in glob.glob(pattern) if Path(p).is_dir())
    if not found:
        raise SystemExit(f"--pair: {pattern!r} matches no folder of a run")
    return found


def main() -> None:
    parser = evidence_parser(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for synthetic sets and their runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pair", action="append", nargs=4, default=[], metavar=("NAME", "DATA", "OURS", "BASE"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds, names = ([options.seed], ["sharp", "soft"]) if options.smoke else (options.seeds, list(SYNTHETIC))
    folder = options.runs / "smoke" if options.smoke else options.runs
    sets = {f"synthetic, {n}": synthetic_runs(n, folder, seeds, options.smoke) for n in names}
    for name, data, ours, base in options.pair:
        sets[name] = Path(data), runs_matching(ours), runs_matching(base)
    settings = {"smoke": options.smoke, "pairs": options.pair, "seeds": seeds}
    parts = Parts(options.out / "heterogeneity.parts.json", 0, settings)
    rows = [row for name, pair in sets.items() for row in measured(name, *pair, parts)]
    rng = np.random.default_rng(options.seed)
    correlations = {key: correlation(rows, key, rng) for key in STATISTICS}
    picture.draw(options.out / "heterogeneity.png", rows, correlations, STATISTICS)
    content = {"seconds": time.perf_counter() - begin, "correlations": correlations, "rows": rows}
    runs = {name: len(pair[1]) for name, pair in sets.items()}
    write(options.out, "heterogeneity", content, markdown(rows, correlations, runs))
    parts.finish()


if __name__ == "__main__":
    main()

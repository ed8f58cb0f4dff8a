"""TemporalZoomNet and ActionFormer on HAPT, both trained at twice the learning rate of the comparison in hapt.py.

usage: python benchmarks/evidence/learning_rate.py --data hapt [--runs runs] [--seeds 0 1 2 3 4]

The rate was chosen for TemporalZoomNet on held-out training people; ActionFormer (augmented and averaged alike) is shown at
both, and the intervals are against both. Scored on the test subjects. Finished runs in --runs are used again (hapt_seed0,
actionformer_tuned_seed0, hapt_fast_seed0, actionformer_fast_seed0, ...), stopped ones go on, missing ones are trained.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import report
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from controls import SMOKE, row
from hapt import CONFIGS, FINE, MODELS, scored, trained
from paired_bootstrap import paired_difference

from tzn.config_loading import config_from_dict, load_config
from tzn.data.dataset import load_split_annotations, select_recordings
from tzn.evaluation.flat import GroundTruth
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation
from tzn.models.checkpoint import LoadedCheckpoint

FAST = ["training.learning_rate=2.0e-3"]
# Runs: the model of hapt.py, settings that replace its own, the row's name.
RUNS: dict[str, tuple[str, list[str], str]] = {
    "actionformer_tuned": ("actionformer_tuned", [], "ActionFormer, 1e-3"),
    "actionformer_fast": ("actionformer_tuned", FAST, "ActionFormer, 2e-3"),
    "hapt": ("hapt", [], "TemporalZoomNet, 1e-3"),
    "hapt_fast": ("hapt", FAST, "TemporalZoomNet, 2e-3"),
}
OURS = "hapt_fast"
METRICS = {"mAP 0.3:0.7": [0.3, 0.4, 0.5, 0.6, 0.7], "0.5:0.95": FINE, "@0.7": [0.7], "@0.9": [0.9]}


def differences(
    results: dict[str, list[CheckpointEvaluation]], checkpoint: LoadedCheckpoint, data: Path, resamples: int
) -> dict[str, dict[str, list[float]]]:
    """OURS minus each other in points: [difference, low, high] by metric."""
    config = config_from_dict(checkpoint.config)
    annotations = load_split_annotations(data, config.data, checkpoint.classes)
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in select_recordings(annotations, config.data, "test")}
    found = {name: [e.detections for e in evaluations] for name, evaluations in results.items()}
    return {
        name: {
            metric: list(
                paired_difference(
                    truth, of, found[OURS], checkpoint.classes, tiou, lambda score: 100 * score.average_mAP,
                    resamples=resamples,
                )
            )
            for metric, tiou in METRICS.items()
        }
        for name, of in found.items()
        if name != OURS
    }  # fmt: skip


def markdown(content: dict[str, Any]) -> str:
    header = ["", "mAP 0.3:0.7", "0.5:0.95", "@0.7", "@0.9", "short @0.7", "median error start / end", "GMAC"]
    seeds = " ".join(map(str, content["seeds"]))
    return "\n".join([
        "# HAPT at twice the learning rate", "",
        f"`python benchmarks/evidence/learning_rate.py --data hapt --seeds {seeds}`: test subjects, means over "
        f"{len(content['seeds'])} seed(s). GMAC: 1e9 multiply-adds per recording, counted as run.", "",
        report.table(header, [row(name, content["results"][key]) for key, (_, _, name) in RUNS.items()]),
        f"{RUNS[OURS][2]} minus each other in points, 95 % intervals of a paired bootstrap over recordings and seeds:", "",
        *(
            f"* {RUNS[key][2]}: " + ", ".join(f"{m} {v:+.1f} ({low:+.1f} to {high:+.1f})" for m, (v, low, high) in of.items())
            for key, of in content["differences"].items()
        ), "",
    ])  # fmt: skip


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds, resamples = ([options.seed], 20) if options.smoke else (options.seeds, 500)
    results: dict[str, list[CheckpointEvaluation]] = {key: [] for key in RUNS}
    for seed in seeds:
        for key, (model, settings, _) in RUNS.items():
            run = options.runs / f"{key}{'_smoke' if options.smoke else ''}_seed{seed}"
            print(run.name, file=sys.stderr, flush=True)
            file, own = MODELS[model]
            config = load_config(CONFIGS / f"{file}.yaml", [*own, *settings, *(SMOKE if options.smoke else [])])
            checkpoint = trained(config, options.data, run, seed)
            results[key].append(scored(checkpoint, options.data, None))
    content = {
        "seeds": seeds, "differences": differences(results, checkpoint, options.data, resamples),
        "results": {key: [e.to_dict() for e in evaluations] for key, evaluations in results.items()},
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    report.write(options.out, "learning_rate", content, markdown(content))


if __name__ == "__main__":
    main()

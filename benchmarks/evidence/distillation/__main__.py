"""Distillation: a lighter student learns from TemporalZoomNet, and what training costs in multiply-adds.

usage: python -m benchmarks.evidence.distillation --data hapt [--runs runs] [--seeds 0 1 2] [--only taught alone counted]
       python -m benchmarks.evidence.distillation --data hapt [--runs runs] --timing

The student (configs/hapt_student.yaml) is trained with a teacher (hapt_seedN, configs/hapt.yaml) and without, by the same
seed; teacher, both and ActionFormer (actionformer_tuned_seedN) are scored on the test subjects. Every tenth step of the
students' training is counted, and of one more training of TemporalZoomNet, beside ActionFormer and uniform twins on the
same batches: four blocks for every token (equal full depth) and two (equal cost). Finished runs in --runs are used
again, stopped ones go on. ``--timing`` measures seconds per training step instead (distillation_timing.md).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.distillation import picture, training_time, training_work
from benchmarks.evidence.distillation.table import COMPARED, NAMES, PAIRS, markdown
from benchmarks.lib.provenance import CONFIGS, evidence_parser, write
from benchmarks.lib.runs import SMOKE, TUNED, differences, scored, trained
from tzn.config import ExperimentConfig
from tzn.config_loading import load_config, override_config
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation
from tzn.models import build_model
from tzn.models.checkpoint import LoadedCheckpoint

RUNS = {"teacher": "hapt", "taught": "student_taught", "alone": "student_alone", "actionformer": "actionformer_tuned"}
COUNTED = "student_counted"  # TemporalZoomNet once more, counted
TWINS = {
    "four blocks": ["model.refinement_layers=0", "model.shallow_layers=4"],
    "two blocks": ["model.refinement_layers=0", "model.shallow_layers=2"],
}
EVERY = 10


class Runs:
    """Configurations and folders of all runs, trained where they are not finished."""

    def __init__(self, options: Any) -> None:
        self.folder, self.data, self.smoke = options.runs, options.data, options.smoke
        self.small = SMOKE if options.smoke else []

    def path(self, name: str, seed: int) -> Path:
        return self.folder / f"{RUNS.get(name, name)}{'_smoke' if self.smoke else ''}_seed{seed}"

    def config(self, name: str, seed: int) -> ExperimentConfig:
        if name == "actionformer":
            file, settings = "actionformer_hapt", TUNED
        else:
            file, settings = ("hapt_student" if name in ("taught", "alone") else "hapt"), []
        if name == "taught":
            settings = [f"training.teacher={json.dumps(str(self.path('teacher', seed)))}"]
        return load_config(CONFIGS / f"{file}.yaml", [*settings, *self.small, f"training.seed={seed}"])

    def network(self, settings: list[str] | None) -> torch.nn.Module:
        """Untrained, in training mode: ActionFormer (None) or TemporalZoomNet with these settings."""
        torch.manual_seed(0)
        config = self.config("actionformer" if settings is None else "teacher", 0)
        return build_model(config.model if settings is None else override_config(config, settings).model).train()

    def trained(self, name: str, seed: int) -> LoadedCheckpoint:
        run = self.path(name, seed)
        print(run.name, file=sys.stderr, flush=True)
        beside = {"actionformer": self.network(None)}
        if name == COUNTED:
            beside |= {twin: self.network(settings) for twin, settings in TWINS.items()}
        with training_work.counted(run, beside, 1 if self.smoke else EVERY):
            return trained(self.config(name, seed), self.data, run, seed, progress=sys.stderr.isatty())


def costs(runs: Runs, seeds: list[int]) -> dict[str, float]:
    """Multiply-adds of trainings over those of ActionFormer on the same batches, forward and backward."""

    def over(notes: list[dict[str, float]], name: str, times: int = training_work.LEARNS) -> float:
        mean = training_work.mean_of
        return times * mean(notes, name) / (training_work.LEARNS * mean(notes, "actionformer"))

    taught, alone = ([training_work.course(runs.path(k, s)) for s in seeds] for k in ("taught", "alone"))
    own = training_work.course(runs.path(COUNTED, seeds[0]))
    learning = statistics.fmean(over(notes, "self") for notes in taught)
    answers = statistics.fmean(over(notes, "teacher", times=1) for notes in taught)
    network = over(own, "self")
    twins = {twin: over(own, twin) for twin in TWINS}
    return {
        "student alone": statistics.fmean(over(notes, "self") for notes in alone),
        "student": learning, "teacher answers": answers, "not amortised": learning + answers,
        "amortised": learning + answers + network, "TemporalZoomNet": network, **twins,
        "first step": over(own[:1], "self") / over(own[:1], "four blocks"), "last step": over(own[-1:], "self") / over(
            own[-1:], "four blocks"
        ),
        "actionformer GMAC per step": training_work.LEARNS * training_work.mean_of(own, "actionformer") / 1e9,
        "mean depth": training_work.mean_of(own, "depth"),
        **{f"over {twin}": network / cost for twin, cost in twins.items()},
    }  # fmt: skip


def main() -> None:
    parser = evidence_parser(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--only", nargs="+", choices=[*RUNS, "counted"], help="train these and write nothing")
    parser.add_argument("--timing", action="store_true", help="seconds per training step, of finished runs")
    options = parser.parse_args()
    runs, begin = Runs(options), time.perf_counter()
    seeds = [options.seed] if options.smoke else options.seeds
    if options.timing:
        training_time.measure(runs, seeds[0], options, TWINS, runs.path(COUNTED, seeds[0]))
        return
    torch.set_num_threads(1)
    results: dict[str, list[CheckpointEvaluation]] = {name: [] for name in NAMES}
    for seed in seeds:
        for name in NAMES:
            if options.only and name not in options.only:
                continue
            checkpoint = runs.trained(name, seed)
            if not options.only:
                results[name].append(scored(checkpoint, options.data))
    if not options.only or "counted" in options.only:
        checkpoint = runs.trained(COUNTED, seeds[0])
    if options.only:
        return
    content = {
        "seeds": seeds, "every": 1 if options.smoke else EVERY, "costs": costs(runs, seeds),
        "results": {name: [e.to_dict() for e in evaluations] for name, evaluations in results.items()},
        "differences": differences(results, PAIRS, COMPARED, checkpoint, options.data, smoke=options.smoke),
        "course": {
            name: training_work.course(runs.path(name, seeds[0])) for name in (COUNTED, "taught", "alone")
        },
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    picture.draw(options.out / "distillation.png", content)
    write(options.out, "distillation", content, markdown(content))


if __name__ == "__main__":
    main()

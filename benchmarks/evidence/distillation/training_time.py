"""Seconds per training step of the networks of benchmarks.evidence.distillation, interleaved on the same batches."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.distillation import training_work
from benchmarks.lib import parity
from benchmarks.lib.provenance import write
from benchmarks.lib.runs import dataset_of, load_run
from benchmarks.lib.tables import table
from benchmarks.lib.timing import interleaved, summary
from tzn.config import ExperimentConfig
from tzn.config_loading import override_config
from tzn.data.dataset import Batch, collate
from tzn.training.distillation import Teacher
from tzn.training.module import LocalizerModule, decay_groups

BATCHES = 10
BASE, FIRST, LAST = "ActionFormer", "TemporalZoomNet, first step", "TemporalZoomNet, as trained"
FOUR, TWO = "uniform, four blocks", "uniform, two blocks"
TAUGHT, ALONE = "student with the teacher, as trained", "student alone, as trained"


def training_batches(config: ExperimentConfig, data: Path, count: int) -> list[Batch]:
    dataset = dataset_of(config, data, "train", training=True)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    size = config.training.batch_size
    pairs = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    return [collate([dataset[i] for i in pair]) for pair in pairs[:count]]


def stepper(
    config: ExperimentConfig, weights: Path | None, teacher: Teacher | None, batches: list[Batch]
) -> Callable[..., Tensor]:
    """A function that does one whole training step with the next batch and returns its loss.

    Its learning rate is 0: depths stay as they are.
    """
    torch.manual_seed(0)
    module = LocalizerModule(config, (), teacher=teacher)
    if weights is not None:
        module.model.load_state_dict(load_run(weights).model.state_dict())
    module.train()
    optimizer = torch.optim.AdamW(decay_groups(module.model, config.training.weight_decay), lr=0.0)
    turn = itertools.cycle(batches)
    fresh = copy.deepcopy(module.objective)

    def step(anew: bool = False) -> Tensor:
        if anew:  # what it has seen before scales the loss: the number of positives, averaged
            module.objective = copy.deepcopy(fresh)
        batch = next(turn)
        outputs = module.model(*module._padded(batch))
        taught = () if teacher is None else (teacher(batch.features, batch.mask),)
        losses = module.objective(outputs, batch.segments, batch.labels, 1.0, *taught)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), config.training.clip_norm)
        optimizer.step()
        return losses["loss"].detach()

    return step


def steppers(
    runs: Any, seed: int, twins: dict[str, list[str]], batches: list[Batch]
) -> dict[str, Callable[..., Tensor]]:
    own, student = runs.config("teacher", seed), runs.config("alone", seed)
    teacher = Teacher(load_run(runs.path("teacher", seed)).model)  # type: ignore[arg-type]
    four, two = (override_config(own, settings) for settings in twins.values())
    return {
        BASE: stepper(runs.config("actionformer", seed), None, None, batches),
        FIRST: stepper(own, None, None, batches),
        LAST: stepper(own, runs.path("teacher", seed), None, batches),
        FOUR: stepper(four, None, None, batches),
        TWO: stepper(two, None, None, batches),
        TAUGHT: stepper(student, runs.path("taught", seed), teacher, batches),
        ALONE: stepper(student, runs.path("alone", seed), None, batches),
    }


def check_loss(name: str, step: Callable[..., Tensor], batches: int) -> None:
    """The step's loss is the one that the ops' definitions give on the same batch with the same random numbers."""

    def seeded() -> Tensor:
        torch.manual_seed(0)
        return step(anew=True)

    given = [seeded() for _ in range(batches)]
    parity.same(name, given, parity.by_definition(lambda: [seeded() for _ in range(batches)]), rtol=1e-4, atol=1e-5)


def ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Of the same rounds, whose batches are the same."""
    return summary([a / b for a, b in zip(times[one], times[other], strict=True)])


def over_the_training(times: dict[str, list[float]], notes: list[dict[str, float]], twin: str) -> float:
    """TemporalZoomNet over a twin for a whole training: between first and last state as far as the counted work is."""
    share = [training_work.mean_of(part, "self") / training_work.mean_of(part, "four blocks") for part in
             (notes[:1], notes[-max(len(notes) // 10, 1):], notes)]  # fmt: skip
    between = (share[2] - share[1]) / (share[0] - share[1]) if share[0] > share[1] else 1.0
    first, last = (statistics.median(times[name]) for name in (FIRST, LAST))
    return (last + between * (first - last)) / statistics.median(times[twin])


def measure(runs: Any, seed: int, options: Any, twins: dict[str, list[str]], counted: Path) -> None:
    torch.set_num_threads(2)
    batches = training_batches(runs.config("teacher", seed), options.data, 2 if options.smoke else BATCHES)
    steps = steppers(runs, seed, twins, batches)
    for name, step in steps.items():
        check_loss(name, step, len(batches))
    rounds = (2, 2) if options.smoke else (len(batches), 6 * len(batches))
    times = interleaved(steps, "cpu", rounds, seconds=240)
    notes = training_work.course(counted)
    ratios = {f"{name} / {BASE}": ratio(times, name, BASE) for name in times if name != BASE}
    ratios |= {f"{one} / {twin}": ratio(times, one, twin) for twin in (FOUR, TWO) for one in (FIRST, LAST)}
    whole = {twin: over_the_training(times, notes, twin) for twin in (FOUR, TWO)}
    content = {
        "seconds": {name: summary(of) for name, of in times.items()}, "ratios": ratios, "whole training": whole,
        "batches": len(batches),
    }  # fmt: skip
    write(options.out, "distillation_timing", content, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    rows = [
        [name, f"{1e3 * s['median']:.0f} ms ({1e3 * s['q1']:.0f} to {1e3 * s['q3']:.0f})"]
        for name, s in content["seconds"].items()
    ]
    ratios = [[name, f"{s['median']:.2f} ({s['q1']:.2f} to {s['q3']:.2f})"] for name, s in content["ratios"].items()]
    return "\n".join([
        "# Seconds per training step on HAPT", "",
        f"`python -m benchmarks.evidence.distillation --data hapt --timing`: whole steps (forward, losses, backward, AdamW) on "
        f"{content['batches']} training batches, interleaved, {content['seconds'][BASE]['rounds']} rounds, 2 threads; median "
        "(quartiles).", "",
        table(["", "a step"], rows),
        table(["of the same rounds", "ratio"], ratios),
        "A whole training of TemporalZoomNet over one of a twin, between first and last step by the counted "
        "multiply-adds: " + ", ".join(f"{v:.2f} of {name}" for name, v in content["whole training"].items()) + ".", "",
    ])  # fmt: skip

"""Counting the multiply-adds of a training while it runs, beside networks that see the same batches.

A step is counted by its forward pass in training mode, with the step's own random numbers (a recording that skips a block
costs nothing there). A network that learns does three times as many multiply-adds as its forward pass
(:func:`tzn.profiling.count_multiply_adds`), a teacher that answers does once as many.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tzn.data.dataset import Batch
from tzn.files import atomic_write
from tzn.models import ActionFormer, Localizer
from tzn.profiling import count_multiply_adds
from tzn.training.module import LocalizerModule

LEARNS = 3  # forward passes that forward and backward are worth
FILE = "work.json"


def forward_work(model: Localizer, features: Tensor, mask: Tensor) -> tuple[int, Any]:
    """Multiply-adds of the forward pass as it would be now, and its outputs; random numbers are put back."""
    inputs = model.padded(features, mask) if isinstance(model, ActionFormer) else (features, mask)
    with torch.random.fork_rng(devices=[]):
        outputs, count = count_multiply_adds(lambda: model(*inputs))
    return count, outputs


@contextlib.contextmanager
def counted(run: Path, beside: Mapping[str, Localizer], every: int) -> Iterator[None]:
    """Inside, every ``every``-th step of a training notes its forward multiply-adds in ``run / FILE``.

    Args:
        beside: networks by name that are counted on the same batches; they learn nothing.
    """
    original = LocalizerModule.training_step
    path = run / FILE
    notes = json.loads(path.read_text()) if path.is_file() else {}  # a resumed run repeats some steps, with equal notes

    def training_step(self: LocalizerModule, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_step % every == 0:
            notes[str(self.global_step)] = note(self, batch, beside)
            with atomic_write(path) as file:
                json.dump(notes, file)
        return original(self, batch, batch_idx)

    LocalizerModule.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        LocalizerModule.training_step = original  # type: ignore[method-assign]


def note(module: LocalizerModule, batch: Batch, beside: Mapping[str, Localizer]) -> dict[str, float]:
    count, outputs = forward_work(module.model, batch.features, batch.mask)
    found: dict[str, float] = {"self": count}
    if not isinstance(module.model, ActionFormer):
        tau = outputs.trunk.depths.tau
        found["depth"] = float(tau[batch.mask].mean())
    if module.teacher is not None:
        found["teacher"] = forward_work(module.teacher.model, batch.features, batch.mask)[0]
    return found | {name: forward_work(model, batch.features, batch.mask)[0] for name, model in beside.items()}


def course(run: Path) -> list[dict[str, float]]:
    """The notes of a run in the order of its steps, "step" among them.

    Raises:
        SystemExit: the run was trained without counting.
    """
    path = run / FILE
    if not path.is_file():
        raise SystemExit(f"{run}: trained without counting ({FILE} is missing); remove it, or choose other --runs")
    notes = json.loads(path.read_text())
    return [{"step": int(step), **notes[step]} for step in sorted(notes, key=int)]


def mean_of(notes: list[dict[str, float]], name: str) -> float:
    return sum(n[name] for n in notes) / len(notes)

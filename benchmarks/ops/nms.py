"""Suppression beside the original's serial loop, called class by class as the original does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.goals import Goal, Measurement
from benchmarks.lib.parity import by_definition, checked
from benchmarks.lib.timing import medians
from benchmarks.peers.serial_nms import serial_soft_nms
from tzn import ops
from tzn.reference.nms import vote_segments

CLASSES, STEPS, KEPT = 20, 2304, 200
IOU, SIGMA, MIN_SCORE, VOTING = 0.1, 0.5, 0.001, 0.75


def candidates(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segments of six pyramid levels, many weak scores and few strong ones."""
    generator = torch.Generator().manual_seed(9)
    level = torch.randint(0, 6, (number,), generator=generator)
    centre = torch.rand(number, generator=generator) * STEPS
    half = 2.0**level * (1 + 3 * torch.rand(number, generator=generator))
    scores = torch.rand(number, generator=generator) ** 3
    return (
        torch.stack([centre - half, centre + half], 1),
        scores,
        torch.randint(0, CLASSES, (number,), generator=generator),
    )


def per_class(segments: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    parts = [
        serial_soft_nms(segments[labels == c], scores[labels == c], IOU, SIGMA, MIN_SCORE) for c in labels.unique()
    ]
    kept, score = (torch.cat(part) for part in zip(*parts, strict=True))
    score, order = score.sort(descending=True, stable=True)
    return kept[order[:KEPT]], score[:KEPT]


def class_agnostic(segments: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    kept, score = serial_soft_nms(segments, scores, IOU, SIGMA, MIN_SCORE)
    return vote_segments(kept[:KEPT], segments, scores, VOTING, labels[:KEPT]), score[:KEPT]


def measure(number: int, *, multiclass: bool, least: float, aim: float) -> Measurement:
    given = candidates(number)

    def ours() -> tuple[Tensor, Tensor]:
        voting = 0.0 if multiclass else VOTING
        return ops.batched_nms(
            *given, IOU, MIN_SCORE, KEPT, multiclass=multiclass, sigma=SIGMA, voting_thresh=voting
        )[:2]  # fmt: skip

    peer = per_class if multiclass else class_agnostic
    runs: dict[str, Callable[[], Any]] = {"tzn": ours, "serial loop": lambda: peer(*given)}
    seconds = medians(checked(runs, by_definition(ours), rtol=1e-5, atol=1e-3))
    ratio = seconds["serial loop"]["median"] / seconds["tzn"]["median"]
    kind = "multi-class (20) soft-NMS" if multiclass else "class-agnostic soft-NMS + voting"
    each = 1e9 * seconds["tzn"]["median"] / number
    note = f"{each:.0f} ns a candidate; the serial loop touches {number:,} of them at each pick"
    return Measurement(
        f"{kind}, {number:,} candidates", seconds, [Goal("faster than the serial loop", ratio, least, aim)], note
    )

"""Who gets depth: ways of giving a network's refinement layers to steps, from blind to all-knowing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.runs import TIOU
from tzn.config_loading import config_from_dict
from tzn.data.dataset import RecordingDataset, load_split_annotations, select_recordings
from tzn.data.stores import located
from tzn.inference.evaluate_checkpoint import CheckpointEvaluation, evaluate_checkpoint
from tzn.models import Outputs, TemporalZoomNet
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.training.objective import boundary_targets

STRETCH = 16  # steps that random depth is given to at a time

Depth = Callable[[Tensor], Tensor]  # features [1, T, C] to tau [1, T]


class GivenDepth(TemporalZoomNet):
    """The same network with tau from outside."""

    given: Depth | None = None

    def trunk(self, features: Tensor, mask: Tensor, **options: object):  # type: ignore[no-untyped-def,override]
        if self.given is not None:
            options = {"tau": self.given(features), "last_exit": options.get("last_exit", False)}
        return super().trunk(features, mask, **options)  # type: ignore[arg-type]


@dataclasses.dataclass
class Example:
    """One test recording: what the network saw, what is true, and what every depth says."""

    features: Tensor  # [1, T, C]
    segments: Tensor  # [N, 2] in grid steps
    apart: Tensor  # [T] steps to the nearest true boundary
    losses: Tensor  # [L + 1, T] boundary loss in nats (and class loss) of every step at uniform depth l / L


def layers_of(model: TemporalZoomNet) -> int:
    return model.config.zoom_layers or model.config.refinement_layers


def step_losses(model: TemporalZoomNet, outputs: Outputs, segments: Tensor, exit_: int | None = None) -> Tensor:
    """Laplace negative log-likelihood of the boundary fields ``[T]``, 0 on steps far from boundaries."""
    radius = model.config.boundary_radius
    distance, scale = outputs.distance, outputs.distance_scale
    if exit_ is not None:
        distance, scale, _ = outputs.trunk.exits[exit_]
    assert distance is not None and scale is not None
    target = boundary_targets([segments], distance.shape[2], radius, model.config.boundary_fields)
    value = (distance - target).abs() / scale + torch.log(2 * scale)
    return (value * (target.abs() < radius)).sum(1)[0]


@torch.no_grad()
def examples(checkpoint: LoadedCheckpoint, data: Path, split: str = "test") -> list[Example]:
    """Every recording of the split with the loss of every uniform depth."""
    config = config_from_dict(checkpoint.config)
    annotations = load_split_annotations(data, config.data, checkpoint.classes)
    dataset = RecordingDataset(
        annotations, select_recordings(annotations, config.data, split), located(data, config.data.features), config.data,
        input_dim=config.stored_dim, training=False,
    )  # fmt: skip
    model = checkpoint.model.eval()
    assert isinstance(model, TemporalZoomNet)
    layers, found = layers_of(model), []
    for i in range(len(dataset)):
        example = dataset[i]
        features, segments = example.features.unsqueeze(0), example.segments
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        if model.config.zoom_layers:  # one pass: an exit is what a network of that depth would have said
            outputs = TemporalZoomNet.forward(model, features, mask, tau=torch.ones(mask.shape))
            losses = [step_losses(model, outputs, segments, e) for e in range(layers + 1)]
        else:
            losses = [
                step_losses(
                    model,
                    TemporalZoomNet.forward(model, features, mask, tau=torch.full(mask.shape, e / layers)),
                    segments,
                )
                for e in range(layers + 1)
            ]
        time = torch.arange(mask.shape[1], dtype=torch.float32)
        ends = segments.flatten()
        apart = (time[:, None] - ends).abs().min(1).values if ends.numel() else torch.full_like(time, torch.inf)
        found.append(Example(features, segments, apart, torch.stack(losses)))
    return found


def best(scores: Tensor, share: float) -> Tensor:
    """1 on the ``share`` of steps with the largest scores, 0 elsewhere."""
    count = round(share * scores.numel())
    chosen = torch.zeros_like(scores)
    chosen[scores.argsort(descending=True, stable=True)[:count]] = 1.0
    return chosen


def spread(scores: Tensor, width: int) -> Tensor:
    """Mean over ``width`` steps around: a step is refined by what its neighbours know."""
    return torch.nn.functional.avg_pool1d(scores[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]


def policies(found: list[Example], seed: int = 0) -> dict[str, Callable[[float], list[Tensor]]]:
    """By name: mean depth to tau ``[T]`` of every example."""
    generator = np.random.default_rng(seed)
    noise = [
        torch.from_numpy(np.repeat(generator.random(len(e.apart) // STRETCH + 1), STRETCH)[: len(e.apart)]).float()
        for e in found
    ]
    gain = [spread(e.losses[0] - e.losses[-1], 5) for e in found]
    return {
        "uniform": lambda b: [torch.full_like(e.apart, b) for e in found],
        "random": lambda b: [best(n, b) for n in noise],
        "oracle gain": lambda b: [best(g, b) for g in gain],
        "near true boundaries": lambda b: [best(-e.apart, b) for e in found],
    }


def under(
    checkpoint: LoadedCheckpoint, data: Path, found: list[Example], tau: list[Tensor] | None, *, split: str = "test",
    threshold: float | None = None, budget: float | None = None,
) -> CheckpointEvaluation:  # fmt: skip
    """The split scored with tau given for every recording (None: the network's own)."""
    model = checkpoint.model
    model.__class__ = GivenDepth
    assert isinstance(model, GivenDepth)
    if tau is not None:
        following = iter(tau)  # recordings come in the order of the split, one pass each
        model.given = lambda x: next(following).unsqueeze(0)
    config = config_from_dict(checkpoint.config)
    inference = dataclasses.replace(config.inference, chunk=1 << 30, budget=budget, threshold=threshold)
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, tiou=TIOU), inference=inference
    )
    try:
        return evaluate_checkpoint(checkpoint, data, split=split, config=config, progress=False, keep_traces=True)
    finally:
        model.given = None
        model.__class__ = TemporalZoomNet

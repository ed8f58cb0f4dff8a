"""What a training step and a detection cost on this machine: a few of each, with real crops."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from tzn.config import ExperimentConfig
from tzn.data.dataset import RecordingDataset, collate, fit_standardisation, load_split_annotations, select_recordings
from tzn.data.stores import located
from tzn.errors import LimitWarning
from tzn.inference.localize import localize
from tzn.models import ActionFormer, ActionFormerConfig, Localizer, build_model
from tzn.planning.plan import Cost
from tzn.training.module import decay_groups
from tzn.training.objective import ActionFormerObjective, Objective

TIMED = 3  # steps; the first of a process, which also warms everything up, comes before


def measure_cost(folder: Path, device: str = "cpu") -> Callable[[ExperimentConfig], Cost]:
    """A function that times configurations on a data folder; features are read once.

    Seconds are CPU seconds of this process (all threads), so that other work on the machine does not count; on other
    devices those of the wall clock.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    kept: list[RecordingDataset] = []

    def dataset(config: ExperimentConfig) -> RecordingDataset:
        if not kept or kept[0].config != config.data:
            annotations = load_split_annotations(folder, config.data)
            recordings = select_recordings(annotations, config.data, "train")
            features, seed = located(folder, config.data.features), config.training.seed
            made = RecordingDataset(
                annotations, recordings, features, config.data, config.stored_dim, training=True, seed=seed
            )
            made.channel_stats = fit_standardisation(made)
            kept[:] = [made]
        return kept[0]

    def measure(config: ExperimentConfig) -> Cost:
        data = dataset(config)
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = build_model(config.model).to(device)
        mean, std = fit_standardisation(data)
        model.feature_mean.copy_(mean)
        model.feature_std.copy_(std)
        cost = Cost(
            _step_seconds(model, config, data, device, clock), _detection_seconds(model, config, data, device, clock)
        )
        torch.random.set_rng_state(state)
        return cost

    return measure


def _step_seconds(
    model: Localizer, config: ExperimentConfig, data: RecordingDataset, device: str, clock: Callable[[], float]
) -> float:
    """Seconds of an optimiser step, averaged over the fall of the depth from 1 to its target."""
    c = config.training
    kind = ActionFormerObjective if isinstance(config.model, ActionFormerConfig) else Objective
    objective = kind(config.model, c).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(decay_groups(model, c.weight_decay), lr=1e-6)
    model.train()

    def once(depth: float | None, epoch: int) -> float:
        data.set_epoch(epoch)
        begin = clock()
        size = min(c.batch_size, len(data))
        batch = collate([data[(epoch * size + i) % len(data)] for i in range(size)]).to(device)
        if isinstance(model, ActionFormer):
            outputs = model(*model.padded(batch.features, batch.mask))
        elif depth is None:
            outputs = model(batch.features, batch.mask)
        else:
            outputs = model(batch.features, batch.mask, tau=torch.full(batch.mask.shape, depth, device=device))
        loss = objective(outputs, batch.segments, batch.labels, 0.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return clock() - begin

    once(None, 0)
    full = statistics.median(once(None, epoch) for epoch in range(1, TIMED + 1))
    if isinstance(model, ActionFormer) or not config.model.refinement_layers or c.target_depth == 1:  # type: ignore[union-attr]
        return full
    target = statistics.median(once(c.target_depth, epoch) for epoch in range(1, TIMED + 1))
    falling = min(c.depth_warmup, 1.0)
    return falling * (full + target) / 2 + (1 - falling) * target


def _detection_seconds(
    model: Localizer, config: ExperimentConfig, data: RecordingDataset, device: str, clock: Callable[[], float]
) -> float:
    """Seconds per grid step of making detections, of an untrained network (which has the most candidates)."""
    model.eval()
    seconds, steps = 0.0, 0
    for index in range(min(2, len(data.recordings))):
        features, grid = data.raw(index)
        features = features[: 2 * config.data.max_length].to(device)
        begin = clock()
        with warnings.catch_warnings():  # an untrained network finds something everywhere
            warnings.simplefilter("ignore", LimitWarning)
            localize(model, features, grid, float(grid.to_seconds(len(features))), config.inference)
        seconds, steps = seconds + clock() - begin, steps + len(features)
    return seconds / max(steps, 1)

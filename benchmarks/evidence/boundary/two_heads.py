"""Two heads on the frozen features of a trained localizer: boundary classes, and boundary distances. Lengths in steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.evidence.boundary.fields import ESTIMATORS, peaks
from benchmarks.lib.runs import dataset_of
from tzn import ops
from tzn.config_loading import config_from_dict
from tzn.models import ActionFormer, Localizer
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.nn import BoundaryDistanceHead
from tzn.nn.conv import ConvTower
from tzn.nn.losses import boundary_distance_loss
from tzn.training.objective import boundary_targets

RADIUS = 8.0
WIDTH, LAYERS = 64, 2
LENGTH, BATCH, RATE = 512, 8, 1e-3
LEAST = 0.1  # a peak of lower probability is no boundary


@dataclasses.dataclass
class Recording:
    features: Tensor  # [T, C] frozen
    segments: Tensor  # [N, 2]
    labels: Tensor  # [N]
    step: float  # seconds per step


@torch.no_grad()
def frozen(model: Localizer, features: Tensor) -> Tensor:
    """Full-rate pyramid features ``[T, C]`` of a recording ``[T, input_dim]``.

    TemporalZoomNet: what its own boundary head reads, top-down path included. ActionFormer: the finest level.
    """
    steps = features.shape[0]
    inputs = features.unsqueeze(0), torch.ones(1, steps, dtype=torch.bool)
    if isinstance(model, ActionFormer):
        return model(*model.padded(*inputs)).features[0][0, :steps].contiguous()
    found = model.trunk(*inputs).boundary_features
    if found is None:
        raise ValueError("boundary_fields = none: this model has no full-rate pyramid features")
    return found[0].contiguous()


def recordings(checkpoint: LoadedCheckpoint, data: Path, held_out: Sequence[str], split: str) -> list[Recording]:
    """Frozen features of a split; "validation" are the training recordings that match ``held_out``."""
    config = config_from_dict(checkpoint.config)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=tuple(held_out)))
    dataset = dataset_of(config, data, split, checkpoint.classes)
    found = []
    for i in tqdm(range(len(dataset)), desc=f"features, {split}", leave=False, mininterval=1):
        example = dataset[i]
        features = frozen(checkpoint.model, example.features)
        found.append(Recording(features, example.segments, example.labels, float(example.grid.step)))
    return found


class Heads(nn.Module):
    """One distance head, and one classifier of starts and ends per plateau width, all of the same width and depth."""

    def __init__(self, channels: int, widths: Sequence[float]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.distance = BoundaryDistanceHead(channels, 2, WIDTH, LAYERS, RADIUS)
        self.classifiers = nn.ModuleList(ConvTower(channels, WIDTH, 2, LAYERS) for _ in widths)
        for tower in self.classifiers:
            nn.init.constant_(tower.output.bias, -4.0)  # boundaries are rare

    def losses(self, x: Tensor, mask: Tensor, segments: Sequence[Tensor]) -> Tensor:
        """Sum of all heads' losses; they share no parameters."""
        target = boundary_targets(segments, mask.shape[1], RADIUS, "start_end")  # [B, 2, T]
        near = mask.unsqueeze(1).expand_as(target)
        distance, scale = self.distance(x, mask)
        total, steps = boundary_distance_loss(distance, scale, target, RADIUS, near, kind="laplace", slope_weight=0.1)
        total = total / steps.clamp(min=1)
        for kappa, tower in zip(self.widths, self.classifiers, strict=True):
            inside = (target.abs() <= max(kappa / 2, 0.5)).float()
            loss = F.binary_cross_entropy_with_logits(tower(x, mask).transpose(1, 2), inside, reduction="none")
            total = total + (loss * near).sum() / inside.sum().clamp(min=1)
        return total


def crops(data: Sequence[Recording], generator: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch of random crops of equal length: features, mask, segments in the crop's steps."""
    length = min(LENGTH, *(r.features.shape[0] for r in data))
    features, segments = [], []
    for i in torch.randint(len(data), (BATCH,), generator=generator).tolist():
        one = data[i]
        first = int(torch.randint(one.features.shape[0] - length + 1, (1,), generator=generator))
        features.append(one.features[first : first + length])
        segments.append(one.segments - first)
    return torch.stack(features), torch.ones(BATCH, length, dtype=torch.bool), segments


def train_heads(data: Sequence[Recording], widths: Sequence[float], steps: int, seed: int) -> Heads:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(data[0].features.shape[1], widths)
    groups = [heads.distance, *heads.classifiers]
    optimizer = torch.optim.AdamW(heads.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in tqdm(range(steps), desc="two heads", leave=False, mininterval=1):
        loss = heads.losses(*crops(data, generator))
        optimizer.zero_grad()
        loss.backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return heads.eval()


@dataclasses.dataclass
class Errors:
    """M true boundaries read off by one estimator.

    Attributes:
        error: ``[M]`` seconds, NaN where nothing was found within the radius.
        std: ``[M]`` seconds, claimed; NaN where the estimator claims none.
    """

    error: Tensor
    std: Tensor


@torch.no_grad()
def read_off(heads: Heads, data: Sequence[Recording]) -> tuple[dict[str, Errors], Tensor]:
    """Errors by estimator near every true start and end, and the boundaries' classes ``[M]``.

    Each head picks what it is surest of within the radius of the true boundary: the highest probability that is a local
    maximum, or the crossing of least standard error.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    labels = []
    for one in data:
        steps = one.features.shape[0]
        inputs = one.features.unsqueeze(0), torch.ones(1, steps, dtype=torch.bool)
        distance, scale = (f[0] for f in heads.distance(*inputs))
        scores = [tower(*inputs)[0].sigmoid().T for tower in heads.classifiers]
        for side in (0, 1):
            b = one.segments[:, side]
            inside = (b >= 0) & (b <= steps - 1)
            b = b[inside]
            labels.append(one.labels[inside])
            for name in ESTIMATORS:
                read = nearest_crossings(distance[side], scale[side], name, b)
                found.setdefault(name, []).append(tuple(one.step * v for v in read))
            for kappa, score in zip(heads.widths, scores, strict=True):
                for name, error in nearest_peaks(score[side], kappa, b).items():
                    key = f"{name}, kappa {kappa:g}"
                    found.setdefault(key, []).append((one.step * error, torch.full_like(error, torch.nan)))
    errors = {name: Errors(*map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}
    return errors, torch.cat(labels)


def nearest_crossings(distance: Tensor, scale: Tensor, estimator: str, b: Tensor) -> tuple[Tensor, Tensor]:
    """Error and claimed standard error ``[M]`` in steps of the surest crossing within the radius of each of ``b``."""
    found = ops.boundary_crossings(distance.unsqueeze(0), scale.unsqueeze(0), estimator=estimator)
    position, std = found.position[0], found.std[0]
    if not len(position) or not len(b):
        return torch.full_like(b, torch.nan), torch.full_like(b, torch.nan)
    error = position - b[:, None]
    best = torch.where(error.abs() <= RADIUS, std, torch.inf).min(dim=1)
    chosen = error.gather(1, best.indices[:, None]).squeeze(1)
    there = best.values.isfinite()
    return torch.where(there, chosen, torch.nan), torch.where(there, best.values, torch.nan)


def nearest_peaks(score: Tensor, kappa: float, b: Tensor) -> dict[str, Tensor]:
    """Errors ``[M]`` in steps of the highest local maximum of ``score`` ``[T]`` within the radius of each of ``b``."""
    padded = F.pad(score, (1, 1), value=-1.0)
    peak = (score >= padded[:-2]) & (score >= padded[2:]) & (score >= LEAST)
    times = torch.arange(len(score))
    allowed = peak & ((times - b[:, None]).abs() <= RADIUS)  # [M, T]
    # The score around each chosen peak alone: peaks() then reads off that one.
    best = torch.where(allowed, score, -1.0).argmax(dim=1)
    reach = (times - best[:, None]).abs() <= max(kappa, 2.0)
    only = torch.where(reach & ((times == best[:, None]) | (score < score[best][:, None])), score, 0.0)
    there = allowed.any(dim=1)
    return {name: torch.where(there, position - b, torch.nan) for name, position in peaks(only, kappa).items()}

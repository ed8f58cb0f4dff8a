"""Part 2 of variance.py: two heads trained on the same signals. All lengths in frames."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.evidence.boundary.fields import ESTIMATORS, noise, peaks, precision, read_boundary, sampled, summary
from tzn.nn import BoundaryDistanceHead
from tzn.nn.conv import ConvTower
from tzn.nn.losses import boundary_distance_loss

FRAMES = 96
BATCH = 64
RATE = 3e-3
STEM = 16  # channels


class WithContext(nn.Module):
    """A head behind a convolution over 17 steps, so that it sees the whole of the widest ramp."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(1, STEM, 17, padding=8), head

    def forward(self, signal: Tensor, mask: Tensor) -> Any:
        return self.head(self.stem(signal.transpose(1, 2)).relu().transpose(1, 2), mask)


def ramps(
    kappa: float, sigma: float, kind: str, stride: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Signals ``[N, T, 1]`` at every ``stride``-th frame, boundaries ``[N]``, and the Cramer-Rao bound ``[N]`` of each."""
    b = FRAMES / 3 + torch.rand(count, generator=generator) * FRAMES / 3
    offset = torch.arange(FRAMES, dtype=torch.float32) - b[:, None]
    clean = torch.sigmoid(4 * offset / kappa)  # from 12 % to 88 % over kappa frames
    signal = sampled(clean + sigma * noise(kind, (count, FRAMES), generator), stride)
    slope = sampled(4 / kappa * clean * (1 - clean), stride).double()
    information = precision(kind, slope.shape[1], stride)
    return signal.unsqueeze(-1), b, (sigma**2 / ((slope @ information) * slope).sum(1)).float()


def reach(kappa: float, stride: int) -> float:
    """Radius in steps of the distance head, and within which a boundary is sought: kappa, at least 8 frames and 4 steps."""
    return max(4.0, max(8.0, kappa) / stride)


def train_heads(
    kappa: float, sigma: float, kind: str, stride: int, steps: int, generator: torch.Generator
) -> tuple[nn.Module, nn.Module]:
    """A classifier and a distance head of the same size on the same batches."""
    radius = reach(kappa, stride)
    classifier = WithContext(ConvTower(STEM, 32, 1, 2))
    distance_head = WithContext(BoundaryDistanceHead(STEM, 1, 32, 2, radius))
    heads = (classifier, distance_head)
    optimizer = torch.optim.AdamW([p for head in heads for p in head.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    times, mask = torch.arange(0, FRAMES, stride), torch.ones(BATCH, -(-FRAMES // stride), dtype=torch.bool)
    for _ in range(steps):
        signal, b, _ = ramps(kappa, sigma, kind, stride, BATCH, generator)
        offset = (times - b[:, None]) / stride
        near = (offset.abs() <= max(kappa / stride / 2, 0.5)).float()
        distance, scale = distance_head(signal, mask)
        target = offset.clamp(-radius, radius).unsqueeze(1)
        summed, count = boundary_distance_loss(
            distance, scale, target, radius, mask.unsqueeze(1), kind="laplace", slope_weight=0.1
        )
        loss = F.binary_cross_entropy_with_logits(classifier(signal, mask).squeeze(-1), near) + summed / count
        optimizer.zero_grad()
        loss.backward()
        for head in heads:  # apart: a large gradient of one must not slow the other down
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return classifier.eval(), distance_head.eval()


def trained_row(kind: str, kappa: float, stride: int, steps: int, trials: int, seed: int) -> dict[str, Any]:
    """Errors of both heads' estimators on ``trials`` fresh signals of noise 0.1.

    Read off within the radius of the boundary; "wrong" is the share of signals whose surest reading anywhere is not there
    (distances are not learnt farther off, so nothing keeps a field from crossing zero there).
    """
    sigma, generator = 0.1, torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    classifier, head = train_heads(kappa, sigma, kind, stride, steps, generator)
    signal, b, limit = ramps(kappa, sigma, kind, stride, trials, generator)
    mask = torch.ones(signal.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        score = classifier(signal, mask).squeeze(-1).sigmoid()
        distance, scale = (field.squeeze(1) for field in head(signal, mask))
    near = (b / stride, reach(kappa, stride))
    inside = (torch.arange(score.shape[1]) - near[0][:, None]).abs() <= near[1]
    window = max(2, round(max(4, kappa / 2) / stride))
    found, anywhere = peaks(torch.where(inside, score, 0.0), kappa / stride), peaks(score, kappa / stride)
    for name in ESTIMATORS:
        found[name], _ = read_boundary(distance, scale, name, window, near)
        anywhere[name], _ = read_boundary(distance, scale, name, window)
    row: dict[str, Any] = {
        "noise": kind,
        "sigma": sigma,
        "kappa": kappa,
        "stride": stride,
        "bound": float(limit.mean()),
    }
    for name, position in found.items():
        row[name] = summary(stride * position - b)
        row[name]["efficiency"] = row["bound"] / row[name]["mse"]
        right = (anywhere[name] - near[0]).abs() <= near[1]
        row[name]["wrong"] = float((~right).float().mean())
    return row

"""Changes of the stream and of its training that others publish, each beside the plain stream on the known-answer sets.

The plain stream is that of ``known_answer``, seed by seed with the same data. Its thresholds give a curve of error at hard
boundaries against multiply-adds; what a change is worth is the difference of two curves at equal multiply-adds. What does not
help by more than two standard errors is in no package code; it stands here, so that its numbers can be made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.evidence.zoom import known_answer
from benchmarks.evidence.zoom.known_answer import BATCH, LAYERS, RADIUS, TESTED, THRESHOLDS, TRAINED, WIDTH, make, point
from benchmarks.planning import Store
from tzn import ops
from tzn.nn import zoom
from tzn.nn.losses import boundary_distance_loss, laplace_divergence, reach_loss
from tzn.nn.zoom import BoundaryStream, Zoomed, training_shift
from tzn.profiling import count_multiply_adds

SHARES = (0.05, 0.1, 0.2)  # of the multiply-adds between no block and all blocks everywhere
SCALES = (1, 2, 4)
RANK = 16
Loss = Callable[[Zoomed, Tensor, Tensor], Tensor]


def plain(zoomed: Zoomed, target: Tensor, mask: Tensor) -> Tensor:
    """As the package trains: mean over exits of the Laplace loss per step."""
    both = mask.unsqueeze(1).expand_as(target)
    sums = [
        boundary_distance_loss(e.distance, e.scale, target, RADIUS, both, kind="laplace", slope_weight=0.1)
        for e in zoomed.exits
    ]
    return torch.stack([total / count for total, count in sums]).mean()


def multi_scale(zoomed: Zoomed, target: Tensor, mask: Tensor) -> Tensor:
    """The same of means over 1, 2 and 4 steps: a window that lies on one branch of the target, scale in the mean, too."""
    losses = []
    for scale in SCALES:
        at = target.unfold(2, scale, scale)
        clean = (at.abs() < RADIUS).all(-1) & ((at[..., -1] - at[..., 0] - (scale - 1)).abs() < 1e-3)
        for e in zoomed.exits:
            distance, spread = (F.avg_pool1d(x, scale, scale) for x in (e.distance, e.scale))
            total, count = boundary_distance_loss(
                distance, spread, at.mean(-1), RADIUS, clean, kind="laplace", slope_weight=0.1 if scale == 1 else 0.0
            )
            losses.append(total / count)
    return torch.stack(losses).mean()


def distilled(zoomed: Zoomed, target: Tensor, mask: Tensor) -> Tensor:
    """The last exit's distance and scale as soft targets of the exits before (D-FINE's localization self-distillation)."""
    near, last = target.abs() < RADIUS, zoomed.exits[-1]
    wanted = last.distance.detach()[near], last.scale.detach()[near]
    pulls = [laplace_divergence(e.distance[near], e.scale[near], *wanted) / near.sum() for e in zoomed.exits[:-1]]
    return plain(zoomed, target, mask) + torch.stack(pulls).mean()


class StandIn(nn.Module):
    """A block, and for what its gate leaves out a map of rank 16."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.norm = block, nn.LayerNorm(WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
        rest = ((1 - gate) * mask).unsqueeze(-1)
        return self.block(x, mask, gate) + rest * self.up(self.down(self.norm(x)))  # type: ignore[no-any-return]


def stand_in() -> BoundaryStream:
    stream = known_answer.stream()
    stream.blocks = nn.ModuleList(StandIn(block) for block in stream.blocks)
    return stream


class Variant:
    def __init__(
        self, loss: Loss = plain, build: Callable[[], BoundaryStream] = known_answer.stream, ramp: float = zoom.RAMP
    ) -> None:
        self.loss, self.build, self.ramp = loss, build, ramp

    def train(self, seed: int) -> BoundaryStream:
        torch.manual_seed(seed)
        generator, stream = torch.Generator().manual_seed(seed), self.build()
        optimizer = torch.optim.AdamW(stream.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TRAINED)
        for _ in range(TRAINED):
            made = make(BATCH, generator)
            mask = torch.ones(BATCH, made.signal.shape[1], dtype=torch.bool)
            zoomed = stream(made.signal, torch.zeros(1), mask, shift=training_shift(BATCH, mask.device))
            near = (made.target.abs() < RADIUS).sum()
            loss = self.loss(zoomed, made.target, mask)
            loss = loss + 0.3 * reach_loss(zoomed.exits, made.target, mask, RADIUS) / near
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(stream.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return stream.eval()

    def run(self, seed: int) -> list[dict[str, Any]]:
        with mock.patch.object(zoom, "RAMP", self.ramp):
            stream = self.train(seed)
            made = make(TESTED, torch.Generator().manual_seed(999))
            mask = torch.ones(made.signal.shape[:2], dtype=torch.bool)
            settings = {
                f"uniform {b}": {"gates": ops.depth_gates(torch.full(mask.shape, b / LAYERS), LAYERS)}
                for b in range(LAYERS + 1)
            }
            for threshold in THRESHOLDS:
                shift = -torch.tensor(threshold).log().expand(len(mask), 1)
                settings[f"zoom {threshold:g}"] = {"shift": shift}
            points = []
            for label, options in settings.items():
                ran = functools.partial(stream, made.signal, torch.zeros(1), mask, **options)
                points.append(point(label, *count_multiply_adds(ran), made, made.apart.abs()))
            return points


VARIANTS = {
    "ramp of log 2 in place of log 4": Variant(ramp=float(np.log(2))),
    "multi-scale loss, 1, 2 and 4 steps": Variant(multi_scale),
    "last exit distilled into the others": Variant(distilled),
    "rank-16 stand-in for skipped steps": Variant(build=stand_in),
}  # fmt: skip


def curve(points: list[dict[str, Any]]) -> np.ndarray:
    """Error at hard boundaries by the stream's thresholds at :data:`SHARES`, then with all blocks everywhere."""
    by = {p["label"]: p for p in points}
    low, high = by["uniform 0"]["gmac"], by[f"uniform {LAYERS}"]["gmac"]
    dial = sorted((p["gmac"], p["wide"]) for label, p in by.items() if label.startswith("zoom"))
    gmac, wide = np.array([(low, by["uniform 0"]["wide"]), *dial]).T
    return np.array([*np.interp([low + s * (high - low) for s in SHARES], gmac, wide), by[f"uniform {LAYERS}"]["wide"]])


def main(store: Store, seeds: list[int]) -> None:
    for seed in seeds:
        for name, variant in VARIANTS.items():
            store.once(f"variant/{name}/{seed}", lambda variant=variant, seed=seed: {"points": variant.run(seed)})

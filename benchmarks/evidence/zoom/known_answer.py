"""Synthetic boundaries of which it is known, by construction, where depth must go.

A signal jumps between levels of random height in white noise, without end of training data. Half of the boundaries are
sharp: the few steps around them say where they are. The others fade over 24 steps: within five steps of their middle the
signal is a straight line, and only the levels before and after, which are out of sight of everything but deep blocks, say
where the middle is. No pyramid: wide context comes through depth alone.

The information that r steps on either side of t hold about a boundary at distance u is I_r(t) = sum of f'(u + k)^2 / sigma^2
over |k| <= r (Cramer-Rao), f the fade. With the spread of positions within the radius R as prior, 3 / R^2, depth from
receptive radius r_0 to r_L is worth 0.5 log((3 / R^2 + I_rL) / (3 / R^2 + I_r0)) nats there: the oracle.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.lib.ranks import rank_correlation
from benchmarks.planning import Store
from tzn import ops
from tzn.nn import DepthPredictor, depth_from_logits
from tzn.nn.losses import boundary_distance_loss, depth_budget_loss, reach_loss
from tzn.nn.zoom import BoundaryStream, Zoomed, training_shift
from tzn.profiling import count_multiply_adds

RADIUS, NOISE, SHARP, WIDE = 5.0, 0.1, 0.5, 24.0  # steps; widths from 10 % to 90 %
RISE = 4.394  # widths of a logistic fade in its scales
STEPS, BATCH, TRAINED, TESTED = 256, 8, 4000, 256
LAYERS, WIDTH, WINDOW, STEM, HEADS = 4, 32, 9, 5, 4
APART, MARGIN = 44.0, 20.0  # least steps between boundaries, and to the ends
NEAR = 4.0  # steps; errors are those of the steps so near
THRESHOLDS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
TARGETS = (0.05, 0.1, 0.25)  # mean depths that a learned depth predictor is trained for


class Made(NamedTuple):
    signal: Tensor  # [B, T, 1]
    target: Tensor  # [B, 2, T] clipped distances to starts and ends
    apart: Tensor  # [B, T] signed steps to the nearest boundary
    width: Tensor  # [B, T] of that boundary


def make(batch: int, generator: torch.Generator) -> Made:
    count = STEPS // 64
    time_ = torch.arange(STEPS, dtype=torch.float32)
    gaps = torch.rand(batch, count + 1, generator=generator)
    free = STEPS - APART * (count - 1) - 2 * MARGIN
    places = MARGIN + (gaps / gaps.sum(1, keepdim=True)).cumsum(1)[:, :count] * free + APART * torch.arange(count)
    widths = torch.where(torch.rand(batch, count, generator=generator) < 0.5, SHARP, WIDE)
    drawn = torch.rand(batch, count + 1, generator=generator)
    level = torch.where(torch.arange(count + 1) % 2 == 1, 0.7 + 0.8 * drawn, -0.3 + 0.6 * drawn)
    fade = torch.sigmoid((time_ - places.unsqueeze(-1)) * RISE / widths.unsqueeze(-1))
    signal = level[:, :1] + (level.diff(dim=1).unsqueeze(-1) * fade).sum(1)
    signal = signal + torch.rand(batch, 1, generator=generator) - 0.5
    signal = signal + NOISE * torch.randn(batch, STEPS, generator=generator)
    target = ops.signed_distance(torch.stack([places[:, ::2], places[:, 1::2]], 1), STEPS, RADIUS)
    offsets = time_ - places.unsqueeze(-1)
    nearest = offsets.abs().argmin(1, keepdim=True)
    return Made(
        signal.unsqueeze(-1), target, offsets.gather(1, nearest).squeeze(1), widths.gather(1, nearest.squeeze(1))
    )


def oracle(made: Made, radii: tuple[int, ...]) -> Tensor:
    """Nats ``[B, T]`` that going from the first to the last receptive radius is worth; 0 beyond the radius."""
    k = torch.arange(-max(radii), max(radii) + 1)
    scale = made.width.unsqueeze(-1) / RISE
    z = (made.apart.unsqueeze(-1) + k) / scale
    slope = torch.sigmoid(z) * torch.sigmoid(-z) / scale
    prior = 3 / RADIUS**2
    first, last = (prior + (slope**2 * (k.abs() <= r)).sum(-1) / NOISE**2 for r in (radii[0], radii[-1]))
    return 0.5 * torch.log(last / first) * (made.apart.abs() < RADIUS)


class Learned(nn.Module):
    """The same stream with today's routing: depth predicted from the shallow state, taught by a budget alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = stream()
        self.predictor = DepthPredictor(WIDTH)

    def forward(self, signal: Tensor) -> tuple[Zoomed, Tensor]:
        mask = torch.ones(signal.shape[:2], dtype=torch.bool)
        h = self.stream.stem(signal, signal.new_zeros(1), mask)
        tau = depth_from_logits(self.predictor(h))
        return self.stream.refine(h, mask, gates=ops.depth_gates(tau, LAYERS)), tau


def stream() -> BoundaryStream:
    return BoundaryStream(
        1, WIDTH, 2, layers=LAYERS, num_heads=HEADS, window=WINDOW, mlp_ratio=2.0, stem_layers=STEM, radius=RADIUS,
        threshold=1.0,
    )  # fmt: skip


def train(seed: int, target: float | None) -> nn.Module:
    """A stream under its own gate (``target`` None), or one with a learned depth predictor and that budget."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model: nn.Module = stream() if target is None else Learned()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TRAINED)
    for step in range(TRAINED):
        made = make(BATCH, generator)
        mask = torch.ones(BATCH, STEPS, dtype=torch.bool)
        extra = torch.zeros(())
        if target is None:
            zoomed = model(made.signal, torch.zeros(1), mask, shift=training_shift(BATCH, mask.device))
        else:
            zoomed, _ = model(made.signal)
            falling = 1 - (1 - target) * min(2 * step / TRAINED, 1.0)
            extra = 10 * depth_budget_loss(zoomed.gates, mask, falling)
        both = mask.unsqueeze(1).expand_as(made.target)
        sums = [
            boundary_distance_loss(e.distance, e.scale, made.target, RADIUS, both, kind="laplace", slope_weight=0.1)
            for e in zoomed.exits
        ]
        loss = torch.stack([total for total, _ in sums]).mean()
        loss = (loss + 0.3 * reach_loss(zoomed.exits, made.target, mask, RADIUS)) / sums[0][1] + extra
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def point(label: str, zoomed: Zoomed, cost: int, made: Made, gain: Tensor) -> dict[str, Any]:
    error = (zoomed.exits[-1].distance - made.target).abs()
    near, wide = made.target.abs() < NEAR, (made.width == WIDE).unsqueeze(1)
    tau = zoomed.gates.mean(-1)
    within = made.apart.abs() < RADIUS
    content: dict[str, Any] = {
        "label": label, "depth": float(tau.mean()), "gmac": cost / 1e9 / made.signal.shape[0],
        "wide": float(error[near & wide].mean()), "sharp": float(error[near & ~wide].mean()),
    }  # fmt: skip
    if float(tau.std()) > 0:
        content["rank"] = rank_correlation(tau.flatten().numpy(), gain.flatten().numpy())
        content["rank_near"] = rank_correlation(tau[within].numpy(), gain[within].numpy())
    return content


@torch.no_grad()
def score(model: nn.Module, learned: bool) -> list[dict[str, Any]]:
    made = make(TESTED, torch.Generator().manual_seed(999))
    radii = tuple(STEM + layer * (WINDOW // 2) for layer in range(LAYERS + 1))
    gain = oracle(made, radii)
    mask = torch.ones(made.signal.shape[:2], dtype=torch.bool)

    def ran(label: str, **options: Any) -> dict[str, Any]:
        zoomed, cost = count_multiply_adds(lambda: model(made.signal, torch.zeros(1), mask, **options))
        return point(label, zoomed, cost, made, gain)

    if learned:
        zoomed, cost = count_multiply_adds(lambda: model(made.signal)[0])
        return [point("learned", zoomed, cost, made, gain)]
    found = []
    for blocks in range(LAYERS + 1):
        found.append(ran(f"uniform {blocks}", gates=ops.depth_gates(torch.full(mask.shape, blocks / LAYERS), LAYERS)))
    for threshold in THRESHOLDS:
        found.append(ran(f"zoom {threshold:g}", shift=-torch.tensor(threshold).log().expand(mask.shape[0], 1)))
    for share in (0.05, 0.1, 0.2):
        count = round(share * gain.numel())
        chosen = torch.zeros(gain.numel())
        chosen[gain.flatten().argsort(descending=True)[:count]] = 1.0
        found.append(ran(f"oracle {share:g}", gates=ops.depth_gates(chosen.view_as(gain), LAYERS)))
        noise = torch.rand(mask.shape[0], STEPS // 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(
            16, 1
        )
        chosen = (noise < share).float()
        found.append(ran(f"random {share:g}", gates=ops.depth_gates(chosen, LAYERS)))
    return found


def main(store: Store, seeds: list[int]) -> None:
    for seed in seeds:
        for target in (None, *TARGETS):
            key = f"known/{'zoom' if target is None else f'learned {target:g}'}/{seed}"
            store.once(key, functools.partial(_measured, seed, target))


def _measured(seed: int, target: float | None) -> dict[str, Any]:
    return {"points": score(train(seed, target), learned=target is not None)}

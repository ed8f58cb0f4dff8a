"""How precisely a boundary can be read off: classification peaks, distance crossings, votes, and the bounds.

usage: python benchmarks/evidence/boundary_variance.py [--smoke] [--seed 0] [--out FOLDER]

Part 1, estimators alone. A distance field d(t) = t - b + noise is given; its noise is Gaussian, Laplace, or Gaussian and
correlated in time (AR(1), rho = 0.8), always of the same standard deviation per step. Estimators: one crossing, votes by
weighted median and by weighted mean. Efficiency = Cramer-Rao bound / measured variance; the bound for independent noise
is sigma^2 / n (Gaussian) and sigma^2 / (2 n) (Laplace) over the n steps that can vote; for AR(1) it is 1 / (1' C^-1 1).

Part 2, trained heads. Both see the same signal: a ramp of width kappa from 0 to 1 at the boundary, plus noise. A small
convolutional network learns either the class "boundary within kappa / 2" (peak read off by argmax, centroid of the
peak, parabola) or the signed distance (crossing, votes). Equal data, size and steps.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import report
import torch
import torch.nn.functional as F
from torch import Tensor

from tzn import ops
from tzn.nn import BoundaryDistanceHead
from tzn.nn.conv import ConvTower
from tzn.nn.losses import boundary_distance_loss

STEPS = 96
NOISES = ("gaussian", "laplace", "ar1")
RHO = 0.8
WIDTHS = (2.0, 4.0, 8.0, 16.0)


def noise(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """``[N, T]`` noise of standard deviation 1."""
    white = torch.randn(shape, generator=generator)
    if kind == "gaussian":
        return white
    if kind == "laplace":
        uniform = torch.rand(shape, generator=generator) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7)) / math.sqrt(2)
    out = white.clone()
    for t in range(1, shape[1]):
        out[:, t] = RHO * out[:, t - 1] + math.sqrt(1 - RHO**2) * white[:, t]
    return out


def bound(kind: str, sigma: float, votes: int) -> float:
    """Cramer-Rao bound of the variance, in steps^2, from ``votes`` steps in a row."""
    if kind == "laplace":
        return sigma**2 / (2 * votes)
    if kind == "gaussian":
        return sigma**2 / votes
    lag = torch.arange(votes, dtype=torch.float64)
    covariance = RHO ** (lag[:, None] - lag[None]).abs()
    return sigma**2 / float(torch.linalg.inv(covariance).sum())


def read_crossing(distance: Tensor, scale: Tensor, estimator: str, window: int) -> Tensor:
    """``[N]`` boundary of each field: its most certain crossing, NaN where there is none."""
    found = ops.boundary_crossings(distance, scale, estimator=estimator, vote_window=window)
    if found.position.shape[1] == 0:
        return torch.full((distance.shape[0],), torch.nan)
    best = found.std.argmin(dim=1, keepdim=True)
    return torch.where(found.count > 0, found.position.gather(1, best).squeeze(1), torch.nan)


def estimators_alone(trials: int, generator: torch.Generator) -> list[dict[str, Any]]:
    rows = []
    times = torch.arange(STEPS, dtype=torch.float32)
    for kind in NOISES:
        for sigma in (0.1, 0.3):
            for window in (4, 8, 16):
                b = STEPS / 2 + torch.rand(trials, generator=generator)
                distance = times - b[:, None] + sigma * noise(kind, (trials, STEPS), generator)
                scale = torch.full_like(distance, sigma / math.sqrt(2))
                row: dict[str, Any] = {"noise": kind, "sigma": sigma, "window": window, "votes": 2 * window}
                row["bound"] = bound(kind, sigma, 2 * window)
                for name in ("crossing", "vote_median", "vote_mean"):
                    error = read_crossing(distance, scale, name, window) - b
                    error = error[error.isfinite()]
                    row[name] = {
                        "variance": float((error**2).mean()), "found": error.numel() / trials,
                        "efficiency": row["bound"] / float((error**2).mean()),
                    }  # fmt: skip
                rows.append(row)
    return rows


def ramps(kappa: float, sigma: float, count: int, generator: torch.Generator, kind: str) -> tuple[Tensor, Tensor]:
    """Signals ``[N, T, 1]`` and boundaries ``[N]``."""
    b = STEPS / 3 + torch.rand(count, generator=generator) * STEPS / 3
    times = torch.arange(STEPS, dtype=torch.float32)
    clean = torch.sigmoid(4 * (times - b[:, None]) / kappa)  # from 12 % to 88 % over kappa steps
    return (clean + sigma * noise(kind, (count, STEPS), generator)).unsqueeze(-1), b


def train_heads(kappa: float, sigma: float, kind: str, steps: int, generator: torch.Generator) -> tuple[Any, Any]:
    """A classifier and a distance head of the same size on the same batches."""
    radius = max(8.0, kappa)
    classifier, distance_head = ConvTower(1, 32, 1, 2), BoundaryDistanceHead(1, 1, 32, 2, radius)
    layers = [*classifier.parameters(), *distance_head.parameters()]
    optimizer = torch.optim.AdamW(layers, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    times, mask = torch.arange(STEPS, dtype=torch.float32), torch.ones(64, STEPS, dtype=torch.bool)
    for _ in range(steps):
        signal, b = ramps(kappa, sigma, 64, generator, kind)
        offset = times - b[:, None]
        near = (offset.abs() <= max(kappa / 2, 0.5)).float()
        logits = classifier(signal, mask).squeeze(-1)
        distance, scale = distance_head(signal, mask)
        target = offset.clamp(-radius, radius).unsqueeze(1)
        summed, count = boundary_distance_loss(
            distance, scale, target, radius, mask.unsqueeze(1), kind="laplace", slope_weight=0.1
        )
        loss = F.binary_cross_entropy_with_logits(logits, near) + summed / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layers, 1.0)
        optimizer.step()
        schedule.step()
    return classifier.eval(), distance_head.eval()


def peaks(probability: Tensor, kappa: float) -> dict[str, Tensor]:
    """``[N]`` boundaries from boundary probabilities ``[N, T]``."""
    times = torch.arange(probability.shape[1], dtype=torch.float32)
    best = probability.argmax(dim=1)
    around = (times - best[:, None]).abs() <= max(kappa, 2.0)
    weight = probability * around
    inner = best.clamp(1, probability.shape[1] - 2)
    left, middle, right = (probability.gather(1, (inner + i)[:, None]).squeeze(1) for i in (-1, 0, 1))
    curve = left - 2 * middle + right
    shift = torch.where(curve < -1e-6, 0.5 * (left - right) / curve, 0.0).clamp(-1, 1)
    return {"argmax": best.float(), "centroid": (weight * times).sum(1) / weight.sum(1), "parabola": inner + shift}


@torch.no_grad()
def trained_heads(kappa: float, sigma: float, kind: str, steps: int, trials: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    with torch.enable_grad():
        classifier, head = train_heads(kappa, sigma, kind, steps, generator)
    signal, b = ramps(kappa, sigma, trials, generator, kind)
    mask = torch.ones(trials, STEPS, dtype=torch.bool)
    found = peaks(classifier(signal, mask).squeeze(-1).sigmoid(), kappa)
    distance, scale = (field.squeeze(1) for field in head(signal, mask))
    for name in ("crossing", "vote_median", "vote_mean"):
        found[name] = read_crossing(distance, scale, name, max(4, int(kappa / 2)))
    row: dict[str, Any] = {"kappa": kappa, "sigma": sigma, "noise": kind}
    for name, position in found.items():
        error = (position - b)[position.isfinite()]
        row[name] = {"variance": float((error**2).mean()), "found": error.numel() / trials}
    return row


def markdown(alone: list[dict[str, Any]], trained: list[dict[str, Any]], settings: str) -> str:
    first = [
        [r["noise"], f"{r['sigma']:g}", str(r["votes"]),
         *(f"{r[n]['efficiency']:.2f}" for n in ("crossing", "vote_median", "vote_mean"))]
        for r in alone
    ]  # fmt: skip
    names = ("argmax", "centroid", "parabola", "crossing", "vote_median", "vote_mean")
    second = [
        [r["noise"], f"{r['kappa']:g}", *(f"{r[n]['variance']:.4f}" for n in names),
         f"{r['argmax']['variance'] / r['crossing']['variance']:.1f}",
         f"{r['centroid']['variance'] / r['vote_median']['variance']:.1f}"]
        for r in trained
    ]  # fmt: skip
    return "\n".join([
        "# How precisely a boundary can be read off", "", settings, "",
        "## Estimators alone: Cramer-Rao bound over measured variance", "",
        report.table(["noise", "sigma", "votes", "crossing", "vote median", "vote mean"], first),
        "## Trained heads on the same signal: mean squared error in steps^2", "",
        report.table(
            ["noise", "kappa", *names, "argmax / crossing", "centroid / vote median"], second
        ),
    ])  # fmt: skip


def main() -> None:
    options = report.parser(__doc__).parse_args()
    torch.set_num_threads(2)
    begin = time.perf_counter()
    trials, steps = (500, 60) if options.smoke else (20000, 800)
    generator = torch.Generator().manual_seed(options.seed)
    alone = estimators_alone(trials, generator)
    widths, kinds = ((8.0,), ("gaussian",)) if options.smoke else (WIDTHS, NOISES)
    trained = [
        trained_heads(kappa, 0.1, kind, steps, trials // 5, options.seed) for kind in kinds for kappa in widths
    ]  # fmt: skip
    settings = (
        f"`python benchmarks/evidence/boundary_variance.py --seed {options.seed}`: {trials:,} fields per row of part 1; "
        f"part 2: {steps:,} training steps of 64 signals, signal noise 0.1, {trials // 5:,} test signals."
    )
    seconds = time.perf_counter() - begin
    content = {"seed": options.seed, "seconds": seconds, "estimators_alone": alone, "trained_heads": trained}
    report.write(Path(options.out), "boundary_variance", content, markdown(alone, trained, settings))


if __name__ == "__main__":
    main()

"""Part 1 of boundary_variance.py: the estimators alone, on fields whose noise is known. All lengths in frames."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tzn import ops

FRAMES = 192
NOISES = ("gaussian", "laplace", "ar1")
RHO = 0.8  # correlation of neighbouring frames of "ar1"
ESTIMATORS = ("crossing", "vote_median", "vote_mean")
PEAKS = ("argmax", "centroid", "parabola")
EDGE = 2.0  # frames over which a plateau's score goes from 12 % to 88 %


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


def precision(kind: str, steps: int, stride: int) -> Tensor:
    """``[steps, steps]`` float64 Fisher information of a shift of each step, for noise of variance 1.

    Gaussian: the inverse covariance. Laplace: 2, as its density has Fisher information 1 / scale^2 = 2 / variance.
    """
    if kind == "laplace":
        return 2 * torch.eye(steps, dtype=torch.float64)
    if kind == "gaussian":
        return torch.eye(steps, dtype=torch.float64)
    lag = torch.arange(steps, dtype=torch.float64) * stride
    return torch.linalg.inv(RHO ** (lag[:, None] - lag[None]).abs())


def bound(kind: str, sigma: float, votes: int, stride: int = 1) -> float:
    """Cramer-Rao bound of the variance of a boundary, frames^2, from ``votes`` sampled frames in a row."""
    return sigma**2 / float(precision(kind, votes, stride).sum())


def best_shift_invariant(sigma: float, votes: int, trials: int, generator: torch.Generator) -> float:
    """Variance of Pitman's estimator under Laplace noise: no estimator that follows shifts has less.

    It is the posterior mean under a flat prior; at few votes it stays above the Cramer-Rao bound, and so does everything.
    """
    beta = 1 / math.sqrt(2)
    shift = torch.linspace(-12, 12, 801) * beta / math.sqrt(votes)
    error = noise("laplace", (trials, votes), generator)
    total = 0.0
    for part in error.split(250):
        posterior = torch.softmax(-(part[:, :, None] - shift).abs().sum(1) / beta, dim=1)
        total += float(((posterior * shift).sum(1) ** 2).sum())
    return sigma**2 * total / trials


def read_boundary(distance: Tensor, scale: Tensor, estimator: str, window: int) -> tuple[Tensor, Tensor]:
    """Boundary of each field ``[N, T]`` and its claimed standard error, ``[N]`` steps: its most certain crossing's, NaN
    where there is none."""
    found = ops.boundary_crossings(distance, scale, estimator=estimator, vote_window=window)
    if found.position.shape[1] == 0:
        nothing = torch.full((distance.shape[0],), torch.nan)
        return nothing, nothing
    best = found.std.argmin(dim=1, keepdim=True)
    position, std = (values.gather(1, best).squeeze(1) for values in (found.position, found.std))
    return tuple(torch.where(found.count > 0, values, torch.nan) for values in (position, std))


def peaks(score: Tensor, kappa: float) -> dict[str, Tensor]:
    """``[N]`` boundaries in steps from scores ``[N, T]`` whose plateau is ``kappa`` steps wide."""
    times = torch.arange(score.shape[1], dtype=torch.float32)
    best = score.argmax(dim=1)
    around = (times - best[:, None]).abs() <= max(kappa, 2.0)
    weight = score.clamp(min=0) * around
    inner = best.clamp(1, score.shape[1] - 2)
    left, middle, right = (score.gather(1, (inner + i)[:, None]).squeeze(1) for i in (-1, 0, 1))
    curve = left - 2 * middle + right
    shift = torch.where(curve < -1e-6, 0.5 * (left - right) / curve, 0.0).clamp(-1, 1)
    return {"argmax": best.float(), "centroid": (weight * times).sum(1) / weight.sum(1), "parabola": inner + shift}


def summary(error: Tensor) -> dict[str, float]:
    """Errors ``[N]`` in frames, NaN where nothing was found. ``robust``: the variance of a Gaussian of the same MAD."""
    found = error[error.isfinite()]
    if not len(found):
        return {"mse": math.nan, "bias": math.nan, "robust": math.nan, "found": 0.0}
    middle = found.median()
    return {
        "mse": float((found**2).mean()), "bias": float(found.mean()),
        "robust": float(1.4826 * (found - middle).abs().median()) ** 2, "found": len(found) / len(error),
    }  # fmt: skip


def sampled(values: Tensor, stride: int) -> Tensor:
    return values[:, ::stride].contiguous()


def distance_row(
    kind: str, sigma: float, stride: int, window: int, trials: int, generator: torch.Generator
) -> dict[str, Any]:
    """Crossings and votes of fields t - b + sigma x noise, seen at every ``stride``-th frame."""
    b = FRAMES / 2 + stride * torch.rand(trials, generator=generator)
    field = torch.arange(FRAMES) - b[:, None] + sigma * noise(kind, (trials, FRAMES), generator)
    distance = sampled(field, stride) / stride
    scale = torch.full_like(distance, sigma / math.sqrt(2) / stride)
    votes = 2 * window // stride
    row: dict[str, Any] = {"noise": kind, "sigma": sigma, "stride": stride, "window": window, "votes": votes}
    row["bound"] = bound(kind, sigma, votes, stride)
    if kind == "laplace":
        row["attainable"] = row["bound"] / best_shift_invariant(sigma, votes, trials, generator)
    for name in ESTIMATORS:
        position, std = read_boundary(distance, scale, name, max(1, window // stride))
        row[name] = found = summary(stride * position - b)
        found["efficiency"] = row["bound"] / found["mse"]
        found["claimed"] = float((stride * std[std.isfinite()]).square().mean()) / found["mse"]
    return row


def score_row(kind: str, sigma: float, stride: int, kappa: float, trials: int, generator: torch.Generator) -> dict:
    """Peaks of scores that are a plateau of ``kappa`` frames around b plus sigma x noise, within 32 frames of it."""
    b = FRAMES / 2 + stride * torch.rand(trials, generator=generator)
    offset = torch.arange(FRAMES) - b[:, None]
    score = torch.sigmoid(4 * (kappa / 2 - offset.abs()) / EDGE) + sigma * noise(kind, (trials, FRAMES), generator)
    first = FRAMES // 2 - 32
    found = peaks(sampled(score[:, first : first + 64], stride), kappa / stride)
    row: dict[str, Any] = {"noise": kind, "sigma": sigma, "stride": stride, "kappa": kappa}
    return row | {name: summary(first + stride * position - b) for name, position in found.items()}

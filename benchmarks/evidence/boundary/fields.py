"""Part 1 of variance.py: the estimators alone, on fields whose noise is known. All lengths in frames."""

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


def theory(kind: str, sigma: float, votes: int, stride: int) -> dict[str, float]:
    """Variances in frames^2 that estimators should have on fields of known noise.

    A crossing a share f between two steps with noise of correlation r has sigma^2 (1 - 2 f (1 - f) (1 - r)), on average
    over f sigma^2 (2 + r) / 3. The mean of votes has sigma^2 1'C1 / n^2. The median is known for many independent votes:
    1 / (4 n p(0)^2) with the noise's density p at 0.
    """
    lag = torch.arange(votes, dtype=torch.float64) * stride
    correlation = RHO ** (lag[:, None] - lag[None]).abs() if kind == "ar1" else torch.eye(votes, dtype=torch.float64)
    neighbour = RHO**stride if kind == "ar1" else 0.0
    median = {"gaussian": math.pi / 2, "laplace": 0.5, "ar1": math.nan}[kind]
    return {
        "crossing": sigma**2 * (2 + neighbour) / 3, "vote_median": sigma**2 * median / votes,
        "vote_mean": sigma**2 * float(correlation.sum()) / votes**2,
    }  # fmt: skip


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


def read_boundary(
    distance: Tensor, scale: Tensor, estimator: str, window: int, near: tuple[Tensor, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Boundary of each field ``[N, T]`` and its claimed standard error, ``[N]`` steps: its most certain crossing's, NaN
    where there is none. ``near``: (boundaries ``[N]``, radius) within which alone to look."""
    found = ops.boundary_crossings(distance, scale, estimator=estimator, vote_window=window)
    if found.position.shape[1] == 0:
        nothing = torch.full((distance.shape[0],), torch.nan)
        return nothing, nothing
    doubt = found.std
    if near is not None:
        doubt = torch.where((found.position - near[0][:, None]).abs() <= near[1], doubt, torch.inf)
    best = doubt.min(dim=1)
    position = found.position.gather(1, best.indices[:, None]).squeeze(1)
    there = best.values.isfinite()
    return torch.where(there, position, torch.nan), torch.where(there, best.values, torch.nan)


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

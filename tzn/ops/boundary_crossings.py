"""Boundaries from distance fields."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend, kernels, serves
from tzn.ops._checks import (
    check_choice,
    check_count,
    check_device,
    check_floating,
    check_mask,
    check_shape,
    checks_values,
    fail,
)
from tzn.ops._register import define
from tzn.reference import Crossings
from tzn.reference.boundary_crossings import ESTIMATORS


def boundary_crossings(
    distance: Tensor,
    scale: Tensor,
    *,
    estimator: str = "vote_median",
    vote_window: int = 4,
    min_slope: float = 0.5,
    mask: Tensor | None = None,
) -> Crossings:
    """Up-crossings of signed distance fields with sub-step position and standard error (docs/design.md section 3).

    Args:
        distance: ``[B, T]`` floating, signed distance in grid steps.
        scale: ``[B, T]``, Laplace scale of the distance in grid steps, > 0.
        estimator: "crossing": linear interpolation between the two steps, ``t - d(t) / (d(t + 1) - d(t))``; its standard
            error propagates both scales. "vote_median": weighted median of the votes ``t - d(t)`` of the steps within
            ``vote_window`` (the Laplace maximum likelihood estimate, standard error ``(sum 1 / scale^2)^-1/2``).
            "vote_mean": their ``1 / scale^2``-weighted mean (standard error ``(sum 1 / (2 scale^2))^-1/2``).
            The standard errors take votes as independent.
        vote_window: W >= 1 steps on either side.
        min_slope: a crossing counts when ``d(t + 1) - d(t)`` exceeds this.
        mask: ``[B, T]`` bool, True = valid; steps outside neither cross nor vote.

    Returns:
        :class:`Crossings`: position, std, slope ``[B, T // 2]`` ascending, past the count inf (slope: 0), and count ``[B]``.
        No more than T // 2 are possible: two crossings lie two steps apart or more.

    Raises:
        ValueError: wrong shape or dtype, unknown estimator, scale not positive, NaN distance at a valid step.
    """
    check_floating("distance", distance)
    check_floating("scale", scale)
    check_shape("distance", distance, "[B, T]", None, None)
    check_shape("scale", scale, f"the shape of distance {tuple(distance.shape)}", *distance.shape)
    check_device("scale", scale, distance.device)
    check_mask("mask", mask, distance.shape[0], distance.shape[1], distance.device)
    check_choice("estimator", estimator, ESTIMATORS)
    check_count("vote_window", vote_window, 1)
    if checks_values(distance):
        distances, scales = (distance, scale) if mask is None else (distance[mask], scale[mask])
        if bool(distances.isnan().any()):
            fail("distance", "NaN at a valid step", "finite distances")
        if not bool((scales > 0).all()):
            fail("scale", "a value <= 0 or NaN at a valid step", "scales > 0")
    return Crossings(*_OP(distance, scale, estimator, vote_window, min_slope, mask))


def _run(
    distance: Tensor, scale: Tensor, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> tuple[Tensor, ...]:
    backend = choose_backend(distance.device)
    if backend == "cpp" and serves(distance, scale):
        number = ESTIMATORS.index(estimator)
        return torch.ops.tzn_native.boundary_crossings(distance, scale, mask, number, vote_window, min_slope)  # type: ignore[no-any-return]
    home = kernels(backend, "boundary_crossings") if backend == "triton" and serves(distance, scale) else reference
    return _with(home, distance, scale, estimator, vote_window, min_slope, mask)


def _with(
    home: Any, distance: Tensor, scale: Tensor, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """As Triton's kernels or the definition find them."""
    settings = {"estimator": estimator, "vote_window": vote_window, "min_slope": min_slope, "mask": mask}
    return tuple(home.boundary_crossings(distance, scale, **settings))


def _fake(distance, scale, *_):  # type: ignore[no-untyped-def]
    fields, steps = distance.shape
    tables = [distance.new_empty(fields, steps // 2) for _ in range(3)]
    return *tables, distance.new_empty(fields, dtype=torch.long)


_OP = define(
    "boundary_crossings(Tensor distance, Tensor scale, str estimator, int vote_window, float min_slope, Tensor? mask) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _run, _fake, partial(_with, reference),
)  # fmt: skip

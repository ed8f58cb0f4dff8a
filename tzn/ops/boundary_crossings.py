"""Boundaries from distance fields."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops import dispatch, library
from tzn.ops.checks import check_count, check_device, check_floating, check_mask, check_shape, checks_values, fail
from tzn.reference import Crossings

ESTIMATORS = ("vote_median", "vote_mean", "crossing")


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
        :class:`Crossings`: position, std, slope ``[B, K]`` ascending, padded with inf (slope: 0), and count ``[B]``.

    Raises:
        ValueError: wrong shape or dtype, unknown estimator, scale not positive, NaN distance at a valid step.
    """
    check_floating("distance", distance)
    check_floating("scale", scale)
    check_shape("distance", distance, "[B, T]", None, None)
    check_shape("scale", scale, f"the shape of distance {tuple(distance.shape)}", *distance.shape)
    check_device("scale", scale, distance.device)
    check_mask("mask", mask, distance.shape[0], distance.shape[1], distance.device)
    if estimator not in ESTIMATORS:
        fail("estimator", repr(estimator), f"one of {', '.join(ESTIMATORS)}")
    check_count("vote_window", vote_window, 1)
    if checks_values(distance):
        valid = slice(None) if mask is None else mask
        if bool(distance[valid].isnan().any()):
            fail("distance", "NaN at a valid step", "finite distances")
        if not bool((scale[valid] > 0).all()):
            fail("scale", "a value <= 0 or NaN at a valid step", "scales > 0")
    if torch.compiler.is_compiling():
        return Crossings(*library.boundary_crossings(distance, scale, estimator, vote_window, min_slope, mask))
    return dispatch.boundary_crossings(
        distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
    )

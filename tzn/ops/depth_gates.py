"""Depth gates: where tau becomes a gate."""

from __future__ import annotations

from torch import Tensor

from tzn import reference
from tzn.ops._checks import check_count, check_floating, checks_values, fail


def depth_gates(tau: Tensor, num_layers: int) -> Tensor:
    """Gates of a stack of variable-depth layers: ``g_l(tau) = clamp(L * tau - l, 0, 1)`` (docs/design.md section 2).

    Three element-wise operations: the definition is the implementation on every back end.

    Args:
        tau: ``[...]`` floating, depths in [0, 1]; gradients flow to it.
        num_layers: L >= 1.

    Returns:
        ``[..., L]``, same dtype. A token is active in layer l where its gate is positive.

    Raises:
        ValueError: tau not floating or outside [0, 1], or ``num_layers`` < 1.
    """
    check_floating("tau", tau)
    check_count("num_layers", num_layers, 1)
    if checks_values(tau) and tau.numel() and not bool(((tau >= 0) & (tau <= 1)).all()):
        fail("tau", f"values from {float(tau.min()):g} to {float(tau.max()):g}", "depths in [0, 1]")
    return reference.depth_gates(tau, num_layers)

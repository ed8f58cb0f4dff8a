"""Depth gates and active tokens: where tau becomes a gate, and a gate becomes work."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops import dispatch, library
from tzn.ops.checks import check_count, check_floating, check_mask, check_shape, check_window, checks_values, fail
from tzn.reference import ActiveTokens


def depth_gates(tau: Tensor, num_layers: int) -> Tensor:
    """Gates of a stack of variable-depth layers: ``g_l(tau) = clamp(L * tau - l, 0, 1)``.

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


def active_tokens(gate: Tensor, window: int, mask: Tensor | None = None) -> ActiveTokens:
    """Rows that a layer updates (gate > 0 and valid), and the halo of rows that it reads as keys.

    Args:
        gate: ``[B, T]`` floating, >= 0.
        window: odd attention window w.
        mask: ``[B, T]`` bool, True = valid; None: all valid.

    Returns:
        ``ActiveTokens(active [A], halo [S])``, int64 indices into the flattened ``[B * T]`` axis, ascending. The halo is
        every valid step within ``w // 2`` of an active one of the same recording.

    Raises:
        ValueError: wrong shape or dtype, even window.
    """
    check_floating("gate", gate)
    check_shape("gate", gate, "[B, T]", None, None)
    check_window(window)
    check_mask("mask", mask, gate.shape[0], gate.shape[1], gate.device)
    if torch.compiler.is_compiling():
        return ActiveTokens(*library.active_tokens(gate, window, mask))
    return dispatch.active_tokens(gate, window, mask)

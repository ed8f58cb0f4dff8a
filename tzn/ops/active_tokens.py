"""Which rows a variable-depth layer updates, and which it reads."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend, kernels
from tzn.ops._checks import check_floating, check_mask, check_shape, check_window
from tzn.ops._register import define, new_size
from tzn.reference import ActiveTokens


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
    return ActiveTokens(*_OP(gate, window, mask))


def _run(gate: Tensor, window: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    backend = choose_backend(gate.device)
    if backend == "cpp":
        return torch.ops.tzn_native.active_tokens(gate, window, mask)  # type: ignore[no-any-return]
    if backend == "triton":
        lists = kernels(backend, "active_tokens").compact(gate, mask, gate.shape[0], gate.shape[1], window, gate.device)
        active, halo = lists.counts.tolist()
        return lists.active[:active].long(), lists.halo[:halo].long()
    return _indices(gate, window, mask)


def _indices(gate: Tensor, window: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    active, halo = reference.active_tokens(gate, window, mask)
    return active, halo.clone()  # with a window of 1 both are the same tensor, which an op may not return


def _fake(gate, window, mask):  # type: ignore[no-untyped-def]
    return tuple(gate.new_empty(new_size(), dtype=torch.long) for _ in range(2))


_OP = define(
    "active_tokens(Tensor gate, int window, Tensor? mask) -> (Tensor, Tensor)",
    _run, _fake, lambda gate, window, mask: _indices(gate.detach(), window, mask),
)  # fmt: skip

"""One variable-depth transformer block: work follows the active tokens (``tzn/kernels``: how back ends do it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend, kernels
from tzn.ops._checks import check_device, check_floating, check_mask, check_shape, checks_values, fail
from tzn.ops._register import define_with_gradients
from tzn.reference import BlockWeights

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
MOST_PASSED = 256  # kinds of weights, on all devices
MAX_TRITON_WIDTH = 256  # channels per head
# The others are computed in the residual stream's precision.
LINEAR = tuple(name for name in BlockWeights._fields if not name.startswith(("norm", "position")))


def variable_depth_block(
    x: Tensor, gate: Tensor | None, weights: BlockWeights, *, mask: Tensor | None = None
) -> Tensor:
    """``y = x + g * Attn(LN1 x)``, ``z = y + g * MLP(LN2 y)`` for active tokens; the others pass through bit for bit.

    Queries are the active tokens (gate > 0 and valid); keys and values every valid token of the window, active or not.
    Under autocast the linear layers run in its dtype; x stays as it is. docs/design.md section 2.

    Args:
        x: ``[B, T, D]`` floating.
        gate: ``[B, T]`` floating, >= 0, usually in [0, 1]; None: 1 everywhere.
        weights: see :class:`BlockWeights`; D must be divisible by its number of heads.
        mask: ``[B, T]`` bool, True = valid; None: all valid. Rows that are not valid come out as they are: multiply by the
            mask before a layer that mixes steps without looking at it, such as a convolution.

    Returns:
        ``[B, T, D]``, a new tensor. Differentiable in x, gate and every weight: once by kernels, further by the definition.

    Raises:
        ValueError: wrong shape, dtype or device; negative or NaN gate.
    """
    check_floating("x", x)
    check_shape("x", x, "[B, T, D]", None, None, None)
    _check_weights(weights, x)
    batch, steps, _ = x.shape
    check_mask("mask", mask, batch, steps, x.device)
    if gate is not None:
        check_floating("gate", gate)
        check_shape("gate", gate, f"[B, T] = [{batch}, {steps}]", batch, steps)
        check_device("gate", gate, x.device)
        if checks_values(gate) and gate.numel() and not bool((gate >= 0).all()):
            fail("gate", "a negative or NaN value", "gates >= 0")
    return _OP(x, gate, _cast(weights, x), mask)  # type: ignore[no-any-return]


VECTORS = tuple(
    n for n in BlockWeights._fields if n.startswith("norm") or (n != "position_bias" and n.endswith("bias"))
)


# What _check_weights looks at, of weights that were right: looking again is a tenth of a short recording's block.
_PASSED: set[Any] = set()


def _check_weights(weights: BlockWeights, x: Tensor) -> None:
    if not isinstance(weights, tuple) or len(weights) != len(BlockWeights._fields):
        raise TypeError(f"weights: got {type(weights).__name__}, expected BlockWeights")
    kind = None
    if all(type(w) in PLAIN_TENSORS for w in weights) and not torch.compiler.is_compiling():
        kind = x.shape[2], x.device, *((w.shape, w.dtype, w.device, w.layout) for w in weights)
        if kind in _PASSED:
            return
    for name, tensor in zip(BlockWeights._fields, weights, strict=True):
        check_floating(f"weights.{name}", tensor)
        check_device(f"weights.{name}", tensor, x.device)
    check_shape("weights.position_bias", weights.position_bias, "[H, w]", None, None)
    check_shape("weights.norm1_weight", weights.norm1_weight, "[D]", None)
    (heads, window), width = weights.position_bias.shape, weights.norm1_weight.shape[0]
    if x.shape[2] != width:
        swapped = ": [B, C, T]? transpose(1, 2) gives [B, T, C]" if x.shape[1] == width else ""
        fail("x", f"shape {tuple(x.shape)}", f"[B, T, D] with D = {width}, the width of the weights{swapped}")
    if width == 0 or heads == 0 or width % heads or window % 2 == 0:
        fail("weights.position_bias", f"shape {(heads, window)}", f"[H, w] with H dividing {width} and w odd")
    check_shape("weights.query_weight", weights.query_weight, f"[D, D] = [{width}, {width}]", width, width)
    check_shape("weights.key_value_weight", weights.key_value_weight, f"[2 D, D] with D = {width}", 2 * width, width)
    check_shape("weights.up_weight", weights.up_weight, f"[M, D] with D = {width}", None, width)
    check_shape("weights.down_weight", weights.down_weight, f"[D, M] with D = {width}", width, None)
    sizes = {"key_value_bias": 2 * width, "up_bias": weights.up_weight.shape[0]}
    for name in VECTORS:
        size = sizes.get(name, width)
        if getattr(weights, name).shape != (size,):  # [1, D] would compute, and have no gradient
            check_shape(f"weights.{name}", getattr(weights, name), f"[{size}]", size)
    if kind is not None and len(_PASSED) < MOST_PASSED:
        _PASSED.add(kind)


def _cast(weights: BlockWeights, x: Tensor) -> list[Tensor]:
    """The weights of linear layers in autocast's dtype, where it is on."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return list(weights)
    dtype = torch.get_autocast_dtype(device)
    return list(weights._replace(**{name: getattr(weights, name).to(dtype) for name in LINEAR}))


def _choose(x: Tensor, gate: Tensor | None, weights: list[Tensor], *_: Any) -> str:
    backend = choose_backend(x.device)
    wide = x.shape[-1] // BlockWeights(*weights).position_bias.shape[0] > MAX_TRITON_WIDTH
    return "reference" if backend == "triton" and wide else backend


def _definition(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    return reference.variable_depth_block(x, gate, BlockWeights(*weights), mask=mask)


def _forward(backend: str, keep: bool, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    return kernels(backend, "variable_depth_block").forward(*arguments, keep)  # type: ignore[no-any-return]


def _backward(
    backend: str, grad: Tensor, out: None, saved: list[Tensor], x: Tensor, gate: Tensor | None, weights: list[Tensor],
    mask: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    return kernels(backend, "variable_depth_block").backward(grad, x, gate, weights, saved)  # type: ignore[no-any-return]


def _empty_saved(
    backend: str, x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None
) -> list[Tensor]:
    return kernels(backend, "variable_depth_block").empty_saved(x, weights)  # type: ignore[no-any-return]


_OP = define_with_gradients(
    "variable_depth_block", "Tensor x, Tensor? gate, Tensor[] weights, Tensor? mask",
    choose=_choose, definition=_definition, forward=_forward, backward=_backward, empty_saved=_empty_saved,
)  # fmt: skip

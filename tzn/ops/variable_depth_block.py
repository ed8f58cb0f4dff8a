"""One variable-depth transformer block: work follows the active tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops import native_block, triton_block
from tzn.ops.backend import choose_backend, uses_triton
from tzn.ops.checks import check_device, check_floating, check_mask, check_shape, checks_values, fail
from tzn.ops.opaque import as_one_node, is_counting
from tzn.ops.recompute import gradients_of
from tzn.reference import BlockWeights


def variable_depth_block(
    x: Tensor, gate: Tensor | None, weights: BlockWeights, *, mask: Tensor | None = None
) -> Tensor:
    """``y = x + g * Attn(LN1 x)``, ``z = y + g * MLP(LN2 y)`` for active tokens; the others pass through bit for bit.

    Queries are the active tokens (gate > 0 and valid); keys and values every valid token of the window, active or not.
    docs/design.md section 2.

    Args:
        x: ``[B, T, D]`` floating.
        gate: ``[B, T]`` floating, >= 0, usually in [0, 1]; None: 1 everywhere.
        weights: see :class:`BlockWeights`; D must be divisible by its number of heads.
        mask: ``[B, T]`` bool, True = valid; None: all valid.

    Returns:
        ``[B, T, D]``, a new tensor. Differentiable in x, gate and every weight.

    Raises:
        ValueError: wrong shape, dtype or device; negative or NaN gate.
    """
    check_floating("x", x)
    check_shape("x", x, "[B, T, D]", None, None, None)
    batch, steps, width = x.shape
    _check_weights(weights, x)
    heads, window = weights.position_bias.shape
    if width == 0 or heads == 0 or width % heads or window % 2 == 0:
        fail("weights.position_bias", f"shape {(heads, window)}", f"[H, w] with H dividing {width} and w odd")
    check_shape("weights.query_weight", weights.query_weight, f"[D, D] = [{width}, {width}]", width, width)
    check_shape("weights.key_value_weight", weights.key_value_weight, f"[2 D, D] with D = {width}", 2 * width, width)
    check_shape("weights.up_weight", weights.up_weight, f"[M, D] with D = {width}", None, width)
    check_shape("weights.down_weight", weights.down_weight, f"[D, M] with D = {width}", width, None)
    check_mask("mask", mask, batch, steps, x.device)
    if gate is not None:
        check_floating("gate", gate)
        check_shape("gate", gate, f"[B, T] = [{batch}, {steps}]", batch, steps)
        check_device("gate", gate, x.device)
        if checks_values(gate) and gate.numel() and not bool((gate >= 0).all()):
            fail("gate", "a negative or NaN value", "gates >= 0")
    if uses_triton(x.device) and triton_block.serves(x, weights) and not is_counting():
        return triton_block.variable_depth_block(x, gate, weights, mask)
    if as_one_node():
        return _opaque(x, gate, list(weights), mask)
    return _run(x, gate, weights, mask)


def _check_weights(weights: BlockWeights, x: Tensor) -> None:
    if not isinstance(weights, tuple) or len(weights) != len(BlockWeights._fields):
        raise TypeError(f"weights: got {type(weights).__name__}, expected BlockWeights")
    for name, tensor in zip(BlockWeights._fields, weights, strict=True):
        check_floating(f"weights.{name}", tensor)
        check_device(f"weights.{name}", tensor, x.device)
    check_shape("weights.position_bias", weights.position_bias, "[H, w]", None, None)


def _run(x: Tensor, gate: Tensor | None, weights: BlockWeights, mask: Tensor | None) -> Tensor:
    if choose_backend(x.device) == "cpp":
        return native_block.variable_depth_block(x, gate, weights, mask)
    return reference.variable_depth_block(x, gate, weights, mask=mask)


@torch.library.custom_op("tzn::variable_depth_block", mutates_args=())
def _opaque(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    return _run(x, gate, BlockWeights(*weights), mask).contiguous()


@_opaque.register_fake
def _(x, gate, weights, mask):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("tzn::variable_depth_block_backward", mutates_args=())
def _opaque_backward(
    grad: Tensor, x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None
) -> list[Tensor]:
    inputs = [x, *weights] + ([] if gate is None else [gate])

    def forward(x: Tensor, *rest: Tensor) -> Tensor:
        gate_leaf = rest[len(weights)] if gate is not None else None
        return reference.variable_depth_block(x, gate_leaf, BlockWeights(*rest[: len(weights)]), mask=mask)

    return gradients_of(forward, inputs, grad)


@_opaque_backward.register_fake
def _(grad, x, gate, weights, mask):  # type: ignore[no-untyped-def]
    inputs = [x, *weights] + ([] if gate is None else [gate])
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, gate, weights, mask = inputs
    ctx.save_for_backward(x, gate, mask, *weights)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, gate, mask, *weights = ctx.saved_tensors
    grads = torch.ops.tzn.variable_depth_block_backward(grad, x, gate, weights, mask)
    count = len(weights)
    return grads[0], grads[1 + count] if gate is not None else None, list(grads[1 : 1 + count]), None


_opaque.register_autograd(_backward, setup_context=_setup)

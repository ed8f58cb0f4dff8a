"""The variable-depth block on the Triton kernels, as opaque ops: one for inference, one that keeps what gradients need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzn.reference import BlockWeights

SAVED = 16  # tensors of tzn.kernels.variable_depth_block.Saved
LINEAR = (2, 3, 4, 5, 7, 8, 11, 12, 13, 14)  # of BlockWeights: weights and biases of the linear layers
MAX_WIDTH = 256  # channels per head

torch.library.define(
    "tzn_triton::variable_depth_block", "(Tensor x, Tensor? gate, Tensor[] weights, Tensor? mask) -> Tensor"
)
torch.library.define(
    "tzn_triton::variable_depth_block_keep",
    f"(Tensor x, Tensor? gate, Tensor[] weights, Tensor? mask) -> ({', '.join(['Tensor'] * (1 + SAVED))})",
)
torch.library.define(
    "tzn_triton::variable_depth_block_backward",
    "(Tensor grad, Tensor x, Tensor? gate, Tensor[] weights, Tensor[] saved) -> (Tensor, Tensor, Tensor[])",
)


def serves(x: Tensor, weights: BlockWeights) -> bool:
    return x.shape[-1] // weights.position_bias.shape[0] <= MAX_WIDTH


def variable_depth_block(x: Tensor, gate: Tensor | None, weights: BlockWeights, mask: Tensor | None) -> Tensor:
    """As :func:`tzn.ops.variable_depth_block`. Under autocast the linear layers run in its dtype; x stays as it is."""
    listed = list(weights)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        listed = [w.to(dtype) if i in LINEAR else w for i, w in enumerate(listed)]
    inputs = listed + ([x] if gate is None else [x, gate])
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return torch.ops.tzn_triton.variable_depth_block_keep(x, gate, listed, mask)[0]
    return torch.ops.tzn_triton.variable_depth_block(x, gate, listed, mask)


def _rows_innermost(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _dense(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl("tzn_triton::variable_depth_block", "default")  # type: ignore[untyped-decorator]
def _block(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    from tzn.kernels import variable_depth_block as kernels

    if x.numel() == 0:
        return _dense(x)
    return kernels.forward(_rows_innermost(x), gate, kernels.grouped(weights), mask, keep=False)[0]


@torch.library.register_fake("tzn_triton::variable_depth_block")  # type: ignore[untyped-decorator]
def _(x, gate, weights, mask):  # type: ignore[no-untyped-def]
    return _dense(x)


@torch.library.impl("tzn_triton::variable_depth_block_keep", "default")  # type: ignore[untyped-decorator]
def _block_keep(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> tuple[Tensor, ...]:
    from tzn.kernels import variable_depth_block as kernels

    if x.numel() == 0:
        return _kept(x, weights)
    out, saved = kernels.forward(_rows_innermost(x), gate, kernels.grouped(weights), mask, keep=True)
    return (out, *saved)


def _kept(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and :class:`tzn.kernels.variable_depth_block.Saved`, not filled in."""
    named = BlockWeights(*weights)
    tokens, width = x.shape[0] * x.shape[1], x.shape[2]
    dtype, heads, hidden = named.query_weight.dtype, named.position_bias.shape[0], named.up_weight.shape[0]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    lists = [empty(size, dtype=torch.int32) for size in (tokens, tokens, tokens, tokens, 2)]
    flags = empty(tokens, dtype=torch.uint8)
    first, second = ([empty(tokens, dtype=wide) for _ in range(2)] for _ in range(2))
    qkv = [empty(tokens, columns, dtype=dtype) for columns in (width, 2 * width, width)]
    lse = empty(heads, tokens, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    y, before = empty(tokens, width, dtype=x.dtype), empty(tokens, hidden, dtype=dtype)
    return (_dense(x), *lists, flags, *first, *qkv, lse, y, *second, before)


@torch.library.register_fake("tzn_triton::variable_depth_block_keep")  # type: ignore[untyped-decorator]
def _(x, gate, weights, mask):  # type: ignore[no-untyped-def]
    return _kept(x, weights)


@torch.library.impl("tzn_triton::variable_depth_block_backward", "default")  # type: ignore[untyped-decorator]
def _block_backward(
    grad: Tensor, x: Tensor, gate: Tensor | None, weights: list[Tensor], saved: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    from tzn.kernels import variable_depth_block as kernels

    if x.numel() == 0:
        return _dense(x), x.new_empty(0) if gate is None else _dense(gate), [w.new_zeros(w.shape) for w in weights]
    dx, dgate, gradients = kernels.backward(
        grad, _rows_innermost(x), gate, kernels.grouped(weights), kernels.Saved(*saved)
    )
    given = [g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)]
    return dx, x.new_empty(0) if dgate is None else dgate, given


@torch.library.register_fake("tzn_triton::variable_depth_block_backward")  # type: ignore[untyped-decorator]
def _(grad, x, gate, weights, saved):  # type: ignore[no-untyped-def]
    return _dense(x), x.new_empty(0) if gate is None else _dense(gate), [_dense(w) for w in weights]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gate, weights, _ = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(x, gate, *weights, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    x, gate, *rest = ctx.saved_tensors
    weights, saved = rest[: ctx.count], rest[ctx.count :]
    dx, dgate, gradients = torch.ops.tzn_triton.variable_depth_block_backward(grad, x, gate, weights, saved)
    return dx, None if gate is None else dgate, gradients, None


torch.library.register_autograd("tzn_triton::variable_depth_block_keep", _backward, setup_context=_setup)

"""Windowed attention on the compiled CPU kernels (``csrc/cpu/local_attention.cpp``), with gradients.

Nothing but the inputs is kept for the backward pass: it computes the softmax weights again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels accumulate in, and in which they take the bias."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def adjacent(x: Tensor) -> Tensor:
    """``x`` with adjacent elements in its last dimension, which is all that the kernels ask of strides."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``[B, H, T, D]`` with the memory order of ``[B, T, H, D]``; arguments as in :func:`tzn.ops.local_attention`."""
    tensors = (q, k, v) if bias is None else (q, k, v, bias)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _LocalAttention.apply(q, k, v, bias, window, mask, query_mask)  # type: ignore[no-any-return]
    return _forward(q, k, v, bias, window, mask, query_mask)


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: int, mask: Tensor | None, query_mask: Tensor | None
) -> tuple[Any, ...]:
    """Arguments of the compiled ops, forward and backward."""
    masks = (None if m is None else m.contiguous() for m in (mask, query_mask))
    bias = None if bias is None else bias.to(compute_dtype(q.dtype)).contiguous()
    return (adjacent(q), adjacent(k), adjacent(v), window, *masks, bias)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    batch, heads, steps, width = q.shape
    out = q.new_empty(batch, steps, heads, width).transpose(1, 2)
    torch.ops.tzn_native.local_attention(*_prepared(q, k, v, bias, *settings), out)
    return out


def local_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    mask: Tensor | None,
    query_mask: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and, where there is one, of the bias."""
    dq, dk, dv = (torch.empty_like(adjacent(x)) for x in (q, k, v))
    dbias = None if bias is None else torch.empty_like(bias, dtype=compute_dtype(q.dtype)).contiguous()
    torch.ops.tzn_native.local_attention_backward(
        adjacent(grad), *_prepared(q, k, v, bias, window, mask, query_mask), dq, dk, dv, dbias
    )
    return dq, dk, dv, None if bias is None or dbias is None else dbias.to(bias.dtype)


def packed_local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, slot: Tensor, position: Tensor, bias: Tensor
) -> Tensor:
    """``[A, H, D]``; arguments as in :func:`tzn.reference.local_attention.packed_local_attention`."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, bias)):
        return _PackedLocalAttention.apply(q, k, v, bias, window, slot, position)  # type: ignore[no-any-return]
    return _packed_forward(q, k, v, bias, window, slot, position)


def _packed_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int, slot: Tensor, position: Tensor
) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    cast = bias.to(compute_dtype(q.dtype)).contiguous()
    torch.ops.tzn_native.packed_local_attention(
        adjacent(q), adjacent(k), adjacent(v), window, slot, position, cast, out
    )
    return out


class _PackedLocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _packed_forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, bias, ctx.window, slot, position = inputs
        ctx.save_for_backward(q, k, v, bias, slot, position)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, slot, position = ctx.saved_tensors
        cast = bias.to(compute_dtype(q.dtype)).contiguous()
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
        dbias = torch.empty_like(cast)
        torch.ops.tzn_native.packed_local_attention_backward(
            adjacent(grad), adjacent(q), adjacent(k), adjacent(v), ctx.window, slot, position, cast, dq, dk, dv, dbias
        )
        return dq, dk, dv, dbias.to(bias.dtype), None, None, None


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, bias, ctx.window, mask, query_mask = inputs
        ctx.save_for_backward(q, k, v, bias, mask, query_mask)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, mask, query_mask = ctx.saved_tensors
        dq, dk, dv, dbias = local_attention_backward(grad, q, k, v, ctx.window, mask, query_mask, bias)
        return dq, dk, dv, dbias, None, None, None

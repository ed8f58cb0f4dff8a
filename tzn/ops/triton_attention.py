"""Windowed attention on the Triton kernels: ``torch.ops.tzn_triton.attention`` and its gradient as opaque ops.

Opaque, because ``torch.library.triton_op`` refuses interpreted kernels and could not be tested without a GPU. Triton itself
is imported when an op first runs, so that this file costs nothing where it is not installed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_WIDTH = 256  # channels per head; a wider tile does not fit into shared memory

torch.library.define(
    "tzn_triton::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? query_mask, int window) -> ("
    + ", ".join(["Tensor"] * 8)
    + ")",
)
torch.library.define(
    "tzn_triton::attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor out, Tensor lse, Tensor[] lists, int window) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)


def serves(q: Tensor) -> bool:
    return q.shape[-1] <= MAX_WIDTH


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """As :func:`tzn.ops.local_attention`; autocast applies to q, k and v, as it does to PyTorch's own attention."""
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return torch.ops.tzn_triton.attention(q, k, v, bias, mask, query_mask, window)[0]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_innermost(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _like(x: Tensor, fill: bool) -> Tensor:
    """``[B, H, T, D]`` with the memory order of ``[B, T, H, D]``."""
    batch, heads, steps, width = x.shape
    new = x.new_zeros if fill else x.new_empty
    return new(batch, steps, heads, width).transpose(1, 2)


@torch.library.impl("tzn_triton::attention", "default")  # type: ignore[untyped-decorator]
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, query_mask: Tensor | None, window: int
) -> tuple[Tensor, ...]:
    from tzn.kernels.attention import attention_forward
    from tzn.kernels.compaction import compact

    batch, _, steps, _ = q.shape
    lists = None
    if mask is not None or query_mask is not None:
        gate = None if query_mask is None else query_mask.view(torch.uint8)
        lists = compact(gate, mask, batch, steps, window, q.device)
    out = _like(q, lists is not None)
    q, k, v = (_rows_innermost(x) for x in (q, k, v))
    lse = attention_forward(q, k, v, None if bias is None else bias.contiguous(), lists, steps, window, out)
    empty = [q.new_empty(0, dtype=torch.int32) for _ in range(6)]
    return (out, lse, *(empty if lists is None else lists))


@torch.library.register_fake("tzn_triton::attention")  # type: ignore[untyped-decorator]
def _(q, k, v, bias, mask, query_mask, window):  # type: ignore[no-untyped-def]
    batch, heads, steps, _ = q.shape
    tokens = batch * steps
    lse = q.new_empty(heads, tokens, dtype=_accumulator(q.dtype))
    if mask is None and query_mask is None:
        return (_like(q, False), lse, *(q.new_empty(0, dtype=torch.int32) for _ in range(6)))
    lists = [q.new_empty(size, dtype=torch.int32) for size in (tokens, tokens, tokens, tokens, 2)]
    return (_like(q, False), lse, *lists, q.new_empty(tokens, dtype=torch.uint8))


@torch.library.impl("tzn_triton::attention_backward", "default")  # type: ignore[untyped-decorator]
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, lists: list[Tensor],
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from tzn.kernels.attention_backward import attention_backward
    from tzn.kernels.compaction import TokenLists

    subset = lists[5].dtype == torch.uint8
    dq, dk, dv = (_like(q, subset) for _ in range(3))
    grad, q, k, v = (_rows_innermost(x) for x in (grad, q, k, v))
    dbias = attention_backward(
        grad, q, k, v, None if bias is None else bias.contiguous(), out, lse, TokenLists(*lists) if subset else None,
        q.shape[2], window, dq, dk, dv,
    )  # fmt: skip
    return dq, dk, dv, q.new_empty(0) if bias is None or dbias is None else dbias.to(bias.dtype)


@torch.library.register_fake("tzn_triton::attention_backward")  # type: ignore[untyped-decorator]
def _(grad, q, k, v, bias, out, lse, lists, window):  # type: ignore[no-untyped-def]
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return _like(q, False), _like(q, False), _like(q, False), dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, bias, _, _, ctx.window = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    q, k, v, bias, out, lse, *lists = ctx.saved_tensors
    dq, dk, dv, dbias = torch.ops.tzn_triton.attention_backward(grad, q, k, v, bias, out, lse, lists, ctx.window)
    return dq, dk, dv, None if bias is None else dbias, None, None, None


torch.library.register_autograd("tzn_triton::attention", _backward, setup_context=_setup)

"""Windowed attention with a padding mask, a query subset and a learned bias per head and offset."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops import native_attention, triton_attention
from tzn.ops.backend import choose_backend, uses_triton
from tzn.ops.checks import check_alike, check_device, check_floating, check_mask, check_shape, check_window, fail
from tzn.ops.opaque import as_one_node, is_counting
from tzn.ops.recompute import gradients_of


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of every chosen query to the valid keys within ``window // 2`` steps.

    ``out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[j - i + r]) v_j`` over valid j with ``|i - j| <= r``,
    softmax in float32 (float64 for float64 input). docs/design.md section 2.

    Args:
        q, k, v: ``[B, H, T, D]`` floating, equal dtypes and devices; any strides.
        window: odd w >= 1; may exceed T.
        mask: ``[B, T]`` bool, True = valid; None: all valid.
        query_mask: ``[B, T]`` bool, the queries to compute; None: all. Work follows them.
        bias: ``[H, w]`` or None.

    Returns:
        ``[B, H, T, D]`` with the memory order of ``[B, T, H, D]``; rows that are not valid queries are zero.
        Differentiable once in q, k, v and bias.

    Raises:
        ValueError: wrong shape, dtype or device, even or negative window.
    """
    check_floating("q", q)
    check_shape("q", q, "[B, H, T, D]", None, None, None, None)
    batch, heads, steps, width = q.shape
    if width == 0:
        fail("q", f"shape {tuple(q.shape)}", "[B, H, T, D] with D >= 1")
    check_alike("k", k, q, "q")
    check_alike("v", v, q, "q")
    check_window(window)
    check_mask("mask", mask, batch, steps, q.device)
    check_mask("query_mask", query_mask, batch, steps, q.device)
    if bias is not None:
        check_floating("bias", bias)
        check_shape("bias", bias, f"[H, window] = [{heads}, {window}]", heads, window)
        check_device("bias", bias, q.device)
    if uses_triton(q.device) and triton_attention.serves(q) and not is_counting():
        return triton_attention.local_attention(q, k, v, window, mask, query_mask, bias)
    if as_one_node():
        return _opaque(q, k, v, window, mask, query_mask, bias)
    return _run(q, k, v, window, mask, query_mask, bias)


def _run(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    if choose_backend(q.device) == "cpp":
        return native_attention.local_attention(q, k, v, window, mask, query_mask, bias)
    batch, heads, steps, width = q.shape
    if bias is None:
        window = min(window, 2 * steps + 1)  # a wider one reaches as far and takes more memory
    everything = torch.ones(batch, steps, dtype=torch.bool, device=q.device)
    valid = everything if mask is None else mask
    queries = valid if query_mask is None else valid & query_mask
    active, halo = reference.active_tokens(queries.to(torch.float32), window, valid)

    def rows(x: Tensor, index: Tensor) -> Tensor:
        flat = x.transpose(1, 2).reshape(batch * steps, heads, width)
        return flat if index.numel() == batch * steps else flat[index]

    out = reference.packed_local_attention(
        rows(q, active), rows(k, halo), rows(v, halo), window,
        slot=torch.searchsorted(halo, active), position=halo + halo // max(steps, 1) * (window // 2), bias=bias,
    )  # fmt: skip
    dense = out.new_zeros(batch * steps, heads, width).index_copy(0, active, out)
    return dense.view(batch, steps, heads, width).transpose(1, 2)


@torch.library.custom_op("tzn::local_attention", mutates_args=())
def _opaque(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    return _run(q, k, v, window, mask, query_mask, bias)


@_opaque.register_fake
def _(q, k, v, window, mask, query_mask, bias):  # type: ignore[no-untyped-def]
    batch, heads, steps, width = q.shape
    return q.new_empty(batch, steps, heads, width).transpose(1, 2)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, ctx.window, mask, query_mask, bias = inputs
    ctx.save_for_backward(q, k, v, mask, query_mask, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    q, k, v, mask, query_mask, bias = ctx.saved_tensors
    dq, dk, dv, dbias = torch.ops.tzn.local_attention_backward(grad, q, k, v, ctx.window, mask, query_mask, bias)
    return dq, dk, dv, None, None, None, dbias if bias is not None else None


@torch.library.custom_op("tzn::local_attention_backward", mutates_args=())
def _opaque_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if choose_backend(q.device) == "cpp":
        dq, dk, dv, dbias = native_attention.local_attention_backward(grad, q, k, v, window, mask, query_mask, bias)
        return dq.contiguous(), dk.contiguous(), dv.contiguous(), q.new_empty(0) if dbias is None else dbias
    inputs = [q, k, v] + ([] if bias is None else [bias])
    grads = gradients_of(lambda q, k, v, bias=None: _run(q, k, v, window, mask, query_mask, bias), inputs, grad)
    return grads[0], grads[1], grads[2], grads[3] if bias is not None else q.new_zeros(0)


@_opaque_backward.register_fake
def _(grad, q, k, v, window, mask, query_mask, bias):  # type: ignore[no-untyped-def]
    contiguous = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    return (*contiguous, q.new_empty(0) if bias is None else torch.empty_like(bias))


_opaque.register_autograd(_backward, setup_context=_setup)

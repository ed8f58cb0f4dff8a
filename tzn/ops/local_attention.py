"""Windowed attention with padding masks, a query subset, a learned bias per head and offset, dilation, packed recordings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzn.kernels import accumulate_dtype, adjacent
from tzn.ops._backend import choose_backend, kernels
from tzn.ops._checks import (
    check_alike,
    check_count,
    check_device,
    check_floating,
    check_mask,
    check_shape,
    check_window,
    checks_values,
    fail,
)
from tzn.ops._register import autocast, define_with_gradients, empty_dense
from tzn.reference.local_attention import (
    central_bias,
    compact_local_attention,
    dilated_packed_attention,
    shifted_local_attention,
)

MAX_TRITON_WIDTH = 256  # channels per head; a wider tile does not fit into shared memory


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    bias: Tensor | None = None,
    dilation: int = 1,
    shifted: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Attention of every chosen query to the valid keys of its window.

    ``out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[o + c]) v_j`` over valid j at a whole offset
    ``o = (j - i) / dilation`` with ``|o| <= r = window // 2``; softmax in float32 (float64 for float64 input). Under autocast
    q, k and v take its dtype, as in PyTorch's own attention. docs/design.md section 2.

    Args:
        q, k, v: ``[B, H, T, D]`` floating, equal dtypes and devices, any strides; with ``cu_seqlens`` ``[N, H, D]``.
        window: odd w >= 1; may exceed T.
        mask: ``[B, T]`` bool, True = valid; None: all valid. Not with ``cu_seqlens``, which needs no padding.
        query_mask: ``[B, T]`` (``[N]``) bool, the queries to compute; None: all. Work follows them.
        bias: ``[H, w]``, its middle c = r being the query's own step; shifted ``[H, 2 w - 1]``, c = w - 1. None: none.
        dilation: d >= 1 steps between the keys of a window.
        shifted: windows at the ends of a recording are moved inwards until they are full (as in NATTEN), instead of being cut
            off. The ends are those of T (of every recording with ``cu_seqlens``); ``mask`` moves no window.
        cu_seqlens: ``[R + 1]`` int32 or int64, ascending from 0 to N: recordings that lie one after the other.

    Returns:
        Like q; ``[B, H, T, D]`` has the memory order of ``[B, T, H, D]``. Rows that are not valid queries are zero.
        Differentiable in q, k, v and bias: once by kernels, further by the definition.

    Raises:
        ValueError: wrong shape, dtype or device, even or negative window, ``cu_seqlens`` that does not rise from 0 to N.
    """
    _check(q, k, v, window, mask, query_mask, bias, dilation, shifted, cu_seqlens)
    q, k, v = autocast(q, k, v)
    if shifted and q.numel():
        return shifted_local_attention(_attend, q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)
    bias = central_bias(bias, window) if shifted else bias
    return _attend(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, cu_seqlens: Tensor | None,
) -> Tensor:  # fmt: skip
    if cu_seqlens is not None and dilation > 1:
        return dilated_packed_attention(_OP, q, k, v, window, query_mask, bias, dilation, cu_seqlens)
    return _OP(q, k, v, window, mask, query_mask, bias, dilation, cu_seqlens)  # type: ignore[no-any-return]


def _check(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, shifted: bool, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    check_floating("q", q)
    if cu_seqlens is None:
        check_shape("q", q, "[B, H, T, D]", None, None, None, None)
        batch, heads, steps, width = q.shape
        check_mask("mask", mask, batch, steps, q.device)
        check_mask("query_mask", query_mask, batch, steps, q.device)
    else:
        check_shape("q", q, "[N, H, D], with cu_seqlens", None, None, None)
        (tokens, heads, width), batch = q.shape, None
        if mask is not None:
            fail("mask", "a mask with cu_seqlens", "None: packed recordings have no padding")
        check_mask("query_mask", query_mask, None, tokens, q.device)
        _check_boundaries(cu_seqlens, tokens, q.device)
    if width == 0:
        fail("q", f"shape {tuple(q.shape)}", "D >= 1")
    check_alike("k", k, q, "q")
    check_alike("v", v, q, "q")
    check_window(window)
    check_count("dilation", dilation, 1)
    if bias is not None:
        size = 2 * window - 1 if shifted else window
        check_floating("bias", bias)
        check_shape("bias", bias, f"[H, {'2 window - 1' if shifted else 'window'}] = [{heads}, {size}]", heads, size)
        check_device("bias", bias, q.device)


def _check_boundaries(cu_seqlens: Tensor, tokens: int, device: torch.device) -> None:
    check_shape("cu_seqlens", cu_seqlens, "[R + 1]", None)
    check_device("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        fail("cu_seqlens", str(cu_seqlens.dtype), "torch.int32 or torch.int64")
    if cu_seqlens.numel() == 0:
        fail("cu_seqlens", "shape (0,)", "[R + 1]")
    if checks_values(cu_seqlens):
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != tokens or bool((cu_seqlens[1:] < cu_seqlens[:-1]).any()):
            fail("cu_seqlens", f"{cu_seqlens.tolist()[:8]} … {last}", f"ascending numbers from 0 to N = {tokens}")


# ---- the op ----


def _choose(q: Tensor, *_: Any) -> str:
    backend = choose_backend(q.device)
    return "reference" if backend == "triton" and q.shape[-1] > MAX_TRITON_WIDTH else backend


def _prepared(q: Tensor, window: int, bias: Tensor | None) -> tuple[int, Tensor | None]:
    """A window as wide as any that can matter, where a wider one would overflow times, and the bias as kernels want it."""
    if bias is None:
        return min(window, 2 * max(q.shape[0 if q.dim() == 3 else 2], 1) + 1), None
    return window, bias.to(accumulate_dtype(q.dtype)).contiguous()


def _forward(
    backend: str, keep: bool, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None,
    query_mask: Tensor | None, bias: Tensor | None, *layout: Any,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    out, (window, bias) = empty_dense(q), _prepared(q, window, bias)
    saved = kernels(backend, "local_attention").forward(
        adjacent(q), adjacent(k), adjacent(v), window, mask, query_mask, bias, *layout, out
    )
    return out, saved


def _backward(
    backend: str, grad: Tensor, out: Tensor | None, saved: list[Tensor], q: Tensor, k: Tensor, v: Tensor, window: int,
    mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None, *layout: Any,
) -> list[Tensor]:  # fmt: skip
    found, (window, bias) = [empty_dense(x) for x in (q, k, v)], _prepared(q, window, bias)
    rows = [adjacent(x) for x in (grad, q, k, v)]
    dbias = kernels(backend, "local_attention").backward(
        *rows, window, mask, query_mask, bias, *layout, out, saved, found
    )
    return found if bias is None else [*found, dbias]


def _empty_saved(backend: str, q: Tensor, *rest: Any) -> list[Tensor]:
    return kernels(backend, "local_attention").empty_saved(q, rest[-2]) if backend == "triton" else []


_OP = define_with_gradients(
    "local_attention",
    "Tensor q, Tensor k, Tensor v, int window, Tensor? mask, Tensor? query_mask, Tensor? bias, int dilation, "
    "Tensor? cu_seqlens",
    choose=_choose, definition=compact_local_attention, forward=_forward, backward=_backward, empty_saved=_empty_saved,
    reads_out=True,
)  # fmt: skip

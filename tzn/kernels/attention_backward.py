"""Variable-depth local attention, backward: deterministic, without atomics.

With P = softmax(S), dP = dO V^T and delta = rowsum(dO * O):   dS = P * (dP - delta),   dV = P^T dO,   dK = dS^T Q / sqrt(D),
dQ = dS K / sqrt(D),   dbias[o] = sum of dS over pairs with offset o.

First pass, owned by tiles of queries (as in the forward pass): delta, dQ, and the tile's share of dbias, which a sum in fixed
order over tiles completes. Second pass, owned by tiles of BLOCK_N halo keys: at most r active tokens lie within r steps
before a key, so its queries are active[near(first) - r : near(last) + r + 1], streamed BLOCK_M at a time.
P is rebuilt from the saved log-sum-exp. Each pass reads q, k, v, dO once per tile that sees them; nothing of size w is
written but H * w bias sums per tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels.attention import (
    attention_scores,
    heads_and_width,
    load_rows,
    row_offsets,
    row_strides,
    store_rows,
    token_and_time,
)
from tzn.kernels.compaction import TokenLists
from tzn.kernels.launch import accumulator, block_width, launch, precision


class AttentionGradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


@triton.jit
def attention_backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, dbias_ptr,
    active_ptr, halo_ptr, slot_ptr, counts_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt, stride_db, stride_dh, stride_dt,
    steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    first = tile * BLOCK_M
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries = tokens
    keys = tokens
    if SUBSET:
        queries = tl.load(counts_ptr)
        keys = tl.load(counts_ptr + 1)
    offsets_of_bias = tl.arange(0, BLOCK_W)
    dbias = tl.zeros([BLOCK_W], ACC)
    share = dbias_ptr + (tile.to(tl.int64) * tl.num_programs(1) + head) * (2 * radius + 1) + offsets_of_bias
    if first >= queries:
        if HAS_BIAS:
            tl.store(share, dbias, mask=offsets_of_bias <= 2 * radius)
        return
    last = tl.minimum(first + BLOCK_M, queries) - 1
    low = first
    high = last
    if SUBSET:
        low = tl.load(slot_ptr + first)
        high = tl.load(slot_ptr + last)
    low = tl.maximum(low - radius, 0)
    high = tl.minimum(high + radius + 1, keys)

    row = first + tl.arange(0, BLOCK_M)
    live = row < queries
    token, time = token_and_time(active_ptr, row, live, steps, radius, SUBSET)
    q_rows = row_offsets(token, row, stride_qb, stride_qt, steps, PACKED)
    q = load_rows(q_ptr + head * stride_qh, q_rows, live, D, BLOCK_D)
    g_rows = row_offsets(token, row, stride_gb, stride_gt, steps, PACKED)
    grad = load_rows(grad_ptr + head * stride_gh, g_rows, live, D, BLOCK_D)
    o_rows = row_offsets(token, row, stride_ob, stride_ot, steps, PACKED)
    out = load_rows(out_ptr + head * stride_oh, o_rows, live, D, BLOCK_D)
    delta = tl.sum(out.to(ACC) * grad.to(ACC), 1)
    per_head = head.to(tl.int64) * tokens + row
    tl.store(delta_ptr + per_head, delta, mask=live)
    lse = tl.load(lse_ptr + per_head, mask=live, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    for start in range(low, high, BLOCK_N):
        key_row = start + tl.arange(0, BLOCK_N)
        key_live = key_row < high
        key_token, key_time = token_and_time(halo_ptr, key_row, key_live, steps, radius, SUBSET)
        k_rows = row_offsets(key_token, key_row, stride_kb, stride_kt, steps, PACKED)
        k = load_rows(k_ptr + head * stride_kh, k_rows, key_live, D, BLOCK_D)
        v_rows = row_offsets(key_token, key_row, stride_vb, stride_vt, steps, PACKED)
        v = load_rows(v_ptr + head * stride_vh, v_rows, key_live, D, BLOCK_D)
        offset = key_time[None, :] - time[:, None]
        allowed = (offset <= radius) & (offset >= -radius) & key_live[None, :] & live[:, None]
        scores = attention_scores(q, k, bias_ptr, head, offset, allowed, radius, SCALE, HAS_BIAS, ACC, PRECISION)
        weights = tl.exp2(scores - lse[:, None])
        dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=ACC)
        if HAS_BIAS:
            for place in range(0, 2 * radius + 1):
                along = tl.sum(tl.sum(tl.where(offset == place - radius, dscores, 0.0), 1), 0)
                dbias += tl.where(offsets_of_bias == place, along, 0.0)
    d_rows = row_offsets(token, row, stride_db, stride_dt, steps, PACKED)
    store_rows(dq_ptr + head * stride_dh, d_rows, dq * SCALE, live, D, BLOCK_D)
    if HAS_BIAS:
        tl.store(share, dbias, mask=offsets_of_bias <= 2 * radius)


@triton.jit
def attention_backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    active_ptr, halo_ptr, near_ptr, counts_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt, stride_db, stride_dh, stride_dt, stride_eb, stride_eh, stride_et,
    steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries = tokens
    keys = tokens
    if SUBSET:
        queries = tl.load(counts_ptr)
        keys = tl.load(counts_ptr + 1)
    if first >= keys:
        return
    last = tl.minimum(first + BLOCK_N, keys) - 1
    low = first
    high = last
    if SUBSET:
        low = tl.load(near_ptr + first)
        high = tl.load(near_ptr + last)
    low = tl.maximum(low - radius, 0)
    high = tl.minimum(high + radius + 1, queries)

    key_row = first + tl.arange(0, BLOCK_N)
    key_live = key_row < keys
    key_token, key_time = token_and_time(halo_ptr, key_row, key_live, steps, radius, SUBSET)
    k_rows = row_offsets(key_token, key_row, stride_kb, stride_kt, steps, PACKED)
    k = load_rows(k_ptr + head * stride_kh, k_rows, key_live, D, BLOCK_D)
    v_rows = row_offsets(key_token, key_row, stride_vb, stride_vt, steps, PACKED)
    v = load_rows(v_ptr + head * stride_vh, v_rows, key_live, D, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    dv = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    for start in range(low, high, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < high
        token, time = token_and_time(active_ptr, row, live, steps, radius, SUBSET)
        q_rows = row_offsets(token, row, stride_qb, stride_qt, steps, PACKED)
        q = load_rows(q_ptr + head * stride_qh, q_rows, live, D, BLOCK_D)
        g_rows = row_offsets(token, row, stride_gb, stride_gt, steps, PACKED)
        grad = load_rows(grad_ptr + head * stride_gh, g_rows, live, D, BLOCK_D)
        per_head = head.to(tl.int64) * tokens + row
        lse = tl.load(lse_ptr + per_head, mask=live, other=0.0)
        delta = tl.load(delta_ptr + per_head, mask=live, other=0.0)
        offset = key_time[None, :] - time[:, None]
        allowed = (offset <= radius) & (offset >= -radius) & key_live[None, :] & live[:, None]
        scores = attention_scores(q, k, bias_ptr, head, offset, allowed, radius, SCALE, HAS_BIAS, ACC, PRECISION)
        weights = tl.exp2(scores - lse[:, None])
        dv = tl.dot(tl.trans(weights.to(grad.dtype)), grad, dv, input_precision=PRECISION, out_dtype=ACC)
        dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        dscores = weights * (dweights - delta[:, None])
        dk = tl.dot(tl.trans(dscores.to(q.dtype)), q, dk, input_precision=PRECISION, out_dtype=ACC)
    d_rows = row_offsets(key_token, key_row, stride_db, stride_dt, steps, PACKED)
    store_rows(dk_ptr + head * stride_dh, d_rows, dk * SCALE, key_live, D, BLOCK_D)
    e_rows = row_offsets(key_token, key_row, stride_eb, stride_et, steps, PACKED)
    store_rows(dv_ptr + head * stride_eh, e_rows, dv, key_live, D, BLOCK_D)


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor,
    lists: TokenLists | None, steps: int, window: int, dq: Tensor, dk: Tensor, dv: Tensor,
) -> Tensor | None:  # fmt: skip
    """Fills the active rows of ``dq`` and the halo rows of ``dk`` and ``dv``; returns the bias gradient ``[H, w]``.

    Layouts as in :func:`tzn.kernels.attention.attention_forward`; the bias gradient is in the accumulator's dtype.
    """
    heads, width = heads_and_width(q)
    tokens = lse.shape[1]
    acc = accumulator(q.dtype)
    if tokens == 0:
        return None if bias is None else torch.zeros(heads, window, dtype=acc.torch, device=q.device)
    delta = torch.empty_like(lse)
    of_queries = (lse,) * 4 if lists is None else (lists.active, lists.halo, lists.slot, lists.counts)
    of_keys = (lse,) * 4 if lists is None else (lists.active, lists.halo, lists.near, lists.counts)
    bias_or_any = lse if bias is None else bias
    variant = {
        "D": width, "SCALE": width**-0.5, "PACKED": q.dim() == 3, "SUBSET": lists is not None,
        "HAS_BIAS": bias is not None, "ACC": acc.triton, "PRECISION": precision(q.dtype), "BLOCK_D": block_width(width),
    }  # fmt: skip
    shares: list[Tensor] = []

    def by_queries(config: dict[str, int]) -> None:
        tiles = triton.cdiv(tokens, config["BLOCK_M"])
        shares[:] = [lse if bias is None else lse.new_empty(tiles, heads, window)]
        attention_backward_queries_kernel[(tiles, heads)](
            q, k, v, bias_or_any, out, grad, lse, delta, dq, shares[0], *of_queries,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(out), *row_strides(grad), *row_strides(dq),
            steps, tokens, window // 2, BLOCK_W=triton.next_power_of_2(window), **variant, **config,
        )  # fmt: skip

    def by_keys(config: dict[str, int]) -> None:
        attention_backward_keys_kernel[(triton.cdiv(tokens, config["BLOCK_N"]), heads)](
            q, k, v, bias_or_any, grad, lse, delta, dk, dv, *of_keys,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(grad), *row_strides(dk), *row_strides(dv),
            steps, tokens, window // 2, **variant, **config,
        )  # fmt: skip

    launch("attention_backward_queries", q.dtype, block_width(width), by_queries, q.device)
    launch("attention_backward_keys", q.dtype, block_width(width), by_keys, q.device)
    return None if bias is None else shares[0].sum(0)

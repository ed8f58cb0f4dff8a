"""Variable-depth local attention, forward.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[j - i + r]) v_j     over halo tokens j with |i - j| <= r

Tile picture (one program = one head, BLOCK_M consecutive *active* queries in time order):

    active   . . [q0 q1 . . q63] . . .        first - r        last + r     at most r halo tokens lie within r steps
    halo     . . . [k . . . . . . . . k] . . .    |---- span ----|          before a query, so the span of keys is
                                                                             halo[slot(first) - r : slot(last) + r + 1]

The span is streamed BLOCK_N keys at a time with an online softmax in float32. Gaps between clusters of active tokens are
not in the halo, so they are never read: work follows the active tokens wherever they lie.
Reads q once, k and v once per tile that sees them (1 + (w - 1) / BLOCK_M times with dense queries), writes out and one
float32 per query and head (the base-2 log-sum-exp, for the backward pass).
Rows lie either dense as [B, H, T, D] with any strides, or PACKED: query i and key j of the lists at row i and row j.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels.compaction import TokenLists
from tzn.kernels.launch import accumulator, block_width, launch, precision

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_offsets(token, row, stride_b, stride_t, steps, PACKED: tl.constexpr):
    """Where rows start, in elements, 64 bits wide."""
    if PACKED:
        return row.to(tl.int64) * stride_t
    return (token // steps).to(tl.int64) * stride_b + (token % steps).to(tl.int64) * stride_t


@triton.jit
def token_and_time(list_ptr, row, live, steps, radius, SUBSET: tl.constexpr):
    """Token of a list's row, and its time with a gap of one radius between recordings, which keeps them apart."""
    token = row
    if SUBSET:
        token = tl.load(list_ptr + row, mask=live, other=0)
    return token, token + (token // steps) * radius


@triton.jit
def load_rows(ptr, offsets, live, D: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    if D == BLOCK_D:
        return tl.load(ptr + offsets[:, None] + column[None, :], mask=live[:, None], other=0.0)
    return tl.load(ptr + offsets[:, None] + column[None, :], mask=live[:, None] & (column[None, :] < D), other=0.0)


@triton.jit
def store_rows(ptr, offsets, values, live, D: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    values = values.to(ptr.dtype.element_ty)
    if D == BLOCK_D:
        tl.store(ptr + offsets[:, None] + column[None, :], values, mask=live[:, None])
    else:
        tl.store(ptr + offsets[:, None] + column[None, :], values, mask=live[:, None] & (column[None, :] < D))


@triton.jit
def attention_scores(
    q, k, bias_ptr, head, offset, allowed, radius,
    SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of [M, N] pairs in units of log 2, -inf where a pair is not allowed; ``offset`` is key minus query time."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2_E)
    if HAS_BIAS:
        place = bias_ptr + head * (2 * radius + 1) + offset + radius
        scores += tl.load(place, mask=allowed, other=0.0).to(ACC) * LOG2_E
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, lse_ptr, active_ptr, halo_ptr, slot_ptr, counts_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries = tokens
    keys = tokens
    if SUBSET:
        queries = tl.load(counts_ptr)
        keys = tl.load(counts_ptr + 1)
    if first >= queries:
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
    largest = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    out = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    for start in range(low, high, BLOCK_N):
        key_row = start + tl.arange(0, BLOCK_N)
        key_live = key_row < high
        key_token, key_time = token_and_time(halo_ptr, key_row, key_live, steps, radius, SUBSET)
        k_rows = row_offsets(key_token, key_row, stride_kb, stride_kt, steps, PACKED)
        k = load_rows(k_ptr + head * stride_kh, k_rows, key_live, D, BLOCK_D)
        offset = key_time[None, :] - time[:, None]
        allowed = (offset <= radius) & (offset >= -radius) & key_live[None, :] & live[:, None]
        scores = attention_scores(q, k, bias_ptr, head, offset, allowed, radius, SCALE, HAS_BIAS, ACC, PRECISION)
        raised = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has met none of its keys yet
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        v_rows = row_offsets(key_token, key_row, stride_vb, stride_vt, steps, PACKED)
        v = load_rows(v_ptr + head * stride_vh, v_rows, key_live, D, BLOCK_D)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
        largest = raised
    # Every live query met itself; only the rows past the count have an empty sum.
    total = tl.where(live, total, 1.0)
    o_rows = row_offsets(token, row, stride_ob, stride_ot, steps, PACKED)
    store_rows(out_ptr + head * stride_oh, o_rows, out / total[:, None], live, D, BLOCK_D)
    tl.store(lse_ptr + head.to(tl.int64) * tokens + row, largest + tl.log2(total), mask=live)


def row_strides(x: Tensor) -> tuple[int, int, int]:
    """(batch, head, row) strides of dense ``[B, H, T, D]`` or packed ``[N, H, D]`` rows with D innermost."""
    if x.dim() == 4:
        return x.stride(0), x.stride(1), x.stride(2)
    return 0, x.stride(1), x.stride(0)


def heads_and_width(x: Tensor) -> tuple[int, int]:
    return (x.shape[1], x.shape[3]) if x.dim() == 4 else (x.shape[1], x.shape[2])


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lists: TokenLists | None, steps: int, window: int, out: Tensor
) -> Tensor:
    """Fills the active rows of ``out`` and returns the log-sum-exp ``[H, N]`` (base 2; row i is active token i).

    ``q``, ``k``, ``v``, ``out``: ``[B, H, T, D]``, or packed ``[N, H, D]`` in the order of ``lists``; D innermost.
    ``lists`` None: every token is active.
    """
    heads, width = heads_and_width(q)
    tokens = q.shape[0] * q.shape[2] if q.dim() == 4 else q.shape[0]
    acc = accumulator(q.dtype)
    lse = torch.empty(heads, tokens, dtype=acc.torch, device=q.device)
    if tokens == 0:
        return lse
    stand_in = lse
    pointers = (stand_in,) * 4 if lists is None else (lists.active, lists.halo, lists.slot, lists.counts)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(tokens, config["BLOCK_M"]), heads)
        attention_forward_kernel[grid](
            q, k, v, stand_in if bias is None else bias, out, lse, *pointers,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(out), steps, tokens, window // 2,
            D=width, SCALE=width**-0.5, PACKED=q.dim() == 3, SUBSET=lists is not None, HAS_BIAS=bias is not None,
            ACC=acc.triton, PRECISION=precision(q.dtype), BLOCK_D=block_width(width), **config,
        )  # fmt: skip

    launch("attention_forward", q.dtype, block_width(width), run, q.device)
    return lse

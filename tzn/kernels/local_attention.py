"""Variable-depth local attention, forward and backward.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[j - i + r]) v_j     over halo tokens j with |i - j| <= r

Tile picture (one program = one head, BLOCK_M consecutive *active* queries in time order):

    active   . . [q0 q1 . . q63] . . .        first - r        last + r     at most r halo tokens lie within r steps
    halo     . . . [k . . . . . . . . k] . . .    |---- span ----|          before a query, so the span of keys is
                                                                             halo[slot(first) - r : slot(last) + r + 1]

The span is streamed BLOCK_N keys at a time with an online softmax in float32. Gaps between clusters of active tokens are
not in the halo, so they are never read: work follows the active tokens wherever they lie.
Reads q once, k and v once per tile that sees them (1 + (w - 1) / BLOCK_M times with dense queries), writes out and two
float32 per query and head for the backward pass: the row's largest score in units of log 2, and one over its sum.
Rows lie either dense as [B, H, T, D] with any strides, or PACKED: query i and key j of the lists at row i and row j.

Backward: deterministic, without atomics.
With P = softmax(S), dP = dO V^T and delta = rowsum(dO * O):   dS = P * (dP - delta),   dV = P^T dO,   dK = dS^T Q / sqrt(D),
dQ = dS K / sqrt(D),   dbias[o] = sum of dS over pairs with offset o.

In 16 bits, up to 128 channels and windows up to WINDOW_IN_TILE, one pass (`fits_in_tile`). A program takes
BLOCK halo keys, r of them before and r behind the
BLOCK - 2 r that it owns, and the queries that may meet its own: those active within them are its own too and meet no key
outside the tile. So the band is gathered once, five products of whole tiles give all three gradients of what is owned, and
nothing is streamed; tiles overlap by 2 r rows, which lie in L2. delta stays in registers. Reads q, k, v, O, dO, writes dQ, dK,
dV: 8 rows where two passes move 12.
Else two passes. First, owned by tiles of queries (as in the forward pass): delta, dQ. Second, owned by tiles of BLOCK_N halo
keys: at most r active tokens lie within r steps before a key, so its queries are active[near(first) - r : near(last) + r + 1],
streamed BLOCK_M at a time.
dbias: every row of dS is gathered by offset, [M, w] (the row of a key is found by counting the halo), and summed over
rows once, where a sum an offset takes 2 w passes through shared memory; a sum in fixed order over tiles completes it.
Gathering in the first of two passes is for float32 of up to 64 channels: more spills (4 to 28 instructions, triton 3.6,
2026-11).
P is rebuilt as exp2(S - largest) * (1 / sum), the forward pass's own arithmetic: exp2(S - log-sum-exp) rounds once more,
which tripled the error of dV (2026-11). Nothing of size w is written but H * w bias sums per tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels import accumulate_dtype
from tzn.kernels._launch import (
    accumulator,
    after_previous,
    architecture,
    block_width,
    launch,
    on_its_device,
    precision,
    programmatic,
)
from tzn.kernels.active_tokens import TokenLists, compact
from tzn.reference.local_attention import over_residues, packed_times

LOG2_E = tl.constexpr(1.4426950408889634)
CHUNK = tl.constexpr(32)
BYTES_IN_TILE = 2  # of elements of which a whole band fits into the registers of one program: more spill (2026-11)
TILED = ("sm80", "sm90")  # on sm_100 tiles of 128 channels spill (2 to 30 instructions, triton 3.6, 2026-11)
WINDOW_IN_TILE = 33  # half of the smallest tile's rows, and one, are then its own
WIDE = 128  # channels of more than 16 bits beyond which products of rows are summed up chunk by chunk


@triton.jit
def row_offsets(token, row, stride_b, stride_t, steps, PACKED: tl.constexpr):
    """Where rows start, in elements, 64 bits wide."""
    if PACKED:
        return row.to(tl.int64) * stride_t
    return (token // steps).to(tl.int64) * stride_b + (token % steps).to(tl.int64) * stride_t


@triton.jit
def token_and_time(
    list_ptr, time_ptr, row, live, steps, radius, SUBSET: tl.constexpr, HAS_TIME: tl.constexpr
):  # fmt: skip
    """Token of a list's row, and its time with a gap of one radius between recordings, which keeps them apart."""
    token = row
    if SUBSET:
        token = tl.load(list_ptr + row, mask=live, other=0)
    if HAS_TIME:
        return token, tl.load(time_ptr + token, mask=live, other=0)
    return token, token + (token // steps) * radius


@triton.jit
def load_rows(
    ptr, stride_b, stride_h, stride_t, head, token, row, live, steps,
    PACKED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    start = ptr + head * stride_h
    offsets = row_offsets(token, row, stride_b, stride_t, steps, PACKED)
    if D == BLOCK_D:
        return tl.load(start + offsets[:, None] + column[None, :], mask=live[:, None], other=0.0)
    return tl.load(start + offsets[:, None] + column[None, :], mask=live[:, None] & (column[None, :] < D), other=0.0)


@triton.jit
def row_products(
    a_ptr, stride_ab, stride_ah, stride_at, token, row, live, b_ptr, stride_bb, stride_bh, stride_bt, other_token, other_row,
    other_live, head, steps, PACKED: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``[M, N]`` products of wide rows, CHUNK columns at a time: whole rows and their two TF32 halves fill the registers."""
    a_offsets = row_offsets(token, row, stride_ab, stride_at, steps, PACKED)
    b_offsets = row_offsets(other_token, other_row, stride_bb, stride_bt, steps, PACKED)
    products = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for first in range(0, D, CHUNK):
        column = first + tl.arange(0, CHUNK)
        a_place = a_ptr + head * stride_ah + a_offsets[:, None] + column[None, :]
        b_place = b_ptr + head * stride_bh + b_offsets[:, None] + column[None, :]
        a = tl.load(a_place, mask=live[:, None] & (column[None, :] < D), other=0.0)
        b = tl.load(b_place, mask=other_live[:, None] & (column[None, :] < D), other=0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION, out_dtype=ACC)
    return products


@triton.jit
def store_rows(
    ptr, stride_b, stride_h, stride_t, head, token, row, live, steps, values,
    PACKED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    start = ptr + head * stride_h
    offsets = row_offsets(token, row, stride_b, stride_t, steps, PACKED)
    values = values.to(ptr.dtype.element_ty)
    if D == BLOCK_D:
        tl.store(start + offsets[:, None] + column[None, :], values, mask=live[:, None])
    else:
        tl.store(start + offsets[:, None] + column[None, :], values, mask=live[:, None] & (column[None, :] < D))


@triton.jit
def number_of_rows(counts_ptr, tokens, SUBSET: tl.constexpr):
    """Queries and keys."""
    if SUBSET:
        return tl.load(counts_ptr), tl.load(counts_ptr + 1)
    return tokens, tokens


@triton.jit
def span_of_tile(place_ptr, first, last, others, radius, SUBSET: tl.constexpr):
    """Rows of the other list, from low to below high, that rows first to last may meet."""
    low = first
    high = last
    if SUBSET:
        low = tl.load(place_ptr + first)
        high = tl.load(place_ptr + last)
    return tl.maximum(low - radius, 0), tl.minimum(high + radius + 1, others)


@triton.jit
def attention_scores(
    products, bias_ptr, head, time, live, k_time, k_live, radius,
    SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Scores of [M, N] pairs, from the products of their rows, in units of log 2; -inf where a pair is not allowed."""
    offset = k_time[None, :] - time[:, None]
    allowed = (offset <= radius) & (offset >= -radius) & k_live[None, :] & live[:, None]
    scores = products * (SCALE * LOG2_E)
    if HAS_BIAS:
        place = bias_ptr + head * (2 * radius + 1) + offset + radius
        scores += tl.load(place, mask=allowed, other=0.0).to(ACC) * LOG2_E
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def store_statistics(ptr, head, tokens, row, largest, share, live):
    """Rows of ``[2, H, N]``; one program per head."""
    place = ptr + head * tokens + row
    tl.store(place, largest, mask=live)
    tl.store(place + tl.num_programs(1).to(tl.int64) * tokens, share, mask=live)


@triton.jit
def load_statistics(ptr, head, tokens, row, live):
    place = ptr + head * tokens + row
    largest = tl.load(place, mask=live, other=0.0)
    return largest, tl.load(place + tl.num_programs(1).to(tl.int64) * tokens, mask=live, other=0.0)


@triton.jit
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, stats_ptr, active_ptr, halo_ptr, slot_ptr, counts_ptr, time_ptr, mask_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr,
    HAS_TIME: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries, keys = number_of_rows(counts_ptr, tokens, SUBSET)
    if first >= queries:
        return
    last = tl.minimum(first + BLOCK_M, queries) - 1
    low, high = span_of_tile(slot_ptr, first, last, keys, radius, SUBSET)

    row = first + tl.arange(0, BLOCK_M)
    live = row < queries
    if HAS_MASK:
        live = live & (tl.load(mask_ptr + row, mask=live, other=0) != 0)
        if tl.sum(live.to(tl.int32), 0) == 0:
            return
    token, time = token_and_time(active_ptr, time_ptr, row, live, steps, radius, SUBSET, HAS_TIME)
    if not SPLIT:
        q = load_rows(q_ptr, stride_qb, stride_qh, stride_qt, head, token, row, live, steps, PACKED, D, BLOCK_D)
    largest = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    out = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    for start in range(low, high, BLOCK_N):
        k_row = start + tl.arange(0, BLOCK_N)
        k_live = k_row < high
        if HAS_MASK:
            k_live = k_live & (tl.load(mask_ptr + k_row, mask=k_live, other=0) != 0)
        k_token, k_time = token_and_time(halo_ptr, time_ptr, k_row, k_live, steps, radius, SUBSET, HAS_TIME)
        if SPLIT:
            products = row_products(
                q_ptr, stride_qb, stride_qh, stride_qt, token, row, live, k_ptr, stride_kb, stride_kh, stride_kt, k_token,
                k_row, k_live, head, steps, PACKED, D, ACC, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            k = load_rows(
                k_ptr, stride_kb, stride_kh, stride_kt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D
            )
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        scores = attention_scores(products, bias_ptr, head, time, live, k_time, k_live, radius, SCALE, HAS_BIAS, ACC)
        raised = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has met none of its keys yet
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        v = load_rows(v_ptr, stride_vb, stride_vh, stride_vt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
        largest = raised
    # Every live query met itself; only the rows past the count have an empty sum.
    total = tl.where(live, total, 1.0)
    share = 1.0 / total
    store_rows(
        out_ptr,
        stride_ob,
        stride_oh,
        stride_ot,
        head,
        token,
        row,
        live,
        steps,
        out * share[:, None],
        PACKED,
        D,
        BLOCK_D,
    )
    store_statistics(stats_ptr, head, tokens, row, largest, share, live)


def row_strides(x: Tensor) -> tuple[int, int, int]:
    """(batch, head, row) strides of dense ``[B, H, T, D]`` or packed ``[N, H, D]`` rows with D innermost."""
    if x.dim() == 4:
        return x.stride(0), x.stride(1), x.stride(2)
    return 0, x.stride(1), x.stride(0)


def heads_and_width(x: Tensor) -> tuple[int, int]:
    return (x.shape[1], x.shape[3]) if x.dim() == 4 else (x.shape[1], x.shape[2])


def splits(rows: Tensor) -> bool:
    """Whether products of rows are summed up chunk by chunk."""
    return rows.dtype.itemsize > 2 and rows.shape[-1] > WIDE


@on_its_device
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lists: TokenLists | None, steps: int, window: int, out: Tensor,
    time: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Fills the active rows of ``out``; returns each row's largest score and 1 / sum ``[2, H, N]`` (row i: active token i).

    ``q``, ``k``, ``v``, ``out``: ``[B, H, T, D]``, or packed ``[N, H, D]`` in the order of ``lists``; D innermost.
    ``lists`` None: every token is active, or those of ``mask`` ``[N]`` uint8, each at its own row. ``time`` ``[N]`` int32:
    times of the tokens, where recordings of unequal length lie one after the other in one long one; windows are measured
    on them.
    """
    heads, width = heads_and_width(q)
    tokens = q.shape[0] * q.shape[2] if q.dim() == 4 else q.shape[0]
    acc = accumulator(q.dtype)
    stats = torch.empty(2, heads, tokens, dtype=acc.torch, device=q.device)
    if tokens == 0:
        return stats
    stand_in = stats
    pointers = (stand_in,) * 4 if lists is None else (lists.active, lists.halo, lists.slot, lists.counts)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(tokens, config["BLOCK_M"]), heads)
        attention_forward_kernel[grid](
            q, k, v, stand_in if bias is None else bias, out, stats, *pointers, stand_in if time is None else time,
            stand_in if mask is None else mask,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(out), steps, tokens, window // 2,
            D=width, SCALE=width**-0.5, PACKED=q.dim() == 3, SUBSET=lists is not None, HAS_TIME=time is not None,
            HAS_MASK=mask is not None, HAS_BIAS=bias is not None, SPLIT=splits(q),
            ACC=acc.triton, PRECISION=precision(q.dtype), BLOCK_D=block_width(width), **programmatic(q.device), **config,
        )  # fmt: skip

    launch("attention_forward", q.dtype, block_width(width), run, q.device)
    return stats


@triton.jit
def band_rows(
    slot_ptr, flags_ptr, token, row, live, tokens, radius, SUBSET: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """Rows of the keys at every offset of a row's window, and which there are; another recording's too: its scores are 0."""
    offset = tl.arange(0, BLOCK_W)[None, :] - radius
    there = live[:, None] & (offset <= radius)
    place = row[:, None] + offset
    if SUBSET:  # as many rows away as tokens of the halo lie between
        token_there = token[:, None] + offset
        there = there & (token_there >= 0) & (token_there < tokens)
        there = there & ((tl.load(flags_ptr + token_there, mask=there, other=0).to(tl.int32) & 2) != 0)
        rank = tl.cumsum(there.to(tl.int32), 1)
        rank -= tl.sum(tl.where(offset == 0, rank, 0), 1)[:, None]
        place = tl.load(slot_ptr + row, mask=live, other=0)[:, None] + rank
    return place, there


@triton.jit
def gather_band(dscores, key_row, there, first, BLOCK: tl.constexpr):
    """``[M, BLOCK_W]``: what lies at every offset of a row's window, of BLOCK keys from ``first`` on."""
    column = key_row - first
    there = there & (column >= 0) & (column < BLOCK)
    return tl.where(there, tl.gather(dscores, tl.where(there, column, 0), 1), 0.0)


@triton.jit
def attention_backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, grad_ptr, stats_ptr, delta_ptr, dq_ptr, dbias_ptr,
    active_ptr, halo_ptr, slot_ptr, flags_ptr, counts_ptr, time_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt, stride_db, stride_dh, stride_dt,
    steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr,
    HAS_TIME: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr, GATHERED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    first = tile * BLOCK_M
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries, keys = number_of_rows(counts_ptr, tokens, SUBSET)
    offsets_of_bias = tl.arange(0, BLOCK_W)
    share = dbias_ptr + (tile.to(tl.int64) * tl.num_programs(1) + head) * (2 * radius + 1) + offsets_of_bias
    if first >= queries:
        if HAS_BIAS:
            tl.store(share, tl.zeros([BLOCK_W], ACC), mask=offsets_of_bias <= 2 * radius)
        return
    last = tl.minimum(first + BLOCK_M, queries) - 1
    low, high = span_of_tile(slot_ptr, first, last, keys, radius, SUBSET)

    row = first + tl.arange(0, BLOCK_M)
    live = row < queries
    token, time = token_and_time(active_ptr, time_ptr, row, live, steps, radius, SUBSET, HAS_TIME)
    if not SPLIT:
        q = load_rows(q_ptr, stride_qb, stride_qh, stride_qt, head, token, row, live, steps, PACKED, D, BLOCK_D)
    grad = load_rows(grad_ptr, stride_gb, stride_gh, stride_gt, head, token, row, live, steps, PACKED, D, BLOCK_D)
    out = load_rows(out_ptr, stride_ob, stride_oh, stride_ot, head, token, row, live, steps, PACKED, D, BLOCK_D)
    delta = tl.sum(out.to(ACC) * grad.to(ACC), 1)
    per_head = head.to(tl.int64) * tokens + row
    tl.store(delta_ptr + per_head, delta, mask=live)
    largest, normalize = load_statistics(stats_ptr, head, tokens, row, live)
    dq = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    if HAS_BIAS:
        dbias = tl.zeros([BLOCK_W], ACC)
        if GATHERED:
            key_row, there = band_rows(slot_ptr, flags_ptr, token, row, live, tokens, radius, SUBSET, BLOCK_W)
            band = tl.zeros([BLOCK_M, BLOCK_W], ACC)
    for start in range(low, high, BLOCK_N):
        k_row = start + tl.arange(0, BLOCK_N)
        k_live = k_row < high
        k_token, k_time = token_and_time(halo_ptr, time_ptr, k_row, k_live, steps, radius, SUBSET, HAS_TIME)
        k = load_rows(k_ptr, stride_kb, stride_kh, stride_kt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
        if SPLIT:
            products = row_products(
                q_ptr, stride_qb, stride_qh, stride_qt, token, row, live, k_ptr, stride_kb, stride_kh, stride_kt, k_token,
                k_row, k_live, head, steps, PACKED, D, ACC, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        scores = attention_scores(products, bias_ptr, head, time, live, k_time, k_live, radius, SCALE, HAS_BIAS, ACC)
        weights = tl.exp2(scores - largest[:, None]) * normalize[:, None]
        if SPLIT:
            dweights = row_products(
                grad_ptr, stride_gb, stride_gh, stride_gt, token, row, live, v_ptr, stride_vb, stride_vh, stride_vt, k_token,
                k_row, k_live, head, steps, PACKED, D, ACC, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            v = load_rows(
                v_ptr, stride_vb, stride_vh, stride_vt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D
            )
            dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=ACC)
        if HAS_BIAS:
            if GATHERED:
                band += gather_band(dscores, key_row, there, start, BLOCK_N)
            else:
                offset = k_time[None, :] - time[:, None]
                for place in range(0, 2 * radius + 1):
                    along = tl.sum(tl.sum(tl.where(offset == place - radius, dscores, 0.0), 1), 0)
                    dbias += tl.where(offsets_of_bias == place, along, 0.0)
    store_rows(dq_ptr, stride_db, stride_dh, stride_dt, head, token, row, live, steps, dq * SCALE, PACKED, D, BLOCK_D)
    if HAS_BIAS:
        if GATHERED:
            dbias = tl.sum(band, 0)
        tl.store(share, dbias, mask=offsets_of_bias <= 2 * radius)


@triton.jit
def attention_backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, grad_ptr, stats_ptr, delta_ptr, dk_ptr, dv_ptr,
    active_ptr, halo_ptr, near_ptr, counts_ptr, time_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt, stride_db, stride_dh, stride_dt, stride_eb, stride_eh, stride_et,
    steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr,
    HAS_TIME: tl.constexpr, HAS_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_N
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries, keys = number_of_rows(counts_ptr, tokens, SUBSET)
    if first >= keys:
        return
    last = tl.minimum(first + BLOCK_N, keys) - 1
    low, high = span_of_tile(near_ptr, first, last, queries, radius, SUBSET)

    k_row = first + tl.arange(0, BLOCK_N)
    k_live = k_row < keys
    k_token, k_time = token_and_time(halo_ptr, time_ptr, k_row, k_live, steps, radius, SUBSET, HAS_TIME)
    if not SPLIT:
        k = load_rows(k_ptr, stride_kb, stride_kh, stride_kt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
        v = load_rows(v_ptr, stride_vb, stride_vh, stride_vt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    dv = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    for start in range(low, high, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < high
        token, time = token_and_time(active_ptr, time_ptr, row, live, steps, radius, SUBSET, HAS_TIME)
        q = load_rows(q_ptr, stride_qb, stride_qh, stride_qt, head, token, row, live, steps, PACKED, D, BLOCK_D)
        grad = load_rows(grad_ptr, stride_gb, stride_gh, stride_gt, head, token, row, live, steps, PACKED, D, BLOCK_D)
        per_head = head.to(tl.int64) * tokens + row
        largest, normalize = load_statistics(stats_ptr, head, tokens, row, live)
        delta = tl.load(delta_ptr + per_head, mask=live, other=0.0)
        if SPLIT:
            products = row_products(
                q_ptr, stride_qb, stride_qh, stride_qt, token, row, live, k_ptr, stride_kb, stride_kh, stride_kt, k_token,
                k_row, k_live, head, steps, PACKED, D, ACC, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        scores = attention_scores(products, bias_ptr, head, time, live, k_time, k_live, radius, SCALE, HAS_BIAS, ACC)
        weights = tl.exp2(scores - largest[:, None]) * normalize[:, None]
        dv = tl.dot(tl.trans(weights.to(grad.dtype)), grad, dv, input_precision=PRECISION, out_dtype=ACC)
        if SPLIT:
            dweights = row_products(
                grad_ptr, stride_gb, stride_gh, stride_gt, token, row, live, v_ptr, stride_vb, stride_vh, stride_vt, k_token,
                k_row, k_live, head, steps, PACKED, D, ACC, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        else:
            dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
        dscores = weights * (dweights - delta[:, None])
        dk = tl.dot(tl.trans(dscores.to(q.dtype)), q, dk, input_precision=PRECISION, out_dtype=ACC)
    store_rows(
        dk_ptr,
        stride_db,
        stride_dh,
        stride_dt,
        head,
        k_token,
        k_row,
        k_live,
        steps,
        dk * SCALE,
        PACKED,
        D,
        BLOCK_D,
    )
    store_rows(dv_ptr, stride_eb, stride_eh, stride_et, head, k_token, k_row, k_live, steps, dv, PACKED, D, BLOCK_D)


@triton.jit
def attention_backward_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, grad_ptr, stats_ptr, dq_ptr, dk_ptr, dv_ptr, dbias_ptr,
    active_ptr, halo_ptr, slot_ptr, near_ptr, flags_ptr, counts_ptr, time_ptr,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt, stride_ab, stride_ah, stride_at,
    stride_db, stride_dh, stride_dt, stride_eb, stride_eh, stride_et, steps, tokens, radius,
    D: tl.constexpr, SCALE: tl.constexpr, PACKED: tl.constexpr, SUBSET: tl.constexpr,
    HAS_TIME: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pass: all gradients of the BLOCK - 2 r keys in the middle of a tile, and of the queries among them."""
    tile = tl.program_id(0)
    own = BLOCK - 2 * radius
    head = tl.program_id(1).to(tl.int64)  # times a stride it may exceed 32 bits
    queries, keys = number_of_rows(counts_ptr, tokens, SUBSET)
    begin = tile * own  # own keys
    offsets_of_bias = tl.arange(0, BLOCK_W)
    share = dbias_ptr + (tile.to(tl.int64) * tl.num_programs(1) + head) * (2 * radius + 1) + offsets_of_bias
    if begin >= keys:
        if HAS_BIAS:
            tl.store(share, tl.zeros([BLOCK_W], ACC), mask=offsets_of_bias <= 2 * radius)
        return
    end = tl.minimum(begin + own, keys)
    q_begin = begin  # own queries, and as many before and behind as may meet own keys
    q_end = end
    low = begin - radius
    high = end + radius
    if SUBSET:
        q_begin = tl.load(near_ptr + begin)
        q_end = queries
        if end < keys:
            q_end = tl.load(near_ptr + end)
        low = q_begin - radius
        high = tl.minimum(tl.load(near_ptr + end - 1) + radius + 1, queries)
    high = tl.minimum(high, queries)

    row = low + tl.arange(0, BLOCK)
    live = (row >= 0) & (row < high)
    mine = (row >= q_begin) & (row < q_end)
    k_row = begin - radius + tl.arange(0, BLOCK)
    k_live = (k_row >= 0) & (k_row < tl.minimum(end + radius, keys))
    k_mine = (k_row >= begin) & (k_row < end)
    token, time = token_and_time(active_ptr, time_ptr, row, live, steps, radius, SUBSET, HAS_TIME)
    k_token, k_time = token_and_time(halo_ptr, time_ptr, k_row, k_live, steps, radius, SUBSET, HAS_TIME)
    q = load_rows(q_ptr, stride_qb, stride_qh, stride_qt, head, token, row, live, steps, PACKED, D, BLOCK_D)
    k = load_rows(k_ptr, stride_kb, stride_kh, stride_kt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
    grad = load_rows(grad_ptr, stride_gb, stride_gh, stride_gt, head, token, row, live, steps, PACKED, D, BLOCK_D)
    out = load_rows(out_ptr, stride_ob, stride_oh, stride_ot, head, token, row, live, steps, PACKED, D, BLOCK_D)
    delta = tl.sum(out.to(ACC) * grad.to(ACC), 1)
    largest, normalize = load_statistics(stats_ptr, head, tokens, row, live)
    products = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
    scores = attention_scores(products, bias_ptr, head, time, live, k_time, k_live, radius, SCALE, HAS_BIAS, ACC)
    weights = tl.exp2(scores - largest[:, None]) * normalize[:, None]
    dv = tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision=PRECISION, out_dtype=ACC)
    store_rows(dv_ptr, stride_eb, stride_eh, stride_et, head, k_token, k_row, k_mine, steps, dv, PACKED, D, BLOCK_D)
    v = load_rows(v_ptr, stride_vb, stride_vh, stride_vt, head, k_token, k_row, k_live, steps, PACKED, D, BLOCK_D)
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
    dscores = weights * (dweights - delta[:, None])
    if HAS_BIAS:
        key_row, there = band_rows(slot_ptr, flags_ptr, token, row, mine, tokens, radius, SUBSET, BLOCK_W)
        dbias = tl.sum(gather_band(dscores, key_row, there, begin - radius, BLOCK), 0)
        tl.store(share, dbias, mask=offsets_of_bias <= 2 * radius)
    narrow = dscores.to(k.dtype)
    dk = tl.dot(tl.trans(narrow), q, input_precision=PRECISION, out_dtype=ACC) * SCALE
    store_rows(dk_ptr, stride_db, stride_dh, stride_dt, head, k_token, k_row, k_mine, steps, dk, PACKED, D, BLOCK_D)
    dq = tl.dot(narrow, k, input_precision=PRECISION, out_dtype=ACC) * SCALE
    store_rows(dq_ptr, stride_ab, stride_ah, stride_at, head, token, row, mine, steps, dq, PACKED, D, BLOCK_D)


def fits_in_tile(rows: Tensor, window: int) -> bool:
    """Whether the backward pass is the one over tiles that hold their whole band."""
    fits = rows.element_size() <= BYTES_IN_TILE and rows.shape[-1] <= WIDE and window <= WINDOW_IN_TILE
    return fits and architecture(rows.device) in TILED


@on_its_device
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, stats: Tensor,
    lists: TokenLists | None, steps: int, window: int, dq: Tensor, dk: Tensor, dv: Tensor,
    time: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """Fills the active rows of ``dq`` and the halo rows of ``dk`` and ``dv``; returns parts of the bias gradient
    ``[P, H, w]``.

    Layouts as in :func:`attention_forward`; the parts are in the accumulator's dtype.
    """
    heads, width = heads_and_width(q)
    tokens = stats.shape[2]
    acc = accumulator(q.dtype)
    if tokens == 0:
        return None if bias is None else torch.zeros(1, heads, window, dtype=acc.torch, device=q.device)
    strides = [row_strides(x) for x in (q, k, v, out, grad, dq, dk, dv)]
    of_queries = (stats,) * 5 if lists is None else (lists.active, lists.halo, lists.slot, lists.flags, lists.counts)
    of_keys = (stats,) * 4 if lists is None else (lists.active, lists.halo, lists.near, lists.counts)
    bias_or_any, time_or_any = (stats if x is None else x for x in (bias, time))
    variant = {
        "D": width, "SCALE": width**-0.5, "PACKED": q.dim() == 3, "SUBSET": lists is not None,
        "HAS_TIME": time is not None,
        "HAS_BIAS": bias is not None, "ACC": acc.triton, "PRECISION": precision(q.dtype),
        "BLOCK_D": block_width(width),
    }  # fmt: skip
    shares: list[Tensor] = []

    def in_one(config: dict[str, int]) -> None:
        tiles = triton.cdiv(tokens, config["BLOCK"] - 2 * (window // 2))
        shares[:] = [stats if bias is None else stats.new_empty(tiles, heads, window)]
        of_both = (
            (stats,) * 6
            if lists is None
            else (lists.active, lists.halo, lists.slot, lists.near, lists.flags, lists.counts)
        )
        attention_backward_kernel[(tiles, heads)](
            q, k, v, bias_or_any, out, grad, stats, dq, dk, dv, shares[0], *of_both, time_or_any,
            *(number for stride in strides for number in stride), steps, tokens, window // 2,
            BLOCK_W=triton.next_power_of_2(window), **variant, **config,
        )  # fmt: skip

    def by_queries(config: dict[str, int]) -> None:
        tiles = triton.cdiv(tokens, config["BLOCK_M"])
        shares[:] = [stats if bias is None else stats.new_empty(tiles, heads, window)]
        attention_backward_queries_kernel[(tiles, heads)](
            q, k, v, bias_or_any, out, grad, stats, delta, dq, shares[0], *of_queries, time_or_any,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(out), *row_strides(grad), *row_strides(dq),
            steps, tokens, window // 2, BLOCK_W=triton.next_power_of_2(window),
            SPLIT=splits(q), GATHERED=q.element_size() > 2 and width <= WIDE // 2, **variant, **config,
        )  # fmt: skip

    def by_keys(config: dict[str, int]) -> None:
        attention_backward_keys_kernel[(triton.cdiv(tokens, config["BLOCK_N"]), heads)](
            q, k, v, bias_or_any, grad, stats, delta, dk, dv, *of_keys, time_or_any,
            *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(grad), *row_strides(dk), *row_strides(dv),
            steps, tokens, window // 2, SPLIT=splits(q), **variant, **config,
        )  # fmt: skip

    if fits_in_tile(q, window):
        launch("attention_backward", q.dtype, block_width(width), in_one, q.device)
        return None if bias is None else shares[0]
    delta = torch.empty_like(stats[0])
    launch("attention_backward_queries", q.dtype, block_width(width), by_queries, q.device)
    launch("attention_backward_keys", q.dtype, block_width(width), by_keys, q.device)
    return None if bias is None else shares[0]


def _lists(rows: Tensor, mask: Tensor | None, query_mask: Tensor | None, window: int) -> TokenLists | None:
    """Queries and keys of ``[B, H, T, D]`` rows; None: all of them."""
    if mask is None and query_mask is None:
        return None
    gate = None if query_mask is None else query_mask.contiguous().view(torch.uint8)
    return compact(gate, mask, rows.shape[0], rows.shape[2], window, rows.device)


def _layout(
    rows: list[Tensor], query_mask: Tensor | None, cu_seqlens: Tensor | None, window: int
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Packed rows as one long recording, whose times keep the recordings in it apart."""
    if cu_seqlens is None:
        return rows, query_mask, None
    time = packed_times(cu_seqlens, rows[0].shape[0], window // 2).to(torch.int32)
    dense = [x.transpose(0, 1).unsqueeze(0) for x in rows]
    return dense, None if query_mask is None else query_mask.unsqueeze(0), time


@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None, bias: Tensor | None,
    dilation: int, cu_seqlens: Tensor | None, out: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Fills ``out``; returns the statistics of every residue class of the dilation, for the backward pass.

    Dense ``[B, H, T, D]`` or packed ``[N, H, D]`` rows, D innermost; ``bias`` in the dtype of accumulation.
    """
    if mask is not None or query_mask is not None:
        out.zero_()
    rows, query_mask, time = _layout([q, k, v, out], query_mask, cu_seqlens, window)

    def of_class(q, k, v, out, mask, query_mask):
        return attention_forward(q, k, v, bias, _lists(q, mask, query_mask, window), q.shape[2], window, out, time)

    return over_residues(dilation, of_class, rows, [mask, query_mask])


@on_its_device
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, query_mask: Tensor | None,
    bias: Tensor | None, dilation: int, cu_seqlens: Tensor | None, out: Tensor, saved: list[Tensor],
    found: list[Tensor],
) -> Tensor | None:  # fmt: skip
    """Fills ``found`` with the gradients of q, k and v; returns that of the bias."""
    if mask is not None or query_mask is not None:
        for x in found:
            x.zero_()
    rows, query_mask, time = _layout([grad, q, k, v, out, *found], query_mask, cu_seqlens, window)
    statistics = iter(saved)

    def of_class(grad, q, k, v, out, dq, dk, dv, mask, query_mask):
        lists = _lists(q, mask, query_mask, window)
        return attention_backward(
            grad, q, k, v, bias, out, next(statistics), lists, q.shape[2], window, dq, dk, dv, time
        )

    shares = over_residues(dilation, of_class, rows, [mask, query_mask])
    return None if bias is None else (shares[0] if len(shares) == 1 else torch.cat(shares)).sum(0)


def empty_saved(q: Tensor, dilation: int) -> list[Tensor]:
    """What ``forward`` returns, not filled in."""
    batch, heads, steps = (1, q.shape[1], q.shape[0]) if q.dim() == 3 else q.shape[:3]
    classes = [(steps - r - 1) // dilation + 1 for r in range(min(dilation, steps))] if dilation > 1 else [steps]
    return [q.new_empty(2, heads, batch * steps, dtype=accumulate_dtype(q.dtype)) for steps in classes]

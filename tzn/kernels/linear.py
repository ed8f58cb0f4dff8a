"""Matrix products over the rows that a list names, with LayerNorm in front and gate, residual and scatter behind.

    norm_qkv:        q[i] = LN(x[active i]) Wq^T + bq        kv[j] = LN(x[halo j]) Wkv^T + bkv      (one launch)
    norm_up:         h[i] = gelu(LN(y[i]) Wup^T + bup)
    gated_residual:  y[i] = x[active i] + g (a[i] W^T + b),  or scattered: out[active i] = y[i] + g (h[i] W^T + b)

Tile picture: one program computes BLOCK_M rows x BLOCK_N columns over the whole depth. The grid covers the capacity N; the
number of rows is read on the device and programs past it leave at once. Column tiles run fastest, so the programs that
share gathered rows run together and find them in L2; weights (6 MB at width 512) stay in L2. Gather and LayerNorm happen
on the way from memory to the tensor cores, on statistics of two floats per row: normalised rows are never written.
Reads the rows once from memory, writes the result once; intermediates are packed, A rows and not N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels.compaction import TokenLists
from tzn.kernels.launch import accumulator, launch, precision
from tzn.kernels.layer_norm import Statistics

SQRT_HALF = tl.constexpr(0.7071067811865476)


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))


@triton.jit
def weight_tile(
    w_ptr, k, column, stride_n, stride_k, K: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr
):
    """``[BLOCK_K, BLOCK_N]`` of a weight, zero outside; masks only where the sizes do not divide."""
    place = w_ptr + k[:, None] * stride_k + column[None, :] * stride_n
    if K % BLOCK_K == 0 and N % BLOCK_N == 0:
        return tl.load(place)
    return tl.load(place, mask=(k < K)[:, None] & (column < N)[None, :], other=0.0)


@triton.jit
def accumulate(
    acc, a_ptr, rows, live, w_ptr, column, stride_n, stride_k, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + a W over the rows that start at ``rows``; W is ``[K, N]`` with any strides."""
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = weight_tile(w_ptr, k, column, stride_n, stride_k, K, N, BLOCK_K, BLOCK_N)
        a = tl.load(a_ptr + rows[:, None] + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
        acc = tl.dot(a.to(w.dtype), w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def norm_linear_tile(
    x_ptr, rows, live, mean, rstd, gamma_ptr, beta_ptr, w_ptr, bias_ptr, tile, D: tl.constexpr, N: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """LN(x) W^T + b for BLOCK_M rows and column tile ``tile``; also the columns."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = weight_tile(w_ptr, k, column, D, 1, D, N, BLOCK_K, BLOCK_N)
        x = tl.load(x_ptr + rows[:, None] + k[None, :], mask=live[:, None] & (k < D)[None, :], other=0.0).to(ACC)
        gamma = tl.load(gamma_ptr + k, mask=k < D, other=0.0).to(ACC)
        beta = tl.load(beta_ptr + k, mask=k < D, other=0.0).to(ACC)
        normed = (x - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]
        acc = tl.dot(normed.to(w.dtype), w, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc + tl.load(bias_ptr + column, mask=column < N, other=0.0).to(ACC)[None, :], column


@triton.jit
def store_tile(out_ptr, rows, column, values, live, N: tl.constexpr):
    place = out_ptr + rows[:, None] * N + column[None, :]
    tl.store(place, values.to(out_ptr.dtype.element_ty), mask=live[:, None] & (column < N)[None, :])


@triton.jit
def norm_qkv_kernel(
    x_ptr, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, wq_ptr, bq_ptr, wkv_ptr, bkv_ptr, q_ptr, kv_ptr,
    active_ptr, halo_ptr, counts_ptr, stride_x,
    D: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_tiles = tl.cdiv(D, BLOCK_N)
    if tile < query_tiles:
        count = tl.load(counts_ptr)
        if tl.program_id(1) * BLOCK_M < count:
            live = row < count
            token = tl.load(active_ptr + row, mask=live, other=0)
            mean = tl.load(mean_ptr + token, mask=live, other=0.0)
            rstd = tl.load(rstd_ptr + token, mask=live, other=0.0)
            q, column = norm_linear_tile(
                x_ptr, token.to(tl.int64) * stride_x, live, mean, rstd, gamma_ptr, beta_ptr, wq_ptr, bq_ptr, tile, D, D,
                ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            store_tile(q_ptr, row.to(tl.int64), column, q, live, D)
    else:
        count = tl.load(counts_ptr + 1)
        if tl.program_id(1) * BLOCK_M < count:
            live = row < count
            token = tl.load(halo_ptr + row, mask=live, other=0)
            mean = tl.load(mean_ptr + token, mask=live, other=0.0)
            rstd = tl.load(rstd_ptr + token, mask=live, other=0.0)
            kv, column = norm_linear_tile(
                x_ptr, token.to(tl.int64) * stride_x, live, mean, rstd, gamma_ptr, beta_ptr, wkv_ptr, bkv_ptr,
                tile - query_tiles, D, 2 * D, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            store_tile(kv_ptr, row.to(tl.int64), column, kv, live, 2 * D)


@triton.jit
def norm_up_kernel(
    y_ptr, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, w_ptr, bias_ptr, hidden_ptr, before_ptr, counts_ptr,
    D: tl.constexpr, M: tl.constexpr, KEEP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    count = tl.load(counts_ptr)
    first = tl.program_id(1) * BLOCK_M
    if first >= count:
        return
    row = first + tl.arange(0, BLOCK_M)
    live = row < count
    mean = tl.load(mean_ptr + row, mask=live, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=live, other=0.0)
    before, column = norm_linear_tile(
        y_ptr, row.to(tl.int64) * D, live, mean, rstd, gamma_ptr, beta_ptr, w_ptr, bias_ptr, tl.program_id(0), D, M,
        ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if KEEP:
        store_tile(before_ptr, row.to(tl.int64), column, before, live, M)
    store_tile(hidden_ptr, row.to(tl.int64), column, gelu(before), live, M)


@triton.jit
def gated_residual_kernel(
    a_ptr, w_ptr, bias_ptr, gate_ptr, residual_ptr, out_ptr, active_ptr, counts_ptr, stride_residual,
    K: tl.constexpr, D: tl.constexpr, SCATTER: tl.constexpr, HAS_GATE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    count = tl.load(counts_ptr)
    first = tl.program_id(1) * BLOCK_M
    if first >= count:
        return
    row = first + tl.arange(0, BLOCK_M)
    live = row < count
    token = tl.load(active_ptr + row, mask=live, other=0).to(tl.int64)
    row = row.to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    acc = accumulate(acc, a_ptr, row * K, live, w_ptr, column, K, 1, K, D, PRECISION, BLOCK_N, BLOCK_K)
    acc += tl.load(bias_ptr + column, mask=column < D, other=0.0).to(ACC)[None, :]
    if HAS_GATE:
        acc *= tl.load(gate_ptr + token, mask=live, other=0.0).to(ACC)[:, None]
    from_row = token
    to_row = row
    if SCATTER:
        from_row = row
        to_row = token
    inside = live[:, None] & (column < D)[None, :]
    residual = tl.load(residual_ptr + from_row[:, None] * stride_residual + column[None, :], mask=inside, other=0.0)
    store_tile(out_ptr, to_row, column, residual.to(ACC) + acc, live, D)


def norm_qkv(
    x: Tensor, statistics: Statistics, gamma: Tensor, beta: Tensor, query: Linear, key_value: Linear, lists: TokenLists
) -> tuple[Tensor, Tensor]:
    """Packed queries ``[N, D]`` of active tokens, keys and values ``[N, 2 D]`` of halo tokens, from ``x`` ``[N, D]``."""
    number, width = x.shape
    dtype = query.weight.dtype
    acc = accumulator(dtype)
    q, kv = (torch.empty(number, columns, dtype=dtype, device=x.device) for columns in (width, 2 * width))

    def run(config: dict[str, int]) -> None:
        tiles = triton.cdiv(width, config["BLOCK_N"]) + triton.cdiv(2 * width, config["BLOCK_N"])
        norm_qkv_kernel[(tiles, triton.cdiv(number, config["BLOCK_M"]))](
            x, *statistics, gamma, beta, *query, *key_value, q, kv, lists.active, lists.halo, lists.counts, x.stride(0),
            D=width, ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("linear", dtype, number, run, x.device)
    return q, kv


def norm_up(
    y: Tensor, statistics: Statistics, gamma: Tensor, beta: Tensor, up: Linear, counts: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """``gelu(LN(y) W^T + b)`` ``[N, M]`` of packed rows ``y`` ``[N, D]``, and with ``keep`` what gelu was applied to."""
    number, width = y.shape
    hidden_width, dtype = up.weight.shape[0], up.weight.dtype
    acc = accumulator(dtype)
    hidden = torch.empty(number, hidden_width, dtype=dtype, device=y.device)
    before = torch.empty_like(hidden) if keep else hidden

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(hidden_width, config["BLOCK_N"]), triton.cdiv(number, config["BLOCK_M"]))
        norm_up_kernel[grid](
            y, *statistics, gamma, beta, *up, hidden, before, counts, D=width, M=hidden_width, KEEP=keep,
            ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("linear", dtype, number, run, y.device)
    return hidden, before


def gated_residual(
    a: Tensor, linear: Linear, gate: Tensor | None, residual: Tensor, lists: TokenLists, out: Tensor, *, scatter: bool
) -> None:
    """``residual + gate * (a W^T + b)`` for the active tokens, into ``out`` ``[N, D]``.

    ``a`` ``[N, K]`` is packed. ``scatter``: residual packed, out by token; else residual by token, out packed.
    """
    number, depth = a.shape
    width, dtype = linear.weight.shape[0], linear.weight.dtype
    acc = accumulator(dtype)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(number, config["BLOCK_M"]))
        gated_residual_kernel[grid](
            a, *linear, lists.counts if gate is None else gate, residual, out, lists.active, lists.counts,
            residual.stride(0), K=depth, D=width, SCATTER=scatter, HAS_GATE=gate is not None,
            ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("linear", dtype, number, run, a.device)

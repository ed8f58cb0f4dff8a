"""Matrix products over the rows that a list names, or a mask, with gate, residual and scatter behind.

    qkv:             q[i] = x[active i] Wq^T + bq        kv[j] = x[halo j] Wkv^T + bkv      (one launch; x: normalised rows)
    up_projection:   h[i] = gelu(x[i] Wup^T + bup)
    gated_residual:  y[i] = x[active i] + g (a[i] W^T + b),  or scattered: out[active i] = y[i] + g (h[i] W^T + b)

Tile picture: a tile is BLOCK_M rows x BLOCK_N columns over the whole depth, and the number of rows is read on the device.
One program a tile: the grid covers the capacity N, and programs past the rows leave at once. In the forward pass a
configuration may say "PER_SM" instead (persistent grid): that many programs a multiprocessor, each of which keeps its columns
and takes every n-th tile of the rows that exist. Column tiles run fastest, so the programs that share gathered rows run
together and find them in L2; weights (6 MB at width 512) stay in L2. Rows are normalised before
(``_layer_norm.py``), so that what a tile reads goes to the tensor cores as it is: 12 to 16 column tiles would each do it again.
Reads the rows once from memory, writes the result once; intermediates are packed, A rows and not N. Where no gate says which
tokens are active there are no lists: rows are tokens, and tiles without a valid token leave at once.

Gradients of the gathered matrix products, with their neighbours fused; deterministic.

    branch_gradient:  t = dout W;  down-projection: du = g t gelu'(u), share of dgate: t . gelu(u)
                                   out-projection:  da = g t,          share of dgate: t . a
    linear_gradient:  dn = du W
    qkv_gradient:     dn[j] = dkv[j] Wkv + (dq of the same token, if it is active) Wq
    weight_gradient:  dW = dY^T X, db = sum dY, rows split in parts
    sum_parts:        the parts of all gradients of a block, of norms and of the position bias too, summed in one launch

Inputs of the forward pass are rebuilt on the way to the tensor cores (LayerNorm from its statistics, GELU from what it was
applied to), so nothing is stored for the backward pass but x, q, k, v, attention, y and u. Row counts are read on the
device; a split takes an equal part of the rows that exist, not of the capacity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import accumulator, after_previous, launch, precision, programmatic, tile_grid
from tzn.kernels._layer_norm import Statistics
from tzn.kernels.active_tokens import TokenLists

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)
PLAIN = tl.constexpr(0)
GELU = tl.constexpr(1)
NORM = tl.constexpr(2)
INPUTS = {"plain": 0, "gelu": 1, "norm": 2}
SPLIT_ROWS = 1024  # capacity per split of a weight gradient; at most MAX_SPLITS of them
MAX_SPLITS = 8
SUMMED, ROWS_SUMMED, COLUMNS_SUMMED = 2048, 64, 32  # of a program that sums parts: columns of few parts, a tile of many


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]


@triton.jit
def normal_cdf(x, NARROW: tl.constexpr):
    """Of a standard normal variable. NARROW, for results of 16 bits: Abramowitz and Stegun 7.1.26, within 1e-7, in a dozen
    instructions in place of the two branches of erf; the lower tail without the cancellation of 1 + erf."""
    if NARROW:
        t = 1.0 / (1.0 + 0.23164190 * tl.abs(x))
        tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
        tail *= tl.exp2(-0.7213475204444817 * x * x)
        return tl.where(x < 0, tail, 1.0 - tail)
    return 0.5 * (1.0 + tl.erf(x * SQRT_HALF))


@triton.jit
def gelu(x, NARROW: tl.constexpr):
    return x * normal_cdf(x, NARROW)


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
def rows_of_tile(
    list_ptr, count_ptr, mask_ptr, tokens, first, LISTED: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Rows of a tile, their tokens, which of them exist, and how many: a list's, or all tokens but those of a mask."""
    row = first + tl.arange(0, BLOCK_M)
    if LISTED:
        count = tl.load(count_ptr)
        live = row < count
        return row, tl.load(list_ptr + row, mask=live, other=0), live, count - first
    live = row < tokens
    if HAS_MASK:
        live = live & (tl.load(mask_ptr + row, mask=live, other=0) != 0)
        return row, row, live, tl.sum(live.to(tl.int32), 0)
    return row, row, live, tokens - first


@triton.jit
def store_tile(out_ptr, rows, column, values, live, N: tl.constexpr):
    place = out_ptr + rows[:, None] * N + column[None, :]
    tl.store(place, values.to(out_ptr.dtype.element_ty), mask=live[:, None] & (column < N)[None, :])


@triton.jit
def turns(
    count_ptr, tokens, LISTED: tl.constexpr, BLOCK_M: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """Tiles of rows that a program takes: one, which may lie past the rows, or every n-th of those that exist.

    Loops over them hoist nothing: what each turn needs anew would lie in registers, and fewer programs would fit.
    """
    if not PERSISTENT:
        return 1
    rows = tokens
    if LISTED:
        rows = tl.load(count_ptr)
    return tl.cdiv(tl.cdiv(rows, BLOCK_M) - tl.program_id(1), tl.num_programs(1))


@triton.jit
def qkv_kernel(
    x_ptr, wq_ptr, bq_ptr, wkv_ptr, bkv_ptr, q_ptr, kv_ptr, active_ptr, halo_ptr, counts_ptr, mask_ptr, tokens,
    D: tl.constexpr, LISTED: tl.constexpr, HAS_MASK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Column tiles of the queries first, then those of keys and values: one loop for both, whose buffers stand once."""
    after_previous(PDL)
    tile = tl.program_id(0)
    query_tiles: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    width = D
    w_ptr = wq_ptr
    bias_ptr = bq_ptr
    out_ptr = q_ptr
    list_ptr = active_ptr
    if tile >= query_tiles:
        tile -= query_tiles
        width = 2 * D
        w_ptr = wkv_ptr
        bias_ptr = bkv_ptr
        out_ptr = kv_ptr
        list_ptr = halo_ptr
        counts_ptr += 1
    for turn in tl.range(0, turns(counts_ptr, tokens, LISTED, BLOCK_M, PERSISTENT), disable_licm=True):
        first = (tl.program_id(1) + turn * tl.num_programs(1)) * BLOCK_M
        row, token, live, number = rows_of_tile(
            list_ptr, counts_ptr, mask_ptr, tokens, first, LISTED, HAS_MASK, BLOCK_M
        )
        if number > 0:
            column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            within = column < width
            place = x_ptr + token.to(tl.int64)[:, None] * D
            acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            for start in range(0, D, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                weight = w_ptr + k[:, None] + column[None, :] * D
                if D % BLOCK_K == 0 and D % BLOCK_N == 0:
                    w = tl.load(weight)
                    x = tl.load(place + k[None, :], mask=live[:, None], other=0.0)
                else:
                    w = tl.load(weight, mask=(k < D)[:, None] & within[None, :], other=0.0)
                    x = tl.load(place + k[None, :], mask=live[:, None] & (k < D)[None, :], other=0.0)
                acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)
            acc += tl.load(bias_ptr + column, mask=within, other=0.0).to(ACC)[None, :]
            out = out_ptr + row.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & within[None, :])


@triton.jit
def up_kernel(
    x_ptr, w_ptr, bias_ptr, hidden_ptr, before_ptr, counts_ptr, mask_ptr, tokens,
    D: tl.constexpr, M: tl.constexpr, LISTED: tl.constexpr, HAS_MASK: tl.constexpr, KEEP: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PERSISTENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    for turn in tl.range(0, turns(counts_ptr, tokens, LISTED, BLOCK_M, PERSISTENT), disable_licm=True):
        first = (tl.program_id(1) + turn * tl.num_programs(1)) * BLOCK_M
        row, _, live, number = rows_of_tile(counts_ptr, counts_ptr, mask_ptr, tokens, first, LISTED, HAS_MASK, BLOCK_M)
        if number > 0:
            place = row.to(tl.int64)
            column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
            acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            acc = accumulate(acc, x_ptr, place * D, live, w_ptr, column, D, 1, D, M, PRECISION, BLOCK_N, BLOCK_K)
            acc += tl.load(bias_ptr + column, mask=column < M, other=0.0).to(ACC)[None, :]
            if KEEP:
                store_tile(before_ptr, place, column, acc, live, M)
            hidden = gelu(acc, hidden_ptr.dtype.element_ty.primitive_bitwidth == 16)
            store_tile(hidden_ptr, place, column, hidden, live, M)


@triton.jit
def gated_residual_kernel(
    a_ptr, w_ptr, bias_ptr, gate_ptr, residual_ptr, out_ptr, active_ptr, counts_ptr, mask_ptr, tokens, stride_residual,
    K: tl.constexpr, D: tl.constexpr, SCATTER: tl.constexpr, LISTED: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_GATE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    for turn in tl.range(0, turns(counts_ptr, tokens, LISTED, BLOCK_M, PERSISTENT), disable_licm=True):
        first = (tl.program_id(1) + turn * tl.num_programs(1)) * BLOCK_M
        row, token, live, number = rows_of_tile(
            active_ptr, counts_ptr, mask_ptr, tokens, first, LISTED, HAS_MASK, BLOCK_M
        )
        if number > 0:
            source = token.to(tl.int64)
            place = row.to(tl.int64)
            column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
            acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            acc = accumulate(acc, a_ptr, place * K, live, w_ptr, column, K, 1, K, D, PRECISION, BLOCK_N, BLOCK_K)
            acc += tl.load(bias_ptr + column, mask=column < D, other=0.0).to(ACC)[None, :]
            if HAS_GATE:
                acc *= tl.load(gate_ptr + source, mask=live, other=0.0).to(ACC)[:, None]
            from_row = source
            to_row = place
            if SCATTER:
                from_row = place
                to_row = source
            inside = live[:, None] & (column < D)[None, :]
            residual = tl.load(
                residual_ptr + from_row[:, None] * stride_residual + column[None, :], mask=inside, other=0.0
            )
            store_tile(out_ptr, to_row, column, residual.to(ACC) + acc, live, D)


def _named(
    lists: TokenLists | None, mask: Tensor | None, stand_in: Tensor
) -> tuple[tuple[Tensor, ...], dict[str, bool]]:
    """Pointers (active, halo, counts, mask) and constants of kernels that go by lists, or by ``mask`` ``[N]`` uint8 alone."""
    named = (stand_in,) * 3 if lists is None else (lists.active, lists.halo, lists.counts)
    return (*named, stand_in if mask is None else mask), {"LISTED": lists is not None, "HAS_MASK": mask is not None}


def qkv(
    x: Tensor, query: Linear, key_value: Linear, lists: TokenLists | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Queries ``[N, D]`` of active tokens, keys and values ``[N, 2 D]`` of halo tokens, packed, from rows by token.

    ``x`` ``[N, D]`` in the weights' dtype. ``lists`` None: nothing is packed, all tokens of ``mask`` ``[N]`` uint8 are both.
    """
    number, width = x.shape
    dtype = query.weight.dtype
    acc = accumulator(dtype)
    q, kv = (torch.empty(number, columns, dtype=dtype, device=x.device) for columns in (width, 2 * width))
    pointers, kind = _named(lists, mask, x)

    def run(config: dict[str, int]) -> None:
        tiles = triton.cdiv(width, config["BLOCK_N"]) + triton.cdiv(2 * width, config["BLOCK_N"])
        grid, config = tile_grid(config, tiles, number, x.device)
        qkv_kernel[grid](
            x, *query, *key_value, q, kv, *pointers, number, D=width, **kind, ACC=acc.triton, PRECISION=precision(dtype),
            **programmatic(x.device), **config,
        )  # fmt: skip

    launch("qkv_projection", dtype, number, run, x.device)
    return q, kv


def up_projection(
    x: Tensor, up: Linear, lists: TokenLists | None, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """``gelu(x W^T + b)`` ``[N, M]`` of packed rows ``x`` ``[N, D]``, and with ``keep`` what gelu was applied to."""
    number, width = x.shape
    hidden_width, dtype = up.weight.shape[0], up.weight.dtype
    acc = accumulator(dtype)
    hidden = torch.empty(number, hidden_width, dtype=dtype, device=x.device)
    before = torch.empty_like(hidden) if keep else hidden
    (_, _, counts, mask_or_any), kind = _named(lists, mask, x)

    def run(config: dict[str, int]) -> None:
        grid, config = tile_grid(config, triton.cdiv(hidden_width, config["BLOCK_N"]), number, x.device)
        up_kernel[grid](
            x, *up, hidden, before, counts, mask_or_any, number, D=width, M=hidden_width, **kind, KEEP=keep,
            ACC=acc.triton, PRECISION=precision(dtype), **programmatic(x.device), **config,
        )  # fmt: skip

    launch("up_projection", dtype, number, run, x.device)
    return hidden, before


def gated_residual(
    a: Tensor, linear: Linear, gate: Tensor | None, residual: Tensor, lists: TokenLists | None, mask: Tensor | None,
    out: Tensor, *, scatter: bool,
) -> None:  # fmt: skip
    """``residual + gate * (a W^T + b)`` for the active tokens, into ``out`` ``[N, D]``.

    ``a`` ``[N, K]`` is packed. ``scatter``: residual packed, out by token; else residual by token, out packed.
    """
    number, depth = a.shape
    width, dtype = linear.weight.shape[0], linear.weight.dtype
    acc = accumulator(dtype)
    (active, _, counts, mask_or_any), kind = _named(lists, mask, a)

    def run(config: dict[str, int]) -> None:
        grid, config = tile_grid(config, triton.cdiv(width, config["BLOCK_N"]), number, a.device)
        gated_residual_kernel[grid](
            a, *linear, a if gate is None else gate, residual, out, active, counts, mask_or_any, number,
            residual.stride(0), K=depth, D=width, SCATTER=scatter, **kind, HAS_GATE=gate is not None,
            ACC=acc.triton, PRECISION=precision(dtype), **programmatic(a.device), **config,
        )  # fmt: skip

    launch("down_projection" if scatter else "output_projection", dtype, number, run, a.device)


@triton.jit
def gelu_slope(x, NARROW: tl.constexpr):
    return normal_cdf(x, NARROW) + x * INVERSE_SQRT_2_PI * tl.exp(-0.5 * x * x)


@triton.jit
def branch_gradient_kernel(
    grad_ptr, w_ptr, before_ptr, gate_ptr, out_ptr, shares_ptr, active_ptr, counts_ptr, stride_grad,
    D: tl.constexpr, K: tl.constexpr, GATHER: tl.constexpr, THROUGH_GELU: tl.constexpr, HAS_GATE: tl.constexpr,
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
    from_row = row
    if GATHER:
        from_row = token
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    acc = accumulate(
        acc, grad_ptr, from_row * stride_grad, live, w_ptr, column, 1, K, D, K, PRECISION, BLOCK_N, BLOCK_K
    )
    inside = live[:, None] & (column < K)[None, :]
    before = tl.load(before_ptr + row[:, None] * K + column[None, :], mask=inside, other=0.0).to(ACC)
    value = before
    NARROW: tl.constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
    if THROUGH_GELU:
        value = gelu(before, NARROW)
    if HAS_GATE:
        share = tl.sum(acc * value, 1)
        tl.store(shares_ptr + row * tl.num_programs(0) + tl.program_id(0), share, mask=live)
        acc *= tl.load(gate_ptr + token, mask=live, other=0.0).to(ACC)[:, None]
    if THROUGH_GELU:
        acc *= gelu_slope(before, NARROW)
    store_tile(out_ptr, row, column, acc, live, K)


def branch_gradient(
    grad: Tensor, weight: Tensor, before: Tensor, gate: Tensor | None, lists: TokenLists, *, gather: bool,
    through_gelu: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient ``[N, K]`` of a branch's packed input, and ``[N, tiles]``, shares of the gate's gradient.

    ``grad``: of the branch's sum with the residual, by token (``gather``) or packed, ``[N, D]``; weight ``[D, K]``;
    ``before`` ``[N, K]``: the input, or what GELU made it from (``through_gelu``).
    """
    number, width = grad.shape
    depth, dtype = weight.shape[1], weight.dtype
    acc = accumulator(dtype)
    out = torch.empty(number, depth, dtype=dtype, device=grad.device)
    shares: list[Tensor] = []

    def run(config: dict[str, int]) -> None:
        tiles = triton.cdiv(depth, config["BLOCK_N"])
        shares[:] = [torch.empty(number, tiles, dtype=acc.torch, device=grad.device)]
        branch_gradient_kernel[(tiles, triton.cdiv(number, config["BLOCK_M"]))](
            grad, weight, before, lists.counts if gate is None else gate, out, shares[0], lists.active, lists.counts,
            grad.stride(0), D=width, K=depth, GATHER=gather, THROUGH_GELU=through_gelu, HAS_GATE=gate is not None,
            ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("down_gradient" if through_gelu else "output_gradient", dtype, number, run, grad.device)
    return out, shares[0]


@triton.jit
def linear_gradient_kernel(
    grad_ptr, w_ptr, out_ptr, counts_ptr, N: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    count = tl.load(counts_ptr)
    first = tl.program_id(1) * BLOCK_M
    if first >= count:
        return
    row = first + tl.arange(0, BLOCK_M)
    live = row < count
    row = row.to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    acc = accumulate(acc, grad_ptr, row * N, live, w_ptr, column, 1, K, N, K, PRECISION, BLOCK_N, BLOCK_K)
    store_tile(out_ptr, row, column, acc, live, K)


def linear_gradient(grad: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``grad W`` ``[N, K]`` of packed rows ``grad`` ``[N, O]``, weight ``[O, K]``, in the accumulator's dtype."""
    number, width = grad.shape
    depth, dtype = weight.shape[1], weight.dtype
    acc = accumulator(dtype)
    out = torch.empty(number, depth, dtype=acc.torch, device=grad.device)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(depth, config["BLOCK_N"]), triton.cdiv(number, config["BLOCK_M"]))
        linear_gradient_kernel[grid](
            grad, weight, out, counts, N=width, K=depth, ACC=acc.triton, PRECISION=precision(dtype), **config
        )

    launch("linear_gradient", dtype, number, run, grad.device)
    return out


@triton.jit
def qkv_gradient_kernel(
    dq_ptr, dkv_ptr, wq_ptr, wkv_ptr, out_ptr, active_ptr, halo_ptr, near_ptr, counts_ptr,
    D: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    queries = tl.load(counts_ptr)
    count = tl.load(counts_ptr + 1)
    first = tl.program_id(1) * BLOCK_M
    if first >= count:
        return
    row = first + tl.arange(0, BLOCK_M)
    live = row < count
    place = tl.load(near_ptr + row, mask=live, other=0)
    named = live & (place < queries)
    token = tl.load(halo_ptr + row, mask=live, other=0)
    updated = named & (tl.load(active_ptr + place, mask=named, other=-1) == token)
    row = row.to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    acc = accumulate(acc, dkv_ptr, row * (2 * D), live, wkv_ptr, column, 1, D, 2 * D, D, PRECISION, BLOCK_N, BLOCK_K)
    acc = accumulate(
        acc, dq_ptr, place.to(tl.int64) * D, updated, wq_ptr, column, 1, D, D, D, PRECISION, BLOCK_N, BLOCK_K
    )
    store_tile(out_ptr, row, column, acc, live, D)


def qkv_gradient(dq: Tensor, dkv: Tensor, query_weight: Tensor, key_value_weight: Tensor, lists: TokenLists) -> Tensor:
    """Gradient ``[N, D]`` of the normalised rows of halo tokens, packed, in the accumulator's dtype."""
    number, width = dq.shape
    dtype = query_weight.dtype
    acc = accumulator(dtype)
    out = torch.empty(number, width, dtype=acc.torch, device=dq.device)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(number, config["BLOCK_M"]))
        qkv_gradient_kernel[grid](
            dq, dkv, query_weight, key_value_weight, out, lists.active, lists.halo, lists.near, lists.counts,
            D=width, ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("qkv_gradient", dtype, number, run, dq.device)
    return out


@triton.jit
def weight_gradient_kernel(
    grad_ptr, x_ptr, gate_ptr, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, dw_ptr, db_ptr, list_ptr, count_ptr,
    stride_grad, stride_x,
    N: tl.constexpr, K: tl.constexpr, GATHER_GRAD: tl.constexpr, GATHER_X: tl.constexpr, HAS_GATE: tl.constexpr,
    INPUT: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs x BLOCK_K inputs of one split, streaming BLOCK_M rows at a time."""
    split = tl.program_id(2)
    count = tl.load(count_ptr)
    part = tl.cdiv(tl.cdiv(count, tl.num_programs(2)), BLOCK_M) * BLOCK_M
    low = split * part
    high = tl.minimum(low + part, count)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    dw = tl.zeros([BLOCK_N, BLOCK_K], ACC)
    db = tl.zeros([BLOCK_N], ACC)
    if INPUT == NORM:
        gamma = tl.load(gamma_ptr + k, mask=k < K, other=0.0).to(ACC)
        beta = tl.load(beta_ptr + k, mask=k < K, other=0.0).to(ACC)
    for start in range(low, high, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < high
        token = tl.load(list_ptr + row, mask=live, other=0)
        grad_row = row
        x_row = row
        if GATHER_GRAD:
            grad_row = token
        if GATHER_X:
            x_row = token
        inside = live[:, None] & (n < N)[None, :]
        place = grad_ptr + grad_row.to(tl.int64)[:, None] * stride_grad + n[None, :]
        grad = tl.load(place, mask=inside, other=0.0)
        if HAS_GATE:
            grad = grad.to(ACC) * tl.load(gate_ptr + token, mask=live, other=0.0).to(ACC)[:, None]
        inside = live[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + x_row.to(tl.int64)[:, None] * stride_x + k[None, :], mask=inside, other=0.0)
        if INPUT == GELU:
            x = gelu(x.to(ACC), DTYPE.primitive_bitwidth == 16)
        if INPUT == NORM:
            mean = tl.load(mean_ptr + x_row, mask=live, other=0.0)
            rstd = tl.load(rstd_ptr + x_row, mask=live, other=0.0)
            x = (x.to(ACC) - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]
        db += tl.sum(grad.to(ACC), 0)
        dw = tl.dot(tl.trans(grad.to(DTYPE)), x.to(DTYPE), dw, input_precision=PRECISION, out_dtype=ACC)
    out = dw_ptr + split.to(tl.int64) * N * K + n[:, None] * K + k[None, :]
    tl.store(out, dw, mask=(n < N)[:, None] & (k < K)[None, :])
    if tl.program_id(1) == 0:
        tl.store(db_ptr + split * N + n, db, mask=n < N)


TRITON_DTYPES = {
    torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
}  # fmt: skip


def weight_gradient(
    grad: Tensor, x: Tensor, dtype: torch.dtype, lists: TokenLists, *, halo: bool = False, gather_grad: bool = False,
    gather_x: bool = False, gate: Tensor | None = None, through: str = "plain", statistics: Statistics | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> Linear:  # fmt: skip
    """Parts of ``dW`` ``[S, O, I]`` and ``db`` ``[S, O]``, in the accumulator's dtype, over active or (``halo``) halo tokens.

    Args:
        grad: ``[N, O]``, packed or by token (``gather_grad``), times ``gate`` by token if given.
        x: ``[N, I]`` packed or by token (``gather_x``): the layer's input, or where it comes from (``through`` "gelu", or
            "norm" with ``statistics`` indexed as x and ``norm`` = (gamma, beta)).
        dtype: of the products.
    """
    number, width, depth = grad.shape[0], grad.shape[1], x.shape[1]
    acc = accumulator(dtype)
    splits = max(1, min(MAX_SPLITS, number // SPLIT_ROWS))
    dw = torch.empty(splits, width, depth, dtype=acc.torch, device=x.device)
    db = torch.empty(splits, width, dtype=acc.torch, device=x.device)
    normed = (grad,) * 4 if statistics is None or norm is None else (*statistics, *norm)

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(depth, config["BLOCK_K"]), splits)
        weight_gradient_kernel[grid](
            grad, x, grad if gate is None else gate, *normed, dw, db, lists.halo if halo else lists.active,
            lists.counts[1:] if halo else lists.counts, grad.stride(0), x.stride(0),
            N=width, K=depth, GATHER_GRAD=gather_grad, GATHER_X=gather_x, HAS_GATE=gate is not None,
            INPUT=INPUTS[through], DTYPE=TRITON_DTYPES[dtype], ACC=acc.triton, PRECISION=precision(dtype), **config,
        )  # fmt: skip

    launch("weight_gradient", dtype, number, run, x.device)
    return Linear(dw, db)


@triton.jit(do_not_specialize=["numbers"])
def sum_parts_kernel(
    parts, outs, numbers, SIZES: tl.constexpr, FEW: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs are handed out table by table. FEW parts are streamed, BLOCK columns wide; many are read ROWS at a time."""
    program = tl.program_id(0)
    first = 0
    for i in tl.static_range(len(SIZES)):
        behind = first + tl.cdiv(SIZES[i], BLOCK if FEW[i] else COLUMNS)
        if (program >= first) & (program < behind):
            if FEW[i]:
                column = (program - first) * BLOCK + tl.arange(0, BLOCK)
                within = column < SIZES[i]
                total = tl.zeros([BLOCK], ACC)
                for part in range(0, numbers[i]):
                    total += tl.load(parts[i] + part * SIZES[i] + column, mask=within, other=0.0)
            else:
                column = (program - first) * COLUMNS + tl.arange(0, COLUMNS)
                within = column < SIZES[i]
                totals = tl.zeros([ROWS, COLUMNS], ACC)
                for start in range(0, numbers[i], ROWS):
                    part = start + tl.arange(0, ROWS)
                    place = parts[i] + part.to(tl.int64)[:, None] * SIZES[i] + column[None, :]
                    totals += tl.load(place, mask=(part < numbers[i])[:, None] & within[None, :], other=0.0)
                total = tl.sum(totals, 0)
            tl.store(outs[i] + column, total.to(outs[i].dtype.element_ty), mask=within)
        first = behind


def sum_parts(parts: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """Sums over the first dimension, in a fixed order, in the shapes and dtypes of ``like``; one launch for all.

    ``parts``: ``[P, ...]``, each with its own P >= 1, contiguous, in one dtype of accumulation.
    """
    outs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in like]
    sizes = tuple(x.numel() for x in like)
    few = tuple(x.shape[0] <= MAX_SPLITS for x in parts)
    programs = sum(triton.cdiv(n, SUMMED if f else COLUMNS_SUMMED) for n, f in zip(sizes, few, strict=True))
    sum_parts_kernel[(programs,)](
        tuple(parts), tuple(outs), tuple(x.shape[0] for x in parts), SIZES=sizes, FEW=few,
        ACC=accumulator(parts[0].dtype).triton, BLOCK=SUMMED, ROWS=ROWS_SUMMED, COLUMNS=COLUMNS_SUMMED,
    )  # fmt: skip
    return outs

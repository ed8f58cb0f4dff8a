"""Row-wise parts of a block: LayerNorm and its backward pass, rows that pass through, and the gradient of the gate.

    xhat = (x - mean) * rstd,   n = xhat * gamma + beta,   rstd = 1 / sqrt(var + 1e-5)
    dx = rstd * (dn * gamma - mean(dn * gamma) - xhat * mean(dn * gamma * xhat))

One program takes ROWS rows of a list, whole, in float32; the backward pass adds each program's share of dgamma and dbeta
in rows of a table that a sum in fixed order completes. Everything here is bound by memory: one read per input row, one
write per output row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import accumulator, after_previous, programmatic
from tzn.kernels.active_tokens import TokenLists

EPS = tl.constexpr(1e-5)
ROWS = 4


class Statistics(NamedTuple):
    mean: Tensor  # [N] in the accumulator's dtype
    rstd: Tensor  # [N]


@triton.jit
def normalise_kernel(
    x_ptr, flags_ptr, count_ptr, gamma_ptr, beta_ptr, normed_ptr, mean_ptr, rstd_ptr, out_ptr, tokens, stride,
    D: tl.constexpr, PACKED: tl.constexpr, HAS_FLAGS: tl.constexpr, BIT: tl.constexpr, KEEP: tl.constexpr,
    COPY: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    first = tl.program_id(0) * ROWS
    count = tokens
    if PACKED:
        count = tl.load(count_ptr)
        if first >= count:
            return
    row = first + tl.arange(0, ROWS)
    wanted = row < count
    idle = row < 0
    if HAS_FLAGS:
        flags = tl.load(flags_ptr + row, mask=wanted, other=0).to(tl.int32)
        idle = wanted & ((flags & 1) == 0)
        wanted = wanted & ((flags & BIT) != 0)
    column = tl.arange(0, BLOCK_D)
    within = (column < D)[None, :]
    inside = wanted[:, None] & within
    read = inside
    if COPY:
        read = (wanted | idle)[:, None] & within
    long_row = row.to(tl.int64)
    given = tl.load(x_ptr + long_row[:, None] * stride + column[None, :], mask=read, other=0.0)
    if COPY:
        tl.store(out_ptr + long_row[:, None] * D + column[None, :], given, mask=idle[:, None] & within)
    x = given.to(ACC)
    mean = tl.sum(x, 1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + EPS)
    gamma = tl.load(gamma_ptr + column, mask=column < D, other=0.0).to(ACC)
    beta = tl.load(beta_ptr + column, mask=column < D, other=0.0).to(ACC)
    normed = centred * rstd[:, None] * gamma[None, :] + beta[None, :]
    place = normed_ptr + long_row[:, None] * D + column[None, :]
    tl.store(place, normed.to(normed_ptr.dtype.element_ty), mask=inside)
    if KEEP:
        tl.store(mean_ptr + row, mean, mask=wanted)
        tl.store(rstd_ptr + row, rstd, mask=wanted)


def normalise(
    x: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype, *, flags: Tensor | None = None, bit: int = 1,
    count: Tensor | None = None, keep: bool = False, idle: Tensor | None = None,
) -> tuple[Tensor, Statistics]:  # fmt: skip
    """LayerNorm of rows of ``x`` ``[N, D]`` in ``dtype``, each at its place; other places stay as they are.

    Args:
        dtype: of the products that read the rows.
        flags: ``[N]`` uint8; rows that have ``bit`` in theirs (None: all).
        count: the first so many rows, a number on the device (None: all).
        keep: whether the statistics are to be filled in, for a backward pass.
        idle: takes the rows whose flags lack bit 0, bit for bit.
    """
    number, width = x.shape
    acc = accumulator(x.dtype)
    normed = torch.empty(number, width, dtype=dtype, device=x.device)
    found = Statistics(*(torch.empty(number if keep else 0, dtype=acc.torch, device=x.device) for _ in range(2)))
    if number:
        normalise_kernel[(triton.cdiv(number, ROWS),)](
            x, normed if flags is None else flags, normed if count is None else count, gamma, beta, normed,
            *(found if keep else (normed, normed)), normed if idle is None else idle, number, x.stride(0), D=width,
            PACKED=count is not None, HAS_FLAGS=flags is not None, BIT=bit, KEEP=keep,
            COPY=idle is not None and flags is not None, ACC=acc.triton, BLOCK_D=triton.next_power_of_2(width), ROWS=ROWS,
            **programmatic(x.device),
        )  # fmt: skip
    return normed, found


@triton.jit
def copy_kernel(
    x_ptr, out_ptr, flags_ptr, tokens, stride_x, BIT: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < tokens
    idle = inside & ((tl.load(flags_ptr + row, mask=inside, other=255).to(tl.int32) & BIT) == 0)
    column = tl.arange(0, BLOCK_D)
    copied = idle[:, None] & (column < D)[None, :]
    long_row = row.to(tl.int64)[:, None]
    x = tl.load(x_ptr + long_row * stride_x + column[None, :], mask=copied, other=0.0)
    tl.store(out_ptr + long_row * D + column[None, :], x, mask=copied)


def copy_idle_rows(x: Tensor, flags: Tensor, bit: int, out: Tensor) -> None:
    """Rows of ``x`` ``[N, D]`` whose flag lacks ``bit``, bit for bit, into ``out``."""
    number, width = x.shape
    copy_kernel[(triton.cdiv(number, ROWS),)](
        x, out, flags, number, x.stride(0), BIT=bit, D=width, BLOCK_D=triton.next_power_of_2(width), ROWS=ROWS
    )


@triton.jit
def norm_backward(dn, xhat, rstd, gamma, D: tl.constexpr):
    scaled = dn * gamma[None, :]
    along = tl.sum(scaled * xhat, 1) / D
    middle = tl.sum(scaled, 1) / D
    return (scaled - xhat * along[:, None] - middle[:, None]) * rstd[:, None]


@triton.jit
def layer_norm_backward_kernel(
    dn_ptr, x_ptr, mean_ptr, rstd_ptr, gamma_ptr, grad_ptr, dy_ptr, out_ptr, dgamma_ptr, dbeta_ptr,
    active_ptr, halo_ptr, near_ptr, counts_ptr, stride_grad, stride_x,
    HALO: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Second norm: rows are active tokens, out is the gradient of y, packed. HALO, first norm: rows are halo tokens, out is
    the gradient of x, in place; the gradient that arrives beside the norm is y's where the token is active."""
    queries = tl.load(counts_ptr)
    count = queries
    if HALO:
        count = tl.load(counts_ptr + 1)
    tile = tl.program_id(0)
    row = tile * ROWS + tl.arange(0, ROWS)
    live = row < count
    column = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (column < D)[None, :]
    if HALO:
        token = tl.load(halo_ptr + row, mask=live, other=0)
        x_row = token
    else:
        token = tl.load(active_ptr + row, mask=live, other=0)
        x_row = row
    dn = tl.load(dn_ptr + row.to(tl.int64)[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)
    x = tl.load(x_ptr + x_row.to(tl.int64)[:, None] * stride_x + column[None, :], mask=inside, other=0.0).to(ACC)
    mean = tl.load(mean_ptr + x_row, mask=live, other=0.0)
    rstd = tl.load(rstd_ptr + x_row, mask=live, other=0.0)
    gamma = tl.load(gamma_ptr + column, mask=column < D, other=0.0).to(ACC)
    xhat = tl.where(inside, (x - mean[:, None]) * rstd[:, None], 0.0)
    dx = norm_backward(dn, xhat, rstd, gamma, D)
    beside = inside
    if HALO:
        place = tl.load(near_ptr + row, mask=live, other=0)
        named = live & (place < queries)
        updated = named & (tl.load(active_ptr + place, mask=named, other=-1) == token)
        from_y = inside & updated[:, None]
        dx += tl.load(dy_ptr + place.to(tl.int64)[:, None] * D + column[None, :], mask=from_y, other=0.0).to(ACC)
        beside = inside & (updated == 0)[:, None]
    grads = grad_ptr + token.to(tl.int64)[:, None] * stride_grad + column[None, :]
    dx += tl.load(grads, mask=beside, other=0.0).to(ACC)
    out_row = row
    if HALO:
        out_row = token
    outs = out_ptr + out_row.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(outs, dx.to(out_ptr.dtype.element_ty), mask=inside)
    share = tile.to(tl.int64) * D + column
    tl.store(dgamma_ptr + share, tl.sum(dn * xhat, 0), mask=column < D)
    tl.store(dbeta_ptr + share, tl.sum(dn, 0), mask=column < D)


def layer_norm_backward(
    dn: Tensor, x: Tensor, statistics: Statistics, gamma: Tensor, grad: Tensor, dy: Tensor | None, lists: TokenLists,
    out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient through a norm plus what arrives beside it, into ``out``; returns parts of (dgamma, dbeta) ``[P, D]``.

    ``dy`` None: the second norm, ``x`` is y and rows are packed. Else the first one, with ``dy`` the packed gradient of y.
    ``grad`` ``[N, D]`` is the gradient of the block's output. ``dn`` and ``dy`` are contiguous.
    """
    number, width = dn.shape
    acc = accumulator(x.dtype)
    rows = 16
    tiles = triton.cdiv(number, rows)
    shares = [torch.empty(tiles, width, dtype=acc.torch, device=x.device) for _ in range(2)]
    layer_norm_backward_kernel[(tiles,)](
        dn, x, *statistics, gamma, grad, dn if dy is None else dy, out, *shares,
        lists.active, lists.halo, lists.near, lists.counts, grad.stride(0), x.stride(0),
        HALO=dy is not None, D=width, ACC=acc.triton, BLOCK_D=triton.next_power_of_2(width), ROWS=rows, num_warps=8,
    )  # fmt: skip
    return shares[0], shares[1]


@triton.jit
def gate_gradient_kernel(
    grad_ptr, dy_ptr, down_bias_ptr, output_bias_ptr, down_shares_ptr, output_shares_ptr, dgate_ptr,
    active_ptr, counts_ptr, stride_grad, down_tiles, output_tiles,
    D: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    count = tl.load(counts_ptr)
    first = tl.program_id(0) * ROWS
    if first >= count:
        return
    row = first + tl.arange(0, ROWS)
    live = row < count
    token = tl.load(active_ptr + row, mask=live, other=0)
    column = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (column < D)[None, :]
    grad = tl.load(grad_ptr + token.to(tl.int64)[:, None] * stride_grad + column[None, :], mask=inside, other=0.0)
    dy = tl.load(dy_ptr + row.to(tl.int64)[:, None] * D + column[None, :], mask=inside, other=0.0)
    down_bias = tl.load(down_bias_ptr + column, mask=column < D, other=0.0).to(ACC)
    output_bias = tl.load(output_bias_ptr + column, mask=column < D, other=0.0).to(ACC)
    total = tl.sum(grad.to(ACC) * down_bias[None, :] + dy.to(ACC) * output_bias[None, :], 1)
    for tile in range(0, down_tiles):
        total += tl.load(down_shares_ptr + row.to(tl.int64) * down_tiles + tile, mask=live, other=0.0)
    for tile in range(0, output_tiles):
        total += tl.load(output_shares_ptr + row.to(tl.int64) * output_tiles + tile, mask=live, other=0.0)
    tl.store(dgate_ptr + token, total.to(dgate_ptr.dtype.element_ty), mask=live)


def gate_gradient(
    grad: Tensor, dy: Tensor, down_bias: Tensor, output_bias: Tensor, down_shares: Tensor, output_shares: Tensor,
    lists: TokenLists, dgate: Tensor,
) -> None:  # fmt: skip
    """Fills ``dgate`` ``[N]`` at active tokens: the inner product of each branch with the gradient that meets it.

    A branch is h W^T + b, so the product is that of h with (gradient W), summed per column tile in ``*_shares``
    ``[N, tiles]`` by the kernel that computed it, plus that of b with the gradient.
    """
    number, width = grad.shape
    acc = accumulator(grad.dtype)
    gate_gradient_kernel[(triton.cdiv(number, ROWS),)](
        grad, dy, down_bias, output_bias, down_shares, output_shares, dgate, lists.active, lists.counts, grad.stride(0),
        down_shares.shape[1], output_shares.shape[1], D=width, ACC=acc.triton, BLOCK_D=triton.next_power_of_2(width),
        ROWS=ROWS,
    )  # fmt: skip

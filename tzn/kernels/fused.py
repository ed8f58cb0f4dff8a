"""Layers around the blocks in inference, each as one launch: convolutions, pyramid, top-down path, heads, depths.

What runs where no gradients are wanted; every function is what the module that calls it does operator by operator, with
one rounding at its end in place of one after each operator (docs of the modules in ``tzn/nn`` are the definitions).

    conv_norm        relu(LN(x[t-1] W0^T + x[t] W1^T + x[t+1] W2^T)) * mask          one tile holds whole rows
    conv             the same products, plain, where rows are too wide for that; ``norm_rows`` follows
    class_scores     sigmoid(conv) * mask;   offsets: two convolutions, softplus, strides;   fields: tanh and softplus
    flatten_levels   LN of every level * mask, written where the level lies in the sequence of points, with its pad
    halve            masked maximum over three steps, every second one;   lateral: (x W^T + b + doubled context) * mask
    standardise      (x - mean) / std * mask;   dial: the budget's bisection;   gates: logits to tau and gates

Tile pictures: products take BLOCK_M steps x BLOCK_N channels over the whole depth; the three neighbours of a row are read
where they lie, so nothing is padded or stacked, and rows shared by neighbouring tiles come out of L1 and L2. The others take
ROWS whole rows, one read and one write of each. Everything that a program writes is its own: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels import accumulate_dtype
from tzn.kernels._launch import accumulator, after_previous, block_width, launch, on_its_device, precision, programmatic
from tzn.kernels._linear import weight_tile

ROWS = 4
POOLED = 2  # rows of a program that pools; with four sm_80 spilled two registers (triton 3.9)
WIDEST_NORM = 256  # channels that a tile of whole rows holds without spilling
TILE = 1024

CLASSES = tl.constexpr(0)
FIELDS = tl.constexpr(1)
ALONE, SAME, DOUBLED = range(3)  # what ``lateral`` adds: nothing, a context of its own rate, or of half of it


@triton.jit
def conv_tile(
    x_ptr, w_ptr, row, live, column, steps, C: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products of rows ``row`` of ``[B * T, C]`` and their neighbours in the recording with a weight ``[N, TAPS * C]``."""
    time = row % steps
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    parts: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    for step in range(0, TAPS * parts):
        tap = step // parts
        k = (step % parts) * BLOCK_K + tl.arange(0, BLOCK_K)
        away = tap - TAPS // 2
        there = live & (time + away >= 0) & (time + away < steps)
        w = weight_tile(w_ptr + tap * C, k, column, TAPS * C, 1, C, N, BLOCK_K, BLOCK_N)
        place = x_ptr + (row + away).to(tl.int64)[:, None] * C + k[None, :]
        x = tl.load(place, mask=there[:, None] & (k < C)[None, :], other=0.0)
        acc = tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@triton.jit
def conv_norm_kernel(
    x_ptr, w_ptr, bias_ptr, gamma_ptr, beta_ptr, mask_ptr, out_ptr, rows, steps, eps,
    C: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    within = column < N
    acc = conv_tile(x_ptr, w_ptr, row, live, column, steps, C, N, 3, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + column, mask=within, other=0.0).to(ACC)[None, :]
    if NORM:
        mean = tl.sum(acc, 1) / N  # columns past N are zero
        centred = tl.where(within[None, :], acc - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / N + eps)
        gamma = tl.load(gamma_ptr + column, mask=within, other=0.0).to(ACC)
        beta = tl.load(beta_ptr + column, mask=within, other=0.0).to(ACC)
        acc = centred * rstd[:, None] * gamma[None, :] + beta[None, :]
        keep = tl.load(mask_ptr + row, mask=live, other=0) != 0
        acc = tl.where(keep[:, None], tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)
    place = out_ptr + row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(place, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & within[None, :])


@on_its_device
def conv_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, mask: Tensor, eps: float
) -> Tensor:
    """``relu(LN(conv x)) * mask``: ``x`` ``[B, T, C]``, weight ``[N, 3 C]``, mask ``[B, T]`` to ``[B, T, N]``."""
    if weight.shape[0] > WIDEST_NORM:
        return norm_rows(conv(x, weight, bias), gamma, beta, mask, eps, relu=True)
    return _conv(x, weight, bias, (gamma, beta, mask.contiguous()), eps)


@on_its_device
def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution alone: ``[B, T, C]`` to ``[B, T, N]``."""
    return _conv(x, weight, bias, None, 0.0)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, Tensor, Tensor] | None, eps: float
) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    batch, steps, depth = x.shape
    rows, width, dtype = batch * steps, weight.shape[0], weight.dtype
    acc = accumulator(dtype)
    out = torch.empty(batch, steps, width, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out

    def run(config: dict[str, int]) -> None:
        if norm is not None:
            config = {**config, "BLOCK_N": block_width(width)}
        grid = (triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(rows, config["BLOCK_M"]))
        conv_norm_kernel[grid](
            x, weight, x if bias is None else bias, *((x, x, x) if norm is None else norm[:2] + (as_bytes(norm[2]),)), out,
            rows, steps, eps, C=depth, N=width, NORM=norm is not None, HAS_BIAS=bias is not None, ACC=acc.triton,
            PRECISION=precision(dtype), **programmatic(x.device), **config,
        )  # fmt: skip

    launch("conv" if norm is None else "conv_norm", dtype, rows if norm is None else block_width(width), run, x.device)
    return out


def as_bytes(mask: Tensor) -> Tensor:
    """A mask as the kernels read it."""
    return mask.contiguous().view(torch.uint8)


@triton.jit
def softplus(x):
    """As PyTorch's, which is x beyond 20; log1p(e) is exact to rounding for the smallest e as well."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    small = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + small


@triton.jit
def tanh(x):
    """Exact to rounding for the smallest x as well: from exp(-2 |x|) - 1, whose rounding its own logarithm takes back."""
    y = -2.0 * tl.abs(x)
    u = tl.exp(y)
    less = tl.where(u == 1.0, y, (u - 1.0) * (y / tl.log(tl.where((u == 1.0) | (u == 0.0), 0.5, u))))
    size = -tl.where(u == 0.0, -1.0, less) / (2.0 + tl.where(u == 0.0, -1.0, less))
    return tl.where(x < 0, -size, size)


@triton.jit
def head_kernel(
    x_ptr, w_ptr, bias_ptr, mask_ptr, out_ptr, second_ptr, rows, steps, radius, least,
    C: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = conv_tile(x_ptr, w_ptr, row, live, column, steps, C, N, 3, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    acc += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(ACC)[None, :]
    inside = live[:, None] & (column < N)[None, :]
    if KIND == CLASSES:
        keep = tl.load(mask_ptr + row, mask=live, other=0) != 0
        value = tl.where(keep[:, None], 1.0 / (1.0 + tl.exp(-acc)), 0.0)
        place = row.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        # Columns are F distances and F spreads; results are [B, F, T].
        fields: tl.constexpr = N // 2
        distance = radius * tanh(acc / radius)
        line = (row // steps).to(tl.int64)[:, None] * fields + column[None, :]
        place = line * steps + (row % steps)[:, None]
        tl.store(out_ptr + place, distance.to(out_ptr.dtype.element_ty), mask=inside & (column < fields)[None, :])
        spread = (softplus(acc) + least).to(second_ptr.dtype.element_ty)
        tl.store(second_ptr + (place - fields * steps), spread, mask=inside & (column >= fields)[None, :])


def _head(
    x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, out: Tensor, second: Tensor, kind: int, radius: float,
    least: float,
) -> None:  # fmt: skip
    x, weight = x.contiguous(), weight.contiguous()
    batch, steps, depth = x.shape
    rows, width, dtype = batch * steps, weight.shape[0], weight.dtype
    acc = accumulator(dtype)
    if out.numel() == 0:
        return

    def run(config: dict[str, int]) -> None:
        config = {**config, "BLOCK_N": min(64, block_width(width))}
        head_kernel[(triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(rows, config["BLOCK_M"]))](
            x, weight, bias, x if mask is None else as_bytes(mask), out, second, rows, steps, radius, least,
            C=depth, N=width, KIND=kind, ACC=acc.triton, PRECISION=precision(dtype), **programmatic(x.device), **config,
        )  # fmt: skip

    launch("head", dtype, 64, run, x.device)


@on_its_device
def class_scores(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """``sigmoid(conv x) * mask`` ``[B, P, C]`` in float32."""
    out = torch.empty(*mask.shape, weight.shape[0], dtype=torch.float32, device=x.device)
    _head(x, weight, bias, mask, out, out, 0, 1.0, 0.0)
    return out


@on_its_device
def fields(x: Tensor, weight: Tensor, bias: Tensor, radius: float, least: float) -> tuple[Tensor, Tensor]:
    """Signed distances ``radius * tanh(conv / radius)`` and scales ``softplus(conv) + least``, each ``[B, F, T]`` float32."""
    shape = x.shape[0], weight.shape[0] // 2, x.shape[1]
    distance, scale = (torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2))
    _head(x, weight, bias, None, distance, scale, 1, radius, least)
    return distance, scale


@triton.jit
def offsets_kernel(
    x_ptr, w_ptr, bias_ptr, spread_w_ptr, spread_bias_ptr, level_scale_ptr, level_ptr, stride_ptr, offset_ptr, std_ptr,
    rows, steps, least, factor,
    C: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    column = tl.arange(0, BLOCK_N)
    point = row % steps
    stride = tl.load(stride_ptr + point, mask=live, other=0.0).to(ACC)[:, None]
    level = tl.load(level_ptr + point, mask=live, other=0)
    inside = live[:, None] & (column < 2)[None, :]
    place = row.to(tl.int64)[:, None] * 2 + column[None, :]
    acc = conv_tile(x_ptr, w_ptr, row, live, column, steps, C, 2, 3, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    acc += tl.load(bias_ptr + column, mask=column < 2, other=0.0).to(ACC)[None, :]
    acc *= tl.load(level_scale_ptr + level, mask=live, other=0.0).to(ACC)[:, None]
    tl.store(offset_ptr + place, (softplus(acc) * stride).to(offset_ptr.dtype.element_ty), mask=inside)
    acc = conv_tile(x_ptr, spread_w_ptr, row, live, column, steps, C, 2, 3, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    acc += tl.load(spread_bias_ptr + column, mask=column < 2, other=0.0).to(ACC)[None, :]
    std = factor * (softplus(acc) + least) * stride
    tl.store(std_ptr + place, std.to(std_ptr.dtype.element_ty), mask=inside)


@on_its_device
def offsets(
    x: Tensor, weight: Tensor, bias: Tensor, spread_weight: Tensor, spread_bias: Tensor, level_scale: Tensor,
    level: Tensor, stride: Tensor, least: float, factor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Offsets ``softplus(conv * level_scale) * stride`` and ``factor * (softplus(spread) + least) * stride``, ``[B, P, 2]``."""
    x = x.contiguous()
    batch, steps, depth = x.shape
    acc, dtype = accumulator(weight.dtype), weight.dtype
    offset, std = (torch.empty(batch, steps, 2, dtype=torch.float32, device=x.device) for _ in range(2))
    if offset.numel() == 0:
        return offset, std

    def run(config: dict[str, int]) -> None:
        config = {**config, "BLOCK_N": 16}
        offsets_kernel[(triton.cdiv(batch * steps, config["BLOCK_M"]),)](
            x, weight.contiguous(), bias, spread_weight.contiguous(), spread_bias, level_scale, level, stride, offset, std,
            batch * steps, steps, least, factor, C=depth, ACC=acc.triton, PRECISION=precision(dtype),
            **programmatic(x.device), **config,
        )  # fmt: skip

    launch("offsets", dtype, 64, run, x.device)
    return offset, std


@triton.jit
def norm_rows_kernel(
    x_ptr, gamma_ptr, beta_ptr, mask_ptr, out_ptr, out_mask_ptr, rows, steps, stride_mask, out_steps, first, eps,
    D: tl.constexpr, RELU: tl.constexpr, PAD: tl.constexpr, HAS_MASK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of ``[B, steps, D]`` into ``[B, out_steps, D]`` from ``first`` on. PAD: a row of zeros follows, and the mask."""
    after_previous(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    own = steps + PAD
    recording = row // own
    time = row % own
    column = tl.arange(0, BLOCK_D)
    within = column < D
    real = live & (time < steps)
    keep = real
    if HAS_MASK:
        keep = tl.load(mask_ptr + recording.to(tl.int64) * stride_mask + time, mask=real, other=0) != 0
    inside = real[:, None] & within[None, :]
    place = (recording.to(tl.int64) * steps + time)[:, None] * D + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(ACC)
    mean = tl.sum(x, 1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    gamma = tl.load(gamma_ptr + column, mask=within, other=0.0).to(ACC)
    beta = tl.load(beta_ptr + column, mask=within, other=0.0).to(ACC)
    y = centred * rstd[:, None] * gamma[None, :] + beta[None, :]
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    y = tl.where(keep[:, None], y, 0.0)
    target = recording.to(tl.int64) * out_steps + first + time
    tl.store(
        out_ptr + target[:, None] * D + column[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=live[:, None] & within[None, :],
    )
    if PAD:
        tl.store(out_mask_ptr + target, keep.to(tl.uint8), mask=live)


def _norm_rows(
    x: Tensor, gamma: Tensor, beta: Tensor, mask: Tensor | None, eps: float, out: Tensor, *, relu: bool = False,
    out_mask: Tensor | None = None, first: int = 0,
) -> None:  # fmt: skip
    x = x.contiguous()
    batch, steps, width = x.shape
    pad = int(out_mask is not None)
    rows = batch * (steps + pad)
    if rows == 0:
        return
    if mask is not None and mask.stride(1) != 1:
        mask = mask.contiguous()
    acc = accumulator(x.dtype)
    norm_rows_kernel[(triton.cdiv(rows, ROWS),)](
        x, gamma, beta, x if mask is None else mask.view(torch.uint8), out, x if out_mask is None else out_mask, rows, steps,
        0 if mask is None else mask.stride(0), out.shape[1], first, eps, D=width, RELU=relu, PAD=pad,
        HAS_MASK=mask is not None, ACC=acc.triton, BLOCK_D=triton.next_power_of_2(width), ROWS=ROWS,
        **programmatic(x.device),
    )  # fmt: skip


@on_its_device
def norm_rows(x: Tensor, gamma: Tensor, beta: Tensor, mask: Tensor | None, eps: float, *, relu: bool = False) -> Tensor:
    """LayerNorm of ``x`` ``[B, T, D]``, then ``relu`` if asked, times ``mask`` ``[B, T]`` if given."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _norm_rows(x, gamma, beta, mask, eps, out, relu=relu)
    return out


@on_its_device
def flatten_levels(
    levels: Sequence[Tensor], masks: Sequence[Tensor], norms: Sequence[tuple[Tensor, Tensor, float]]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """All levels normalised and masked as one sequence ``[B, P, D]``, its mask, and the levels as views into it."""
    batch, _, width = levels[0].shape
    lengths = [level.shape[1] for level in levels]
    points = sum(lengths) + len(lengths)
    out = torch.empty(batch, points, width, dtype=levels[0].dtype, device=levels[0].device)
    valid = torch.empty(batch, points, dtype=torch.uint8, device=out.device)
    first, views = 0, []
    for level, mask, (gamma, beta, eps) in zip(levels, masks, norms, strict=True):
        _norm_rows(level, gamma, beta, mask, eps, out, out_mask=valid, first=first)
        views.append(out[:, first : first + level.shape[1]])
        first += level.shape[1] + 1
    return out, valid.view(torch.bool), views


@triton.jit
def halve_kernel(
    x_ptr, mask_ptr, out_ptr, out_mask_ptr, rows, steps, half, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    recording = (row // half).to(tl.int64)
    time = (row % half) * 2
    column = tl.arange(0, BLOCK_D)
    within = column < D
    keep = tl.load(mask_ptr + recording * steps + time, mask=live, other=0) != 0
    best = tl.load(
        x_ptr + (recording * steps + time)[:, None] * D + column[None, :],
        mask=keep[:, None] & within[None, :],
        other=0.0,
    )
    for side in tl.static_range(2):
        near = time + (2 * side - 1)
        there = keep & (near >= 0) & (near < steps)
        there = there & (tl.load(mask_ptr + recording * steps + near, mask=there, other=0) != 0)
        x = tl.load(
            x_ptr + (recording * steps + near)[:, None] * D + column[None, :], mask=there[:, None] & within[None, :],
            other=0.0,
        )  # fmt: skip
        best = tl.where(there[:, None], tl.maximum(best, x, propagate_nan=tl.PropagateNan.ALL), best)
    out = row.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out_ptr + out, best, mask=live[:, None] & within[None, :])
    tl.store(out_mask_ptr + row, keep.to(tl.uint8), mask=live)


@on_its_device
def halve(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Masked max pooling of kernel 3, stride 2: ``[B, T, D]``, ``[B, T]`` to ``[B, ceil(T / 2), D]`` and its mask."""
    x = x.contiguous()
    batch, steps, width = x.shape
    half = (steps + 1) // 2
    out = torch.empty(batch, half, width, dtype=x.dtype, device=x.device)
    out_mask = torch.empty(batch, half, dtype=torch.uint8, device=x.device)
    if batch * half:
        halve_kernel[(triton.cdiv(batch * half, POOLED),)](
            x, as_bytes(mask), out, out_mask, batch * half, steps, half, D=width, BLOCK_D=triton.next_power_of_2(width),
            ROWS=POOLED, **programmatic(x.device),
        )  # fmt: skip
    return out, out_mask.view(torch.bool)


@triton.jit
def lateral_kernel(
    x_ptr, w_ptr, bias_ptr, context_ptr, mask_ptr, out_ptr, rows, steps, half, stride_x, stride_mask,
    K: tl.constexpr, N: tl.constexpr, ADDED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    recording = (row // steps).to(tl.int64)
    time = row % steps
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = live[:, None] & (column < N)[None, :]
    start = recording * stride_x + time * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        w = weight_tile(w_ptr, k, column, K, 1, K, N, BLOCK_K, BLOCK_N)
        x = tl.load(x_ptr + start[:, None] + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
        acc = tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION, out_dtype=ACC)
    acc += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(ACC)[None, :]
    if ADDED == 1:
        acc += tl.load(context_ptr + row.to(tl.int64)[:, None] * N + column[None, :], mask=inside, other=0.0).to(ACC)
    if ADDED == 2:
        # Even steps lie on the coarser level's, odd ones between two of them; past its end it is zero.
        place = (recording * half + time // 2)[:, None] * N + column[None, :]
        odd = (time % 2 == 1)[:, None]
        low = tl.load(context_ptr + place, mask=inside, other=0.0).to(ACC)
        high = tl.load(context_ptr + place + N, mask=inside & odd & (time // 2 + 1 < half)[:, None], other=0.0).to(ACC)
        acc += tl.where(odd, 0.5 * (low + high), low)
    keep = tl.load(mask_ptr + recording * stride_mask + time, mask=live, other=0) != 0
    acc = tl.where(keep[:, None], acc, 0.0)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * N + column[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


@on_its_device
def lateral(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, context: Tensor | None, added: int) -> Tensor:
    """``(x W^T + b + context) * mask`` ``[B, T, N]``.

    Args:
        x: ``[B, T, K]``, rows dense, recordings any distance apart.
        context: ``[B, T, N]`` (``added`` SAME), or ``[B, ceil(T / 2), N]`` that is interpolated (DOUBLED), or None (ALONE).
    """
    batch, steps, depth = x.shape
    if x.stride(2) != 1 or x.stride(1) != depth:
        x = x.contiguous()
    if mask.stride(1) != 1:
        mask = mask.contiguous()
    width, dtype = weight.shape[0], weight.dtype
    acc = accumulator(dtype)
    out = torch.empty(batch, steps, width, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    other = out if context is None else context.contiguous()

    def run(config: dict[str, int]) -> None:
        grid = (triton.cdiv(width, config["BLOCK_N"]), triton.cdiv(batch * steps, config["BLOCK_M"]))
        lateral_kernel[grid](
            x, weight.contiguous(), bias, other, mask.view(torch.uint8), out, batch * steps, steps, other.shape[1], x.stride(0),
            mask.stride(0), K=depth, N=width, ADDED=added, ACC=acc.triton, PRECISION=precision(dtype),
            **programmatic(x.device), **config,
        )  # fmt: skip

    launch("lateral", dtype, batch * steps, run, x.device)
    return out


@triton.jit
def standardise_kernel(
    x_ptr, mean_ptr, std_ptr, mask_ptr, out_ptr, rows, D: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    within = column < D
    inside = live[:, None] & within[None, :]
    place = row.to(tl.int64)[:, None] * D + column[None, :]
    mean = tl.load(mean_ptr + column, mask=within, other=0.0).to(ACC)
    std = tl.load(std_ptr + column, mask=within, other=1.0).to(ACC)
    keep = tl.load(mask_ptr + row, mask=live, other=0) != 0
    # What is masked may be anything: 0 * inf is NaN there as in PyTorch.
    y = (tl.load(x_ptr + place, mask=inside, other=0.0).to(ACC) - mean[None, :]) / std[None, :] * keep.to(ACC)[:, None]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


@on_its_device
def standardise(x: Tensor, mean: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """``(x - mean) / std * mask`` of ``[B, T, D]``, in the dtype that PyTorch gives it."""
    x = x.contiguous()
    batch, steps, width = x.shape
    dtype = torch.promote_types(x.dtype, mean.dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if out.numel():
        columns = min(1024, triton.next_power_of_2(width))
        standardise_kernel[(triton.cdiv(batch * steps, ROWS), triton.cdiv(width, columns))](
            x, mean, std, as_bytes(mask), out, batch * steps, D=width, ACC=accumulator(dtype).triton, BLOCK_D=columns,
            ROWS=ROWS, **programmatic(x.device),
        )  # fmt: skip
    return out


@triton.jit
def tau_of(logits, stretch):
    tau = (1.0 + 2.0 * stretch) * (1.0 / (1.0 + tl.exp(-logits))) - stretch
    return tl.minimum(tl.maximum(tau, 0.0), 1.0)


@triton.jit
def dial_kernel(
    logits_ptr, mask_ptr, shift_ptr, recordings, steps, budget, saturation, stretch, rounds,
    ACC: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program a recording: its steps are read once a round, out of L1 or L2."""
    after_previous(PDL)
    recording = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    largest = tl.zeros([TILE], ACC)
    for start in range(0, recordings * steps, TILE):  # of all recordings, as the definition has it
        here = tl.load(logits_ptr + start + lane, mask=start + lane < recordings * steps, other=0.0).to(ACC)
        largest = tl.maximum(largest, tl.abs(here))
    bound = tl.max(largest, 0) + saturation
    count = tl.zeros([TILE], ACC)
    for start in range(0, steps, TILE):
        keep = tl.load(mask_ptr + recording * steps + start + lane, mask=start + lane < steps, other=0) != 0
        count += keep.to(ACC)
    number = tl.maximum(tl.sum(count, 0), 1.0)
    low = -bound
    high = bound
    for _ in range(0, rounds):
        middle = 0.5 * (low + high)
        total = tl.zeros([TILE], ACC)
        for start in range(0, steps, TILE):
            inside = start + lane < steps
            keep = tl.load(mask_ptr + recording * steps + start + lane, mask=inside, other=0) != 0
            here = tl.load(logits_ptr + recording * steps + start + lane, mask=inside, other=0.0).to(ACC)
            total += tl.where(keep, tau_of(here + middle, stretch), 0.0)
        below = tl.sum(total, 0) / number < budget
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    tl.store(shift_ptr + recording, (0.5 * (low + high)).to(shift_ptr.dtype.element_ty))


@on_its_device
def dial(logits: Tensor, mask: Tensor, budget: float, saturation: float, stretch: float, rounds: int) -> Tensor:
    """Shift ``[B, 1]`` of ``logits`` ``[B, T]`` that makes the mean depth ``budget``, by bisection."""
    logits = logits.contiguous()
    batch, steps = logits.shape
    shift = torch.empty(batch, 1, dtype=logits.dtype, device=logits.device)
    if batch:
        dial_kernel[(batch,)](
            logits, as_bytes(mask), shift, batch, steps, budget, saturation, stretch, rounds,
            ACC=accumulator(logits.dtype).triton, TILE=min(8192, max(128, triton.next_power_of_2(steps))), num_warps=16,
            **programmatic(logits.device),
        )  # fmt: skip
    return shift


@triton.jit
def gates_kernel(
    raw_ptr, shift_ptr, logits_ptr, tau_ptr, gates_ptr, rows, steps, stretch,
    LAYERS: tl.constexpr, HAS_SHIFT: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = row < rows
    logits = tl.load(raw_ptr + row, mask=live, other=0.0).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row, logits, mask=live)
    if HAS_SHIFT:
        logits += tl.load(shift_ptr + row // steps, mask=live, other=0.0).to(logits.dtype)
    tau = tau_of(logits, stretch)
    tl.store(tau_ptr + row, tau, mask=live)
    for layer in range(0, LAYERS):
        gate = tl.minimum(tl.maximum(LAYERS * tau - layer, 0.0), 1.0)
        tl.store(gates_ptr + layer * rows.to(tl.int64) + row, gate, mask=live)


@on_its_device
def gates(raw: Tensor, shift: Tensor | None, layers: int, stretch: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[B, T]`` in float32, tau ``[B, T]`` and gates ``[B, T, L]`` (stored layer by layer) of ``raw`` logits."""
    raw = raw.contiguous()
    batch, steps = raw.shape
    wide = accumulate_dtype(raw.dtype) if raw.dtype == torch.float64 else torch.float32
    logits, tau = (torch.empty(batch, steps, dtype=wide, device=raw.device) for _ in range(2))
    table = torch.empty(layers, batch, steps, dtype=wide, device=raw.device)
    if raw.numel():
        gates_kernel[(triton.cdiv(batch * steps, 256),)](
            raw, logits if shift is None else shift.contiguous(), logits, tau, table, batch * steps, steps, stretch,
            LAYERS=layers, HAS_SHIFT=shift is not None, TILE=256, **programmatic(raw.device),
        )  # fmt: skip
    return logits, tau, table.permute(1, 2, 0)

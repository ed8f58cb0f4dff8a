"""Exits of a boundary stream in inference (:mod:`tzn.nn.zoom` has the definitions), each with the gate of the next block.

    read_exit   raw += gate * (LN(h) W^T + b), where the block before ran; gate' = gate * activity(raw)
    fields      of raw exits: distance, scale and logit of reach, as they lie in memory behind a head

Tile pictures: read_exit takes ROWS whole rows, of which those that stopped are not read; its 3 F columns are sums over a row,
no product of matrices, so each row moves once and weights come out of L1. fields takes TILE steps of a field.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels import Dial
from tzn.kernels._launch import accumulator, after_previous, on_its_device, programmatic
from tzn.kernels.fused import ROWS, as_bytes, softplus, tanh


@triton.jit
def exit_column(
    y, column, within, row, live, on, gate, w_ptr, bias_ptr, raw_ptr, place: tl.constexpr,
    D: tl.constexpr, COLUMNS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Column ``place`` of raw exits, corrected where the block ran."""
    w = tl.load(w_ptr + place * D + column, mask=within, other=0.0).to(y.dtype)
    read = (tl.sum(y * w[None, :], 1) + tl.load(bias_ptr + place).to(y.dtype)).to(raw_ptr.dtype.element_ty)
    there = raw_ptr + row.to(tl.int64) * COLUMNS + place
    if FIRST:
        tl.store(there, read, mask=live)
        return read
    value = tl.load(there, mask=live, other=0.0)
    value = tl.where(on, value + gate * read, value)
    tl.store(there, value, mask=on)
    return value


@triton.jit
def exit_kernel(
    h_ptr, gamma_ptr, beta_ptr, w_ptr, bias_ptr, raw_ptr, mask_ptr, gate_ptr, next_ptr, shift_ptr, rows, steps, eps,
    least, settled, ramp, low, high,
    D: tl.constexpr, FIELDS: tl.constexpr, FIRST: tl.constexpr, NEXT: tl.constexpr, FULL: tl.constexpr,
    HAS_SHIFT: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows that stopped are not read; what they said stays."""
    after_previous(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    if FIRST:
        gate = (tl.load(mask_ptr + row, mask=live, other=0) != 0).to(raw_ptr.dtype.element_ty)
        on = live
    else:
        gate = tl.load(gate_ptr + row, mask=live, other=0.0)
        on = live & (gate != 0)
    column = tl.arange(0, BLOCK_D)
    within = column < D
    inside = on[:, None] & within[None, :]
    h = tl.load(h_ptr + row.to(tl.int64)[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)
    centred = tl.where(inside, h - (tl.sum(h, 1) / D)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    gamma = tl.load(gamma_ptr + column, mask=within, other=0.0).to(ACC)
    beta = tl.load(beta_ptr + column, mask=within, other=0.0).to(ACC)
    y = centred * rstd[:, None] * gamma[None, :] + beta[None, :]
    activity = tl.zeros([ROWS], raw_ptr.dtype.element_ty)
    for field in tl.static_range(FIELDS):
        exit_column(
            y, column, within, row, live, on, gate, w_ptr, bias_ptr, raw_ptr, field, D, 3 * FIELDS, FIRST
        )  # fmt: skip
        spread = exit_column(
            y, column, within, row, live, on, gate, w_ptr, bias_ptr, raw_ptr, FIELDS + field, D, 3 * FIELDS, FIRST
        )  # fmt: skip
        reach = exit_column(
            y, column, within, row, live, on, gate, w_ptr, bias_ptr, raw_ptr, 2 * FIELDS + field, D, 3 * FIELDS, FIRST
        )  # fmt: skip
        if NEXT:
            close = (1.0 / (1.0 + tl.exp(-reach)) - low) / (high - low)
            unsure = tl.log(softplus(spread) + least) - settled
            if HAS_SHIFT:
                unsure += tl.load(shift_ptr + row // steps, mask=live, other=0.0)
            unsure = 0.5 + unsure / ramp
            of_field = tl.minimum(tl.maximum(close, 0.0), 1.0) * tl.minimum(tl.maximum(unsure, 0.0), 1.0)
            activity = tl.maximum(activity, of_field)
    if NEXT:
        tl.store(next_ptr + row, gate if FULL else gate * activity, mask=live)


@on_its_device
def read_exit(
    h: Tensor, norm: tuple[Tensor, Tensor, float], linear: tuple[Tensor, Tensor], raw: Tensor, mask: Tensor,
    gate: Tensor | None, following: Tensor | None, shift: Tensor | None, dial: Dial,
) -> None:  # fmt: skip
    """Reads an exit of ``h`` ``[B, T, D]`` into ``raw`` ``[B * T, 3 F]`` float32, and the gate of the block behind it.

    ``gate`` ``[B, T]`` float32: of the block before, where it is not 0 ``raw`` is corrected by so much of what is read; None:
    there was none, ``raw`` is filled. ``following`` ``[B, T]`` float32: receives ``gate`` (of the first: ``mask``) times the
    step's activity; None: not wanted. ``shift`` ``[B]``, added to the logarithm of the scale. How many steps go on stays on
    the device.
    """
    h = h.contiguous()
    batch, steps, width = h.shape
    if h.numel():
        exit_kernel[(triton.cdiv(batch * steps, ROWS),)](
            h, *norm[:2], *linear, raw, as_bytes(mask), raw if gate is None else gate, raw if following is None else following,
            raw if shift is None else shift, batch * steps, steps, norm[2], dial.least, dial.settled, dial.ramp, *dial.reach,
            D=width, FIELDS=raw.shape[1] // 3, FIRST=gate is None, NEXT=following is not None, FULL=dial.full,
            HAS_SHIFT=shift is not None, ACC=accumulator(h.dtype).triton, BLOCK_D=triton.next_power_of_2(width), ROWS=ROWS,
            **programmatic(h.device),
        )  # fmt: skip


@triton.jit
def fields_kernel(
    raw_ptr, distance_ptr, scale_ptr, reach_ptr, rows, steps, radius, least,
    FIELDS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = row < rows
    field = tl.program_id(1)
    there = raw_ptr + row.to(tl.int64) * (3 * FIELDS) + field
    place = ((row // steps).to(tl.int64) * FIELDS + field) * steps + row % steps
    tl.store(distance_ptr + place, radius * tanh(tl.load(there, mask=live, other=0.0) / radius), mask=live)
    tl.store(scale_ptr + place, softplus(tl.load(there + FIELDS, mask=live, other=0.0)) + least, mask=live)
    tl.store(reach_ptr + place, tl.load(there + 2 * FIELDS, mask=live, other=0.0), mask=live)


@on_its_device
def fields(raw: Tensor, shape: torch.Size, radius: float, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, scale and logit of reach, each ``[B, F, T]``, of ``raw`` ``[B * T, 3 F]``; ``shape``: B, T."""
    (rows, columns), (batch, steps) = raw.shape, shape
    distance, scale, reach = (
        torch.empty(batch, columns // 3, steps, dtype=raw.dtype, device=raw.device) for _ in range(3)
    )
    if raw.numel():
        fields_kernel[(triton.cdiv(rows, 256), columns // 3)](
            raw, distance, scale, reach, rows, steps, radius, least, FIELDS=columns // 3, TILE=256,
            **programmatic(raw.device),
        )  # fmt: skip
    return distance, scale, reach

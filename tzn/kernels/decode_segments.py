"""Segments from points, offsets and crossings: one lane per candidate, one launch for a batch of recordings.

Each end is fused with the nearest crossing by inverse variance, found by binary search in the recording's sorted
crossings, which stay in L1. Reads 24 bytes and writes 16 per candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import after_previous, on_its_device, programmatic

BLOCK = 128


@triton.jit
def fuse(place, std, positions, errors, count, rounds, snap_sigmas, live):
    """An end and its standard deviation after meeting the nearest of ``count`` crossings."""
    low = tl.zeros_like(place).to(tl.int32)
    high = low + count
    some = live & (high > 0)
    for _ in range(0, rounds):
        middle = (low + high) // 2
        searching = live & (low < high)
        below = searching & (tl.load(positions + middle, mask=searching, other=0.0) < place)
        high = tl.where(searching & (below == 0), middle, high)
        low = tl.where(below, middle + 1, low)
    before = tl.maximum(low - 1, 0)
    after = tl.minimum(low, tl.maximum(count - 1, 0))
    distance_before = tl.abs(tl.load(positions + before, mask=some, other=0.0) - place)
    distance_after = tl.abs(tl.load(positions + after, mask=some, other=0.0) - place)
    nearest = tl.where(distance_after < distance_before, after, before)
    found = tl.load(positions + nearest, mask=some, other=0.0)
    error = tl.load(errors + nearest, mask=some, other=1.0)
    variance = std * std
    total = variance + error * error
    # A crossing less certain than the end itself has nothing to add; this also bounds how far an end can reach.
    snap = some & (error <= std) & (tl.abs(found - place) <= snap_sigmas * tl.sqrt(total))
    total = tl.where(snap, total, 1.0)
    fused = place + variance / total * (found - place)
    return tl.where(snap, fused, place), tl.where(snap, std * error / tl.sqrt(total), std)


@triton.jit
def decode_kernel(
    position_ptr, offset_ptr, offset_std_ptr, starts_ptr, starts_std_ptr, starts_count_ptr, ends_ptr, ends_std_ptr,
    ends_count_ptr, segments_ptr, std_ptr, candidates, start_capacity, end_capacity, rounds, snap_sigmas,
    REFINE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    recording = tl.program_id(0)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = row < candidates
    place = recording.to(tl.int64) * candidates + row
    point = tl.load(position_ptr + place, mask=live, other=0.0)
    start = point - tl.load(offset_ptr + 2 * place, mask=live, other=0.0)
    end = point + tl.load(offset_ptr + 2 * place + 1, mask=live, other=0.0)
    start_std = tl.load(offset_std_ptr + 2 * place, mask=live, other=1.0)
    end_std = tl.load(offset_std_ptr + 2 * place + 1, mask=live, other=1.0)
    if REFINE:
        skip = recording.to(tl.int64) * start_capacity
        number = tl.load(starts_count_ptr + recording).to(tl.int32)
        new_start, new_start_std = fuse(
            start, start_std, starts_ptr + skip, starts_std_ptr + skip, number, rounds, snap_sigmas, live
        )
        skip = recording.to(tl.int64) * end_capacity
        number = tl.load(ends_count_ptr + recording).to(tl.int32)
        new_end, new_end_std = fuse(
            end, end_std, ends_ptr + skip, ends_std_ptr + skip, number, rounds, snap_sigmas, live
        )
        ordered = new_end > new_start  # ends that cross over would lose the segment: keep the anchor-free ends there
        start = tl.where(ordered, new_start, start)
        end = tl.where(ordered, new_end, end)
        start_std = tl.where(ordered, new_start_std, start_std)
        end_std = tl.where(ordered, new_end_std, end_std)
    tl.store(segments_ptr + 2 * place, start, mask=live)
    tl.store(segments_ptr + 2 * place + 1, end, mask=live)
    tl.store(std_ptr + 2 * place, start_std, mask=live)
    tl.store(std_ptr + 2 * place + 1, end_std, mask=live)


@on_its_device
def decode_segments(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: Sequence[Tensor] | None, ends: Sequence[Tensor] | None,
    snap_sigmas: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Segments and standard errors ``[R, N, 2]``.

    Args:
        position: ``[R, N]``; offset, offset_std: ``[R, N, 2]``.
        starts, ends: (position ``[R, K]`` ascending, std ``[R, K]``, count ``[R]``); None or empty: anchor-free.
    """
    recordings, number = position.shape
    segments = torch.empty(recordings, number, 2, dtype=offset.dtype, device=offset.device)
    std = torch.empty_like(segments)
    if segments.numel() == 0:
        return segments, std
    refine = bool(starts and ends)
    tables: tuple[Tensor, ...] = (std,) * 6
    start_capacity = end_capacity = 0
    if starts and ends:
        start_capacity, end_capacity = starts[0].shape[1], ends[0].shape[1]
        tables = tuple(x.contiguous() for x in (*starts, *ends))
    decode_kernel[(recordings, triton.cdiv(number, BLOCK))](
        position.to(offset.dtype).contiguous(), offset.contiguous(), offset_std.contiguous(), *tables, segments, std,
        number, start_capacity, end_capacity, max(start_capacity, end_capacity).bit_length() + 1, snap_sigmas,
        REFINE=refine, BLOCK=BLOCK, **programmatic(offset.device),
    )  # fmt: skip
    return segments, std

"""Boundaries of signed distance fields: up-crossings, votes and their standard errors, in two launches.

find_kernel, one program per field and BLOCK steps, one lane per step t: crossing iff d(t) < 0 <= d(t + 1) and the slope
exceeds ``min_slope``, at t - d(t) / slope; lanes that cross combine the votes t' - d(t') of the 2 W + 2 steps around it
(out of L1). The weighted median is found by counting: for each vote the weight at or below it; the median is the
smallest vote that reaches half. That is exact, needs no sort, and costs (2 W + 2)^2 steps; bisection on the value needs
about 30 rounds of 2 W + 2 and a final snap to a vote, which is no less work for W < 15.

place_kernel ranks crossings. Two crossings of a field lie two steps apart or more, so a field of T steps has at most
T // 2, the capacity of the output; a vote moves a boundary by W at most, so the order by position is the order by step
corrected among the neighbours within 2 W + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import after_previous, on_its_device, programmatic
from tzn.reference.boundary_crossings import ESTIMATORS

BLOCK = 256

CROSSING = tl.constexpr(0)
VOTE_MEAN = tl.constexpr(1)
SQRT2 = tl.constexpr(2**0.5)


class CrossingTable(NamedTuple):
    """Crossings of B fields, K = T // 2; past ``counts``: +inf, slope 0."""

    position: Tensor  # [B, K]
    std: Tensor  # [B, K]
    slope: Tensor  # [B, K]
    counts: Tensor  # [B] int64


@triton.jit
def one_vote(distance, scale, mask, time, position, found, steps, window, HAS_MASK: tl.constexpr):
    """Vote of step ``time`` for the boundary near ``position``, its scale, and whether it is cast."""
    away = tl.abs(time.to(position.dtype) - position)
    inside = found & (time >= 0) & (time < steps) & (away <= window)
    if HAS_MASK:
        inside = inside & (tl.load(mask + time, mask=inside, other=0) != 0)
    vote = time.to(position.dtype) - tl.load(distance + time, mask=inside, other=0.0)
    cast = inside & (tl.abs(vote - position) <= window)
    return vote, tl.load(scale + time, mask=cast, other=1.0), cast


@triton.jit
def weight_up_to(value, distance, scale, mask, time, position, found, steps, window, HAS_MASK: tl.constexpr):
    """Sum of 1 / scale over the votes at or below ``value``."""
    reached = tl.zeros_like(position)
    for around in range(0, 2 * window + 2):
        vote, spread, cast = one_vote(
            distance, scale, mask, time - window + around, position, found, steps, window, HAS_MASK
        )
        reached += tl.where(cast & (vote <= value), 1.0 / spread, 0.0)
    return reached


@triton.jit
def find_kernel(
    distance_ptr, scale_ptr, mask_ptr, flags_ptr, position_ptr, std_ptr, slope_ptr, tiles_ptr, steps, window, min_slope,
    ESTIMATOR: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    field = tl.program_id(0)
    tile = tl.program_id(1)
    base = field.to(tl.int64) * steps
    distance = distance_ptr + base
    scale = scale_ptr + base
    mask = mask_ptr + base
    time = tile * BLOCK + tl.arange(0, BLOCK)
    inside = time + 1 < steps
    left = tl.load(distance + time, mask=inside, other=0.0)
    right = tl.load(distance + time + 1, mask=inside, other=0.0)
    slope = right - left
    found = inside & (left < 0) & (right >= 0) & (slope > min_slope)
    if HAS_MASK:
        found = found & (tl.load(mask + time, mask=inside, other=0) != 0)
        found = found & (tl.load(mask + time + 1, mask=inside, other=0) != 0)
    slope = tl.where(found, slope, 1.0)
    fraction = -left / slope
    position = time.to(left.dtype) + fraction
    std = position
    if ESTIMATOR == CROSSING:
        near = (1.0 - fraction) * tl.load(scale + time, mask=found, other=1.0)
        far = fraction * tl.load(scale + time + 1, mask=found, other=1.0)
        std = SQRT2 * tl.sqrt(near * near + far * far) / slope
    else:
        information = tl.zeros_like(position)
        total = tl.zeros_like(position)
        for around in range(0, 2 * window + 2):
            vote, spread, cast = one_vote(
                distance, scale, mask, time - window + around, position, found, steps, window, HAS_MASK
            )
            weight = tl.where(cast, 1.0 / (spread * spread), 0.0)
            information += weight
            if ESTIMATOR == VOTE_MEAN:
                total += weight * vote
            else:
                total += tl.where(cast, 1.0 / spread, 0.0)
        if ESTIMATOR == VOTE_MEAN:
            position = total / information
            std = SQRT2 / tl.sqrt(information)
        else:
            # Where exactly half of the weight lies on either side every point between is a median: take the middle.
            low = tl.full([BLOCK], float("inf"), position.dtype)
            high = low
            for around in range(0, 2 * window + 2):
                vote, spread, cast = one_vote(
                    distance, scale, mask, time - window + around, position, found, steps, window, HAS_MASK
                )
                reached = weight_up_to(vote, distance, scale, mask, time, position, found, steps, window, HAS_MASK)
                low = tl.where(cast & (reached >= total * (0.5 - 0.5e-6)) & (vote < low), vote, low)
                high = tl.where(cast & (reached > total * (0.5 + 0.5e-6)) & (vote < high), vote, high)
            position = 0.5 * (low + high)
            std = 1.0 / tl.sqrt(information)
    tl.store(flags_ptr + base + time, found.to(tl.uint8), mask=time < steps)
    tl.store(position_ptr + base + time, position, mask=found)
    tl.store(std_ptr + base + time, std, mask=found)
    tl.store(slope_ptr + base + time, slope, mask=found)
    tl.store(tiles_ptr + field * tl.num_programs(1) + tile, tl.sum(found.to(tl.int32), 0))


@triton.jit
def place_kernel(
    flags_ptr, position_ptr, std_ptr, slope_ptr, tiles_ptr, out_position_ptr, out_std_ptr, out_slope_ptr, count_ptr,
    steps, capacity, reach, tiles, BLOCK: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    field = tl.program_id(0)
    tile = tl.program_id(1)
    base = field.to(tl.int64) * steps
    before = 0
    total = 0
    for start in range(0, tiles, TILES):
        other = start + tl.arange(0, TILES)
        number = tl.load(tiles_ptr + field * tiles + other, mask=other < tiles, other=0)
        before += tl.sum(tl.where(other < tile, number, 0), 0)
        total += tl.sum(number, 0)
    time = tile * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(flags_ptr + base + time, mask=time < steps, other=0).to(tl.int32)
    here = found != 0
    position = tl.load(position_ptr + base + time, mask=here, other=0.0)
    rank = before + tl.cumsum(found, 0) - found
    for away in range(1, reach + 1):
        later = here & (time + away < steps)
        later = later & (tl.load(flags_ptr + base + time + away, mask=later, other=0) != 0)
        rank += (later & (tl.load(position_ptr + base + time + away, mask=later, other=0.0) < position)).to(tl.int32)
        earlier = here & (time >= away)
        earlier = earlier & (tl.load(flags_ptr + base + time - away, mask=earlier, other=0) != 0)
        rank -= (earlier & (tl.load(position_ptr + base + time - away, mask=earlier, other=0.0) > position)).to(
            tl.int32
        )
    out = field.to(tl.int64) * capacity
    tl.store(out_position_ptr + out + rank, position, mask=here)
    tl.store(out_std_ptr + out + rank, tl.load(std_ptr + base + time, mask=here, other=0.0), mask=here)
    tl.store(out_slope_ptr + out + rank, tl.load(slope_ptr + base + time, mask=here, other=0.0), mask=here)
    past = (time >= total) & (time < capacity)
    tl.store(out_position_ptr + out + time, float("inf"), mask=past)
    tl.store(out_std_ptr + out + time, float("inf"), mask=past)
    tl.store(out_slope_ptr + out + time, 0.0, mask=past)
    if tile == 0:
        tl.store(count_ptr + field, total)


@on_its_device
def boundary_crossings(
    distance: Tensor, scale: Tensor, *, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> CrossingTable:
    """Crossings of fields ``distance``, ``scale`` ``[B, T]`` with a fixed capacity of T // 2 and counts on the device."""
    fields, steps = distance.shape
    capacity = steps // 2
    position, std, slope = (distance.new_empty(fields, capacity) for _ in range(3))
    if fields == 0 or capacity == 0:
        return CrossingTable(position, std, slope, torch.zeros(fields, dtype=torch.int64, device=distance.device))
    count = torch.empty(fields, dtype=torch.int64, device=distance.device)
    distance, scale = distance.contiguous(), scale.contiguous().to(distance.dtype)
    flags = torch.empty(fields, steps, dtype=torch.uint8, device=distance.device)
    found = [torch.empty_like(distance) for _ in range(3)]
    tiles = triton.cdiv(steps, BLOCK)
    tile_counts = torch.empty(fields, tiles, dtype=torch.int32, device=distance.device)
    valid = flags if mask is None else mask.contiguous().view(torch.uint8)
    window = min(vote_window, steps)
    find_kernel[(fields, tiles)](
        distance, scale, valid, flags, *found, tile_counts, steps, window, min_slope,
        ESTIMATOR=ESTIMATORS.index(estimator), HAS_MASK=mask is not None, BLOCK=BLOCK, **programmatic(distance.device),
    )  # fmt: skip
    reach = 0 if estimator == "crossing" else 2 * window + 1
    place_kernel[(fields, tiles)](
        flags,
        *found,
        tile_counts,
        position,
        std,
        slope,
        count,
        steps,
        capacity,
        reach,
        tiles,
        BLOCK=BLOCK,
        TILES=256,
        **programmatic(distance.device),
    )
    return CrossingTable(position, std, slope, count)

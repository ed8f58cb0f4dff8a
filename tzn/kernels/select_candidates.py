"""The best (point, class) entries of every pyramid level, exactly, over as many programs as there are chunks of scores.

A score's bits, made to compare as the scores do, are 32-bit keys; the topk-th highest of a level is found digit by digit:

    histogram   x 3   how many keys above ``min_score`` have each value of 11, 11 and 10 bits, among those that agree with
                      the digits found so far; every program adds its chunk's counts to the level's (integers: the sum does
                      not depend on who comes first). Digits are found again by every program from finished histograms
    take        x 1   what is above the threshold, and the first of the input among those at it: the last histogram also
                      exists per chunk, which says how many come before. Packed (key, entry), in any order
    rank        x 1   packed values are all different: a value's place is how many are larger, which any program can count,
                      behind the places of the levels before: a level has no more than it has entries

Five launches and a cleared workspace instead of one program per level: 4 bytes per entry and pass, out of L2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import after_previous, on_its_device, programmatic

CHUNK = 4096
HIGH, LAST = tl.constexpr(2048), tl.constexpr(1024)  # values of the first two digits, and of the third
RANKED, COMPARED = 128, 16  # packed values whose places a program finds, and with how many it compares at a time
ENTRY_BITS = tl.constexpr(31)


class CandidateTable(NamedTuple):
    """Candidates of R recordings, level by level by falling score; places of none: point 0, label -1, score -inf."""

    point: Tensor  # [R, N] int64
    label: Tensor  # [R, N] int64
    score: Tensor  # [R, N] float32
    count: Tensor  # type: ignore[assignment]  # [R, L] int32


@triton.jit
def ordered_bits(score):
    """Integers in [0, 2^32) that compare as the scores do; both zeros are one."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def load_keys(scores, order_ptr, low, entry, entries, classes, min_score):
    """Key of a level's entries, and whether each counts."""
    inside = entry < entries
    point = tl.load(order_ptr + low + entry // classes, mask=inside, other=0)
    score = tl.load(scores + point * classes + entry % classes, mask=inside, other=0.0)
    return ordered_bits(score), inside & (score > min_score)


@triton.jit
def counted(digit, counts, BINS: tl.constexpr):
    """Histogram of the digits that count."""
    others = tl.sum((counts == 0).to(tl.int32), 0)
    bins = tl.arange(0, BINS)
    return tl.histogram(tl.where(counts, digit, 0).to(tl.int32), BINS) - tl.where(bins == 0, others, 0)


@triton.jit
def next_digit(histogram_ptr, wanted, BINS: tl.constexpr):
    """The digit of the ``wanted``-th highest key, and how many of the keys with that digit are wanted."""
    bins = tl.arange(0, BINS)
    histogram = tl.load(histogram_ptr + bins)
    greater = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)
    digit = tl.min(tl.where(greater < wanted, bins, BINS - 1), 0)
    return digit, wanted - tl.sum(tl.where(bins == digit, greater, 0), 0)


@triton.jit
def number_wanted(histogram_ptr, topk):
    """topk, or all there are."""
    return tl.minimum(tl.sum(tl.load(histogram_ptr + tl.arange(0, HIGH)), 0), topk)


@triton.jit
def chunk_of_level(bounds_ptr, classes, CHUNK: tl.constexpr):
    """Row of (recording, level), the level's first point and entries, and the first entry of this program's chunk."""
    level = tl.program_id(1)
    row = (tl.program_id(2) * tl.num_programs(1) + level).to(tl.int64)
    low = tl.load(bounds_ptr + level)
    entries = ((tl.load(bounds_ptr + level + 1) - low) * classes).to(tl.int32)
    return row, low, entries, tl.program_id(0) * CHUNK


@triton.jit
def histogram_kernel(
    scores_ptr, order_ptr, bounds_ptr, first_ptr, second_ptr, third_ptr, parts_ptr, points, classes, topk, min_score,
    DIGIT: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Digit 0, 1 or 2 of one chunk of one level of one recording."""
    after_previous(PDL)
    row, low, entries, start = chunk_of_level(bounds_ptr, classes, CHUNK)
    if start < entries:
        scores = scores_ptr + tl.program_id(2).to(tl.int64) * points * classes
        key, counts = load_keys(scores, order_ptr, low, start + tl.arange(0, CHUNK), entries, classes, min_score)
        if DIGIT == 0:
            histogram = counted(key >> 21, counts, HIGH)
            tl.atomic_add(first_ptr + row * HIGH + tl.arange(0, HIGH), histogram, mask=histogram > 0)
        else:
            wanted = number_wanted(first_ptr + row * HIGH, topk)
            prefix, wanted = next_digit(first_ptr + row * HIGH, wanted, HIGH)
            if DIGIT == 1:
                histogram = counted((key >> 10) & 2047, counts & ((key >> 21) == prefix), HIGH)
                tl.atomic_add(second_ptr + row * HIGH + tl.arange(0, HIGH), histogram, mask=histogram > 0)
            else:
                digit, wanted = next_digit(second_ptr + row * HIGH, wanted, HIGH)
                histogram = counted(key & 1023, counts & ((key >> 10) == prefix * 2048 + digit), LAST)
                bins = tl.arange(0, LAST)
                tl.atomic_add(third_ptr + row * LAST + bins, histogram, mask=histogram > 0)
                tl.store(parts_ptr + (row * tl.num_programs(0) + tl.program_id(0)) * LAST + bins, histogram)


@triton.jit
def take_kernel(
    scores_ptr, order_ptr, bounds_ptr, first_ptr, second_ptr, third_ptr, parts_ptr, packed_ptr, written_ptr,
    points, classes, topk, min_score, CHUNK: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    row, low, entries, start = chunk_of_level(bounds_ptr, classes, CHUNK)
    if start < entries:
        wanted = number_wanted(first_ptr + row * HIGH, topk)
        prefix, wanted = next_digit(first_ptr + row * HIGH, wanted, HIGH)
        digit, wanted = next_digit(second_ptr + row * HIGH, wanted, HIGH)
        last, wanted = next_digit(third_ptr + row * LAST, wanted, LAST)
        threshold = prefix.to(tl.int64) * 2097152 + digit.to(tl.int64) * 1024 + last.to(tl.int64)
        chunk = tl.program_id(0)
        before = 0  # keys at the threshold in earlier chunks
        for begin in range(0, chunk, PARTS):
            other = begin + tl.arange(0, PARTS)
            place = parts_ptr + (row * tl.num_programs(0) + other) * LAST + last
            before += tl.sum(tl.load(place, mask=other < chunk, other=0), 0)
        entry = start + tl.arange(0, CHUNK)
        scores = scores_ptr + tl.program_id(2).to(tl.int64) * points * classes
        key, counts = load_keys(scores, order_ptr, low, entry, entries, classes, min_score)
        tie = (counts & (key == threshold)).to(tl.int32)
        rank = before + tl.cumsum(tie, 0) - tie
        take = counts & ((key > threshold) | ((tie != 0) & (rank < wanted)))
        taken = take.to(tl.int32)
        number = tl.sum(taken, 0)
        if number > 0:
            place = tl.atomic_add(written_ptr + row, number) + tl.cumsum(taken, 0) - taken
            # Higher keys first, then earlier entries.
            tl.store(packed_ptr + row * topk + place, (key << ENTRY_BITS) + (2147483647 - entry), mask=take)


@triton.jit
def rank_kernel(
    scores_ptr, order_ptr, bounds_ptr, packed_ptr, written_ptr, point_ptr, label_ptr, score_ptr, count_ptr,
    points, classes, topk, capacity, LEVELS: tl.constexpr, RANKED: tl.constexpr, COMPARED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    level = tl.program_id(1)
    recording = tl.program_id(2)
    row = (recording * tl.num_programs(1) + level).to(tl.int64)
    other_level = tl.arange(0, LEVELS)
    there = other_level < tl.num_programs(1)
    end = tl.load(bounds_ptr + other_level + 1, mask=there, other=0)
    sizes = (end - tl.load(bounds_ptr + other_level, mask=there, other=0)) * classes
    of_levels = tl.minimum(sizes, topk).to(tl.int32)
    first = tl.sum(tl.where(other_level < level, of_levels, 0), 0)
    used = tl.sum(of_levels, 0)
    places = tl.minimum(tl.sum(tl.where(other_level == level, of_levels, 0), 0), tl.maximum(capacity - first, 0))
    number = tl.minimum(tl.load(written_ptr + row), places)  # fewer places: the host was told other sizes
    packed = packed_ptr + row * topk
    own = tl.program_id(0) * RANKED + tl.arange(0, RANKED)
    recorded = recording.to(tl.int64) * capacity
    out = recorded + first
    # Places that are left over: of this level, and behind all levels a share for each.
    behind = used + level * topk + own
    for side in tl.static_range(2):
        if side == 0:
            place = out + own
            past = (own >= number) & (own < places)
        else:
            place = recorded + behind
            past = (own < topk) & (behind < capacity)
        tl.store(point_ptr + place, tl.zeros([RANKED], tl.int64), mask=past)
        tl.store(label_ptr + place, tl.full([RANKED], -1, tl.int64), mask=past)
        tl.store(score_ptr + place, float("-inf"), mask=past)
    if tl.program_id(0) == 0:
        tl.store(count_ptr + row, number)
    if tl.program_id(0) * RANKED < number:
        live = own < number
        mine = tl.load(packed + own, mask=live, other=0)
        rank = tl.zeros([RANKED], tl.int32)
        for begin in range(0, number, COMPARED):
            other = begin + tl.arange(0, COMPARED)
            theirs = tl.load(packed + other, mask=other < number, other=-1)
            rank += tl.sum((theirs[None, :] > mine[:, None]).to(tl.int32), 1)
        entry = (2147483647 - (mine & 2147483647)).to(tl.int32)
        low = tl.load(bounds_ptr + level)
        point = tl.load(order_ptr + low + entry // classes, mask=live, other=0)
        label = (entry % classes).to(tl.int64)
        start = recording.to(tl.int64) * points * classes
        score = tl.load(scores_ptr + start + point * classes + label, mask=live, other=0.0)
        tl.store(point_ptr + out + rank, point, mask=live)
        tl.store(label_ptr + out + rank, label, mask=live)
        tl.store(score_ptr + out + rank, score, mask=live)


def level_order(level: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Points ``[P]`` sorted by level, and where each level begins ``[L + 1]``; depends on the pyramid alone."""
    order = level.argsort(stable=True)
    edges = torch.arange(levels + 1, device=level.device, dtype=level.dtype)
    return order, torch.searchsorted(level[order], edges)


@on_its_device
def select_candidates(
    scores: Tensor, order: Tensor, bounds: Tensor, *, min_score: float, topk: int, capacity: int
) -> CandidateTable:
    """The best ``topk`` entries above ``min_score`` of each level of ``scores`` ``[R, P, C]`` float32.

    ``order`` and ``bounds`` from :func:`level_order`; ``capacity``: N, the sum of min(``topk``, P_l * C) or more.
    """
    recordings, points, classes = scores.shape
    levels, device = bounds.shape[0] - 1, scores.device
    shape = recordings, capacity
    point, label = (torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2))
    score = torch.empty(shape, dtype=torch.float32, device=device)
    count = torch.empty(recordings, levels, dtype=torch.int32, device=device)
    if scores.numel() == 0 or capacity == 0:
        return CandidateTable(point.fill_(0), label.fill_(-1), score.fill_(float("-inf")), count.zero_())
    scores, rows = scores.contiguous(), recordings * levels
    chunks = triton.cdiv(points * classes, CHUNK)
    widths = [HIGH.value, HIGH.value, LAST.value, 1]
    *tables, written = torch.zeros(rows * sum(widths), dtype=torch.int32, device=device).split(
        [rows * w for w in widths]
    )
    parts = torch.empty(rows, chunks, LAST.value, dtype=torch.int32, device=device)
    packed = torch.empty(rows, topk, dtype=torch.int64, device=device)
    grid = (chunks, levels, recordings)
    for digit in range(3):
        histogram_kernel[grid](
            scores,
            order,
            bounds,
            *tables,
            parts,
            points,
            classes,
            topk,
            min_score,
            DIGIT=digit,
            CHUNK=CHUNK,
            num_warps=8,
            **programmatic(device),
        )
    take_kernel[grid](
        scores, order, bounds, *tables, parts, packed, written, points, classes, topk, min_score, CHUNK=CHUNK, PARTS=128,
        num_warps=8, **programmatic(device),
    )  # fmt: skip
    rank_kernel[(triton.cdiv(topk, RANKED), levels, recordings)](
        scores, order, bounds, packed, written, point, label, score, count, points, classes, topk, capacity,
        LEVELS=triton.next_power_of_2(levels), RANKED=RANKED,
        COMPARED=COMPARED, **programmatic(device),
    )  # fmt: skip
    return CandidateTable(point, label, score, count)

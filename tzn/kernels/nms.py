"""Exact non-maximum suppression in time, batched over recordings x classes, without a host in the loop.

One program owns one row (a recording's candidates of one class) and repeats: take the highest score, lowest index among
equals; decay the rest by their overlap with it. Arithmetic is float32 in the reference's order with IEEE division, and the
Gaussian through float64, so the picks are the reference's picks.

    up to REGISTERS candidates:  [s0 s1 … sN] starts, ends and scores live in registers; a pick is one arg-max and one decay
    more (two levels):           sorted by (class, start) in chunks of CHUNK; registers hold each chunk's best score and hull.
                                 A pick is an arg-max over chunks, then a decay of the chunks whose hull meets the pick:
                                 what it does not overlap keeps its score.

Which of the two runs follows from the capacity N, never from data; both handle any number of candidates up to it. Bound by
the latency of the arg-max (about a microsecond a pick), not by memory; rows run side by side on different multiprocessors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.ops.picks import Picks

EPS = tl.constexpr(1e-6)  # added to every length
LOG2_E = tl.constexpr(1.4426950408889634)
GAUSSIAN = tl.constexpr(0)
LINEAR = tl.constexpr(1)
HARD = tl.constexpr(2)
METHODS = {"gaussian": 0, "linear": 1, "hard": 2}
REGISTERS = 4096  # candidates of a recording that one program holds: 16 per thread at 8 warps
CHUNK = 512  # 1024 spills registers on sm_80
LAST = tl.constexpr(2**31 - 1)


@triton.jit
def decayed(
    live, start, end, picked_start, picked_end, iou_threshold, sigma, min_score, METHOD: tl.constexpr
):  # fmt: skip
    """Scores after a pick; -inf: removed."""
    overlap = tl.maximum(tl.minimum(end, picked_end) - tl.maximum(start, picked_start), 0.0)
    length = end - start + EPS
    overlap = tl.div_rn(overlap, (picked_end - picked_start + EPS) + length - overlap)
    if METHOD == GAUSSIAN:
        exponent = tl.div_rn(-(overlap * overlap), sigma + tl.zeros_like(overlap))
        score = live * tl.exp2(exponent.to(tl.float64) * LOG2_E).to(tl.float32)
        score = tl.where(score < min_score, float("-inf"), score)
    elif METHOD == LINEAR:
        score = tl.where(overlap >= iou_threshold, live * (1.0 - overlap), live)
        score = tl.where(score < min_score, float("-inf"), score)
    else:
        score = tl.where(overlap >= iou_threshold, float("-inf"), live)
    return tl.where(live == float("-inf"), live, score)


@triton.jit
def pad_picks(index_ptr, score_ptr, first, capacity, BLOCK: tl.constexpr):
    for start in range(0, capacity, BLOCK):
        place = start + tl.arange(0, BLOCK)
        past = (place >= first) & (place < capacity)
        tl.store(index_ptr + place, -1, mask=past)
        tl.store(score_ptr + place, float("-inf"), mask=past)


@triton.jit
def nms_kernel(
    segments_ptr, scores_ptr, labels_ptr, counts_ptr, index_ptr, score_ptr, made_ptr,
    candidates, capacity, iou_threshold, sigma, min_score,
    METHOD: tl.constexpr, MULTICLASS: tl.constexpr, HAS_COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    recording = tl.program_id(0)
    group = tl.program_id(1)
    row = recording * tl.num_programs(1) + group
    count = candidates
    if HAS_COUNTS:
        count = tl.load(counts_ptr + recording).to(tl.int32)
    base = recording.to(tl.int64) * candidates
    place = tl.arange(0, BLOCK)
    member = place < count
    if MULTICLASS:
        member = member & (tl.load(labels_ptr + base + place, mask=member, other=-1) == group)
    live = tl.load(scores_ptr + base + place, mask=member, other=float("-inf"))
    start = tl.load(segments_ptr + 2 * (base + place), mask=member, other=0.0)
    end = tl.load(segments_ptr + 2 * (base + place) + 1, mask=member, other=0.0)
    if METHOD == HARD:
        live = tl.where((live > min_score) | (min_score <= 0.0), live, float("-inf"))
    index_ptr += row.to(tl.int64) * capacity
    score_ptr += row.to(tl.int64) * capacity
    made = 0
    best, index = tl.max(live, 0, return_indices=True)
    while (made < capacity) & (best != float("-inf")):
        tl.store(index_ptr + made, index)
        tl.store(score_ptr + made, best)
        picked_start = tl.load(segments_ptr + 2 * (base + index))
        picked_end = tl.load(segments_ptr + 2 * (base + index) + 1)
        live = decayed(live, start, end, picked_start, picked_end, iou_threshold, sigma, min_score, METHOD)
        live = tl.where(place == index, float("-inf"), live)
        made += 1
        best, index = tl.max(live, 0, return_indices=True)
    tl.store(made_ptr + row, made)
    pad_picks(index_ptr, score_ptr, made, capacity, BLOCK)


@triton.jit
def chunk_best(live, order, place):
    """Highest score of a chunk, its lowest original index among equals, and where that lies."""
    best = tl.max(live, 0)
    first = tl.min(tl.where(live == best, order, LAST), 0)
    return best, first, tl.sum(tl.where((live == best) & (order == first), place, 0), 0)


@triton.jit
def large_nms_kernel(
    start_ptr, end_ptr, live_ptr, order_ptr, bounds_ptr, index_ptr, score_ptr, made_ptr,
    candidates, capacity, iou_threshold, sigma, min_score,
    METHOD: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    recording = tl.program_id(0)
    group = tl.program_id(1)
    groups = tl.num_programs(1)
    row = recording * groups + group
    low = tl.load(bounds_ptr + recording * (groups + 1) + group).to(tl.int32)
    high = tl.load(bounds_ptr + recording * (groups + 1) + group + 1).to(tl.int32)
    base = recording.to(tl.int64) * candidates
    start_ptr += base
    end_ptr += base
    live_ptr += base
    order_ptr += base
    chunks = tl.cdiv(high - low, CHUNK)
    number = tl.arange(0, CHUNKS)
    bests = tl.full([CHUNKS], float("-inf"), tl.float32)
    firsts = tl.full([CHUNKS], LAST, tl.int32)
    places = tl.zeros([CHUNKS], tl.int32)
    hull_start = tl.full([CHUNKS], float("inf"), tl.float32)
    hull_end = tl.full([CHUNKS], float("-inf"), tl.float32)
    for chunk in range(0, chunks):
        place = low + chunk * CHUNK + tl.arange(0, CHUNK)
        inside = place < high
        live = tl.load(live_ptr + place, mask=inside, other=float("-inf"))
        if METHOD == HARD:
            live = tl.where((live > min_score) | (min_score <= 0.0), live, float("-inf"))
            tl.store(live_ptr + place, live, mask=inside)
        best, first, where = chunk_best(live, tl.load(order_ptr + place, mask=inside, other=LAST), place)
        bests = tl.where(number == chunk, best, bests)
        firsts = tl.where(number == chunk, first, firsts)
        places = tl.where(number == chunk, where, places)
        smallest = tl.min(tl.load(start_ptr + place, mask=inside, other=float("inf")), 0)
        largest = tl.max(tl.load(end_ptr + place, mask=inside, other=float("-inf")), 0)
        hull_start = tl.where(number == chunk, smallest, hull_start)
        hull_end = tl.where(number == chunk, largest, hull_end)
    index_ptr += row.to(tl.int64) * capacity
    score_ptr += row.to(tl.int64) * capacity
    made = 0
    best = tl.max(bests, 0)
    while (made < capacity) & (best != float("-inf")):
        index = tl.min(tl.where(bests == best, firsts, LAST), 0)
        picked = tl.sum(tl.where((bests == best) & (firsts == index), places, 0), 0)
        tl.store(index_ptr + made, index)
        tl.store(score_ptr + made, best)
        picked_start = tl.load(start_ptr + picked)
        picked_end = tl.load(end_ptr + picked)
        # The first pick tests every score against min_score; with a threshold of 0 everything overlaps enough.
        met = (hull_end >= picked_start) & (hull_start <= picked_end)
        met = met | ((made == 0) | (iou_threshold <= 0.0))
        met = met & (number < chunks)
        from_chunk = tl.min(tl.where(met, number, CHUNKS), 0)
        to_chunk = tl.max(tl.where(met, number + 1, 0), 0)
        tl.debug_barrier()  # scores written after the last pick, maybe by other threads
        for chunk in range(from_chunk, to_chunk):
            place = low + chunk * CHUNK + tl.arange(0, CHUNK)
            inside = place < high
            live = tl.load(live_ptr + place, mask=inside, other=float("-inf"))
            start = tl.load(start_ptr + place, mask=inside, other=0.0)
            end = tl.load(end_ptr + place, mask=inside, other=0.0)
            live = decayed(live, start, end, picked_start, picked_end, iou_threshold, sigma, min_score, METHOD)
            live = tl.where(place == picked, float("-inf"), live)
            tl.store(live_ptr + place, live, mask=inside)
            top, first, where = chunk_best(live, tl.load(order_ptr + place, mask=inside, other=LAST), place)
            bests = tl.where(number == chunk, top, bests)
            firsts = tl.where(number == chunk, first, firsts)
            places = tl.where(number == chunk, where, places)
        made += 1
        best = tl.max(bests, 0)
    tl.store(made_ptr + row, made)
    pad_picks(index_ptr, score_ptr, made, capacity, CHUNK)


def suppress(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, classes: int, capacity: int,
    *, method: str, iou_threshold: float, sigma: float, min_score: float,
) -> Picks:  # fmt: skip
    """Picks of every (recording, class), at most ``capacity`` each.

    Args:
        segments: ``[R, N, 2]`` float32; scores: ``[R, N]``, -inf: no candidate.
        labels: ``[R, N]`` int32 in [0, classes), others belong to no row; None: one row per recording.
        counts: ``[R]``, candidates used of each recording; None: all.
        min_score: soft methods remove what decays below it; "hard" takes only scores above it, if positive.
    """
    recordings, number = scores.shape
    index = torch.empty(recordings, classes, capacity, dtype=torch.int32, device=scores.device)
    score = torch.empty(recordings, classes, capacity, dtype=torch.float32, device=scores.device)
    made = torch.empty(recordings, classes, dtype=torch.int32, device=scores.device)
    if number == 0 or index.numel() == 0:
        return Picks(index.fill_(-1), score.fill_(float("-inf")), made.zero_())
    rule = {"METHOD": METHODS[method]}
    grid = (recordings, classes)
    limits = (number, capacity, iou_threshold, sigma, min_score)
    if number <= REGISTERS:
        block = triton.next_power_of_2(number)
        nms_kernel[grid](
            segments.contiguous(), scores.contiguous(), made if labels is None else labels.contiguous(),
            made if counts is None else counts, index, score, made, *limits, **rule,
            MULTICLASS=labels is not None, HAS_COUNTS=counts is not None, BLOCK=block,
            num_warps=8 if block > 1024 else 4 if block > 128 else 1,
        )  # fmt: skip
        return Picks(index, score, made)
    sorted_rows = _by_class_and_start(segments, scores, labels, counts, classes)
    large_nms_kernel[grid](
        *sorted_rows, index, score, made, *limits, **rule, CHUNK=CHUNK,
        CHUNKS=max(triton.next_power_of_2(triton.cdiv(number, CHUNK)), 2), num_warps=8,
    )  # fmt: skip
    return Picks(index, score, made)


def _by_class_and_start(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Starts, ends, scores and original indices ``[R, N]`` sorted, and where each class begins ``[R, C + 1]``."""
    recordings, number = scores.shape
    column = torch.arange(number, device=scores.device)
    group = torch.zeros_like(scores, dtype=torch.int32) if labels is None else labels.to(torch.int32)
    absent = (scores == -torch.inf) | (group < 0) | (group >= classes)
    if counts is not None:
        absent = absent | (column >= counts[:, None])
    group = torch.where(absent, classes, group)
    order = segments[..., 0].argsort(dim=1, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    edges = torch.arange(classes + 1, dtype=torch.int32, device=scores.device).expand(recordings, -1).contiguous()
    bounds = torch.searchsorted(group.gather(1, order), edges)
    start, end = (segments[..., side].gather(1, order) for side in (0, 1))
    return start, end, scores.gather(1, order), order.to(torch.int32), bounds

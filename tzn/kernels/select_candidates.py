"""The best (point, class) entries of every pyramid level, exactly, without sorting all of them.

One program takes one level of one recording and reads its P_l * C scores in chunks: once to count those above
``min_score``; if there are more than ``topk``, four times to find the topk-th highest by radix selection on the bits of the
score (256-bin histograms, integers, so the result does not depend on order); and once to write what passes, in
the order of the input. A stable sort of the topk survivors follows. Two passes in the usual case: 4 bytes per entry
each, out of L2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import on_its_device

CHUNK = 4096


class CandidateTable(NamedTuple):
    """Candidates of R recordings and L levels by falling score; past ``count``: entry -1, score -inf."""

    entry: Tensor  # [R, L, K] int64, point * C + class
    score: Tensor  # [R, L, K] float32
    count: Tensor  # type: ignore[assignment]  # [R, L] int32


@triton.jit
def ordered_bits(score):
    """Integers in [0, 2^32) that compare as the scores do; both zeros are one."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def load_entries(scores, order_ptr, low, entry, entries, classes, min_score):
    """Flat index, score and whether it counts, of a level's entries."""
    inside = entry < entries
    point = tl.load(order_ptr + low + entry // classes, mask=inside, other=0)
    flat = point * classes + entry % classes
    score = tl.load(scores + flat, mask=inside, other=0.0)
    return flat, score, inside & (score > min_score)


@triton.jit
def select_kernel(
    scores_ptr, order_ptr, bounds_ptr, entry_ptr, score_ptr, count_ptr, points, classes, topk, min_score,
    CHUNK: tl.constexpr,
):  # fmt: skip
    recording = tl.program_id(0)
    level = tl.program_id(1)
    scores = scores_ptr + recording.to(tl.int64) * points * classes
    low = tl.load(bounds_ptr + level)
    entries = ((tl.load(bounds_ptr + level + 1) - low) * classes).to(tl.int32)
    lane = tl.arange(0, CHUNK)
    above = 0
    for start in range(0, entries, CHUNK):
        _, _, counts = load_entries(scores, order_ptr, low, start + lane, entries, classes, min_score)
        above += tl.sum(counts.to(tl.int32), 0)
    # Entries above the threshold are taken, and the first `equal` of those at it.
    threshold = tl.zeros([], tl.int64)
    equal = tl.minimum(above, topk)
    if above > topk:
        bins = tl.arange(0, 256)
        for digit in range(0, 4):
            shift = 24 - 8 * digit
            histogram = tl.zeros([256], tl.int32)
            for start in range(0, entries, CHUNK):
                _, score, counts = load_entries(scores, order_ptr, low, start + lane, entries, classes, min_score)
                key = ordered_bits(score)
                same = counts & ((key >> (shift + 8)) == (threshold >> (shift + 8)))
                byte = tl.where(same, (key >> shift) & 255, 0).to(tl.int32)
                others = tl.sum((same == 0).to(tl.int32), 0)
                histogram += tl.histogram(byte, 256) - tl.where(bins == 0, others, 0)
            greater = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)
            chosen = tl.min(tl.where(greater < equal, bins, 255), 0)
            equal -= tl.sum(tl.where(bins == chosen, greater, 0), 0)
            threshold += chosen.to(tl.int64) << shift
    out = (recording * tl.num_programs(1) + level).to(tl.int64) * topk
    written = 0
    ties = 0
    for start in range(0, entries, CHUNK):
        flat, score, counts = load_entries(scores, order_ptr, low, start + lane, entries, classes, min_score)
        key = ordered_bits(score)
        tie = (counts & (key == threshold)).to(tl.int32)
        rank = ties + tl.cumsum(tie, 0) - tie
        take = counts & ((key > threshold) | (rank < equal) & (tie != 0))
        taken = take.to(tl.int32)
        place = written + tl.cumsum(taken, 0) - taken
        tl.store(entry_ptr + out + place, flat, mask=take)
        tl.store(score_ptr + out + place, score, mask=take)
        written += tl.sum(taken, 0)
        ties += tl.sum(tie, 0)
    tl.store(count_ptr + recording * tl.num_programs(1) + level, written)
    for start in range(0, topk, CHUNK):
        place = start + lane
        past = (place >= written) & (place < topk)
        tl.store(entry_ptr + out + place, -1, mask=past)
        tl.store(score_ptr + out + place, float("-inf"), mask=past)


def level_order(level: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Points ``[P]`` sorted by level, and where each level begins ``[L + 1]``; depends on the pyramid alone."""
    order = level.argsort(stable=True)
    edges = torch.arange(levels + 1, device=level.device, dtype=level.dtype)
    return order, torch.searchsorted(level[order], edges)


@on_its_device
def select_candidates(scores: Tensor, order: Tensor, bounds: Tensor, *, min_score: float, topk: int) -> CandidateTable:
    """The best ``topk`` entries above ``min_score`` of each level of ``scores`` ``[R, P, C]`` float32.

    ``order`` and ``bounds`` from :func:`level_order`.
    """
    recordings, points, classes = scores.shape
    levels = bounds.shape[0] - 1
    entry = torch.empty(recordings, levels, topk, dtype=torch.int64, device=scores.device)
    score = torch.empty(recordings, levels, topk, dtype=torch.float32, device=scores.device)
    count = torch.empty(recordings, levels, dtype=torch.int32, device=scores.device)
    if scores.numel() == 0 or entry.numel() == 0:
        return CandidateTable(entry.fill_(-1), score.fill_(float("-inf")), count.zero_())
    select_kernel[(recordings, levels)](
        scores.contiguous(), order, bounds, entry, score, count, points, classes, topk, min_score,
        CHUNK=CHUNK, num_warps=8,
    )  # fmt: skip
    score, best = score.sort(dim=2, descending=True, stable=True)
    return CandidateTable(entry.gather(2, best), score, count)

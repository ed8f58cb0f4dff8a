"""The best picks of all classes of a recording, in one launch: places by counting, no sort.

Suppression itself is nvcc's (``csrc/cuda``): tables of picks ``[R, C, K]``, score -inf past each class's last. Scores are all
made different by their place in the table, so the place of a pick among all is how many are higher: each program counts that
for PICKED of them, over the table in L1 and L2 (C * K / COMPARED steps), and writes what stands at that place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import after_previous, on_its_device, programmatic
from tzn.kernels.select_candidates import ENTRY_BITS, ordered_bits

PICKED, COMPARED = 128, 16


@triton.jit
def packed_picks(score_ptr, place, places):
    """Higher scores first, then earlier places; -1: no pick."""
    score = tl.load(score_ptr + place, mask=place < places, other=float("-inf"))
    packed = (ordered_bits(score) << ENTRY_BITS) + (2147483647 - place)
    return tl.where(score == float("-inf"), -1, packed), score


@triton.jit
def best_picks_kernel(
    index_ptr, score_ptr, segments_ptr, out_index_ptr, out_score_ptr, out_segments_ptr, count_ptr, number, places, capacity,
    PICKED: tl.constexpr, COMPARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_previous(PDL)
    recording = tl.program_id(1).to(tl.int64)
    scores = score_ptr + recording * places
    place = tl.program_id(0) * PICKED + tl.arange(0, PICKED)
    mine, score = packed_picks(scores, place, places)
    rank = tl.zeros([PICKED], tl.int32)
    total = 0
    for begin in range(0, places, COMPARED):
        theirs, _ = packed_picks(scores, begin + tl.arange(0, COMPARED), places)
        rank += tl.sum((theirs[None, :] > mine[:, None]).to(tl.int32), 1)
        total += tl.sum((theirs >= 0).to(tl.int32), 0)
    out = recording * capacity
    live = (mine >= 0) & (rank < capacity)
    index = tl.load(index_ptr + recording * places + place, mask=live, other=0).to(tl.int64)
    tl.store(out_index_ptr + out + rank, index, mask=live)
    tl.store(out_score_ptr + out + rank, score, mask=live)
    past = (place >= total) & (place < capacity)
    tl.store(out_index_ptr + out + place, tl.zeros([PICKED], tl.int64), mask=past)
    tl.store(out_score_ptr + out + place, float("-inf"), mask=past)
    for side in tl.static_range(2):
        end = tl.load(segments_ptr + (recording * number + index) * 2 + side, mask=live, other=0.0)
        tl.store(out_segments_ptr + (out + rank) * 2 + side, end, mask=live)
        tl.store(out_segments_ptr + (out + place) * 2 + side, tl.zeros_like(end), mask=past)
    if tl.program_id(0) == 0:
        tl.store(count_ptr + recording, tl.minimum(total, capacity).to(tl.int64))


@on_its_device
def best_picks(index: Tensor, score: Tensor, segments: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best ``capacity`` picks of tables ``[R, C, K]`` float32 by falling score, ties by class, then order of picking.

    Returns:
        index ``[R, M]`` int64, score ``[R, M]``, segments ``[R, M, 2]``, all with M = ``capacity``, and how many there are
        ``[R]`` int64; past them: index 0, score -inf, segment 0.
    """
    recordings, places = score.shape[0], score.shape[1] * score.shape[2]
    device = score.device
    out = torch.empty(recordings, capacity, dtype=torch.int64, device=device)
    best = torch.empty(recordings, capacity, dtype=torch.float32, device=device)
    kept = torch.empty(recordings, capacity, 2, dtype=segments.dtype, device=device)
    count = torch.empty(recordings, dtype=torch.int64, device=device)
    if recordings:
        best_picks_kernel[(triton.cdiv(max(places, capacity), PICKED), recordings)](
            index.contiguous(), score.contiguous(), segments.contiguous(), out, best, kept, count, segments.shape[1], places,
            capacity, PICKED=PICKED, COMPARED=COMPARED, **programmatic(device),
        )  # fmt: skip
    return out, best, kept, count

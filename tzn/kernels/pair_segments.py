"""Scores of (start crossing, end crossing) pairs: the class means inside, from prefix sums over time.

One program takes one start crossing of a recording and BLOCK_C classes, walks over the next ``max_ends`` ends, and writes
(prefix[high] - prefix[low]) / steps, or -inf where there is no such end. Reads two rows of the float64 prefix table per
pair, out of L2; ranking the pairs is a top-k over a table of fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tzn.kernels._launch import on_its_device


@triton.jit
def pair_kernel(
    starts_ptr, starts_count_ptr, ends_ptr, ends_count_ptr, prefix_ptr, score_ptr, first_ptr,
    start_capacity, end_capacity, steps, classes, max_ends, rounds, BLOCK_C: tl.constexpr,
):  # fmt: skip
    recording = tl.program_id(0) // start_capacity
    row = tl.program_id(0) % start_capacity
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < classes
    number = tl.load(starts_count_ptr + recording).to(tl.int32)
    count = tl.load(ends_count_ptr + recording).to(tl.int32)
    ends = ends_ptr + recording.to(tl.int64) * end_capacity
    begin = tl.load(starts_ptr + recording.to(tl.int64) * start_capacity + row)
    low = 0
    high = count
    for _ in range(0, rounds):
        middle = (low + high) // 2
        searching = low < high
        above = tl.load(ends + middle, mask=searching, other=0.0) > begin
        high = tl.where(searching & above, middle, high)
        low = tl.where(searching & (above == 0), middle + 1, low)
    pair = recording.to(tl.int64) * start_capacity + row
    if tl.program_id(1) == 0:
        tl.store(first_ptr + pair, low)
    prefix = prefix_ptr + recording.to(tl.int64) * (steps + 1) * classes + column
    earliest = tl.minimum(tl.maximum(tl.ceil(tl.minimum(begin, steps)).to(tl.int32), 0), steps)
    for partner in range(0, max_ends):
        exists = (row < number) & (low + partner < count)
        end = tl.load(ends + low + partner, mask=exists, other=0.0)
        latest = tl.minimum(tl.maximum(tl.floor(tl.minimum(end, steps)).to(tl.int32) + 1, 0), steps)
        inner = tl.maximum(latest - earliest, 1)
        wanted = column < tl.where(exists, classes, 0)
        upper = tl.load(prefix + latest.to(tl.int64) * classes, mask=wanted, other=0.0)
        lower = tl.load(prefix + tl.minimum(earliest, latest).to(tl.int64) * classes, mask=wanted, other=0.0)
        mean = ((upper - lower) / inner.to(tl.float64)).to(score_ptr.dtype.element_ty)
        score = tl.where(exists, mean, float("-inf"))
        tl.store(score_ptr + (pair * max_ends + partner) * classes + column, score, mask=inside)


@on_its_device
def pair_scores(
    starts: tuple[Tensor, Tensor], ends: tuple[Tensor, Tensor], class_scores: Tensor, max_ends: int
) -> tuple[Tensor, Tensor]:
    """Score ``[R, S, max_ends, C]`` of every pair (-inf: none), and ``[R, S]``, the first end after each start.

    Args:
        starts, ends: (position ascending ``[R, S]`` / ``[R, E]``, count ``[R]``).
        class_scores: ``[R, T, C]``.
    """
    recordings, steps, classes = class_scores.shape
    start_capacity, end_capacity = starts[0].shape[1], ends[0].shape[1]
    score = class_scores.new_full((recordings, start_capacity, max_ends, classes), float("-inf"))
    first = torch.zeros(recordings, start_capacity, dtype=torch.int32, device=class_scores.device)
    if score.numel() == 0 or end_capacity == 0:
        return score, first
    prefix = torch.zeros(recordings, steps + 1, classes, dtype=torch.float64, device=class_scores.device)
    torch.cumsum(class_scores.double(), dim=1, out=prefix[:, 1:])
    block = min(triton.next_power_of_2(classes), 128)
    # Starts lie along the first axis of the grid: the others end at 65,535.
    pair_kernel[(recordings * start_capacity, triton.cdiv(classes, block))](
        *(x.contiguous() for x in (*starts, *ends)), prefix, score, first, start_capacity, end_capacity, steps, classes,
        max_ends, end_capacity.bit_length() + 1, BLOCK_C=block, num_warps=1,
    )  # fmt: skip
    return score, first


def pair_segments(
    starts: Sequence[Tensor], ends: Sequence[Tensor], class_scores: Tensor,
    *, max_ends: int, topk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The best ``topk`` (pair, class) entries of each recording, by falling score, padded.

    ``starts``, ``ends``: (position, std, count) of ``[R, K]`` crossings. Returns segments and std ``[R, N, 2]``, labels and
    scores ``[R, N]`` (-inf: none), count ``[R]``; N = min(topk, S * max_ends * C).
    """
    recordings, _, classes = class_scores.shape
    score, first = pair_scores((starts[0], starts[2]), (ends[0], ends[2]), class_scores, max_ends)
    best, flat = score.flatten(1).topk(min(topk, score[0].numel() if recordings else 0), dim=1)
    pair, label = flat // max(classes, 1), flat % max(classes, 1)
    row = pair // max_ends
    if ends[0].shape[1] == 0 or starts[0].shape[1] == 0:
        empty = best.new_empty(recordings, best.shape[1], 2)
        return empty, empty, label, best, torch.zeros_like(starts[2])
    column = (first.gather(1, row) + pair % max_ends).clamp(max=ends[0].shape[1] - 1)
    segments, std = (torch.stack([starts[side].gather(1, row), ends[side].gather(1, column)], dim=2) for side in (0, 1))
    return segments, std, label, best, (best > -torch.inf).sum(1)

"""Voting: each kept segment becomes the mean of the candidates that overlap it enough, weighted by score times IoU.

One program takes BLOCK_K kept segments of a recording and streams its candidates in tiles of BLOCK_N; weights never leave
registers. A kept segment of no length has no IoU with itself (0 / 0) and becomes NaN, as in the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_K, BLOCK_N = 16, 128


@triton.jit
def vote_kernel(
    kept_ptr, kept_labels_ptr, segments_ptr, scores_ptr, labels_ptr, counts_ptr, voted_ptr, kept, candidates, threshold,
    PER_CLASS: tl.constexpr, HAS_COUNTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    recording = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    exists = row < kept
    out = recording.to(tl.int64) * kept + row
    start = tl.load(kept_ptr + 2 * out, mask=exists, other=0.0)
    end = tl.load(kept_ptr + 2 * out + 1, mask=exists, other=0.0)
    count = candidates
    if HAS_COUNTS:
        count = tl.load(counts_ptr + recording).to(tl.int32)
    base = recording.to(tl.int64) * candidates
    total = tl.zeros([BLOCK_K], tl.float32)
    mean_start = tl.zeros([BLOCK_K], tl.float32)
    mean_end = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, candidates, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        inside = place < count
        other_start = tl.load(segments_ptr + 2 * (base + place), mask=inside, other=0.0)
        other_end = tl.load(segments_ptr + 2 * (base + place) + 1, mask=inside, other=0.0)
        score = tl.load(scores_ptr + base + place, mask=inside, other=0.0)
        overlap = tl.minimum(end[:, None], other_end[None, :]) - tl.maximum(start[:, None], other_start[None, :])
        overlap = tl.maximum(overlap, 0.0)
        union = (end - start)[:, None] + (other_end - other_start)[None, :] - overlap
        iou = tl.div_rn(overlap, union)
        weight = tl.where(iou >= threshold, score[None, :], 0.0) * iou
        if PER_CLASS:
            label = tl.load(labels_ptr + base + place, mask=inside, other=-1)
            kept_label = tl.load(kept_labels_ptr + out, mask=exists, other=-2)
            weight = weight * (kept_label[:, None] == label[None, :]).to(tl.float32)
        weight = tl.where(inside[None, :], weight, 0.0)
        total += tl.sum(weight, 1)
        mean_start += tl.sum(weight * other_start[None, :], 1)
        mean_end += tl.sum(weight * other_end[None, :], 1)
    tl.store(voted_ptr + 2 * out, mean_start / total, mask=exists)
    tl.store(voted_ptr + 2 * out + 1, mean_end / total, mask=exists)


def vote(
    kept: Tensor, kept_labels: Tensor | None, segments: Tensor, scores: Tensor, labels: Tensor | None,
    counts: Tensor | None, threshold: float,
) -> Tensor:  # fmt: skip
    """``kept`` ``[R, K, 2]`` after the vote of ``segments`` ``[R, N, 2]``; with labels only their own class votes."""
    recordings, number, _ = kept.shape
    voted = torch.empty_like(kept, memory_format=torch.contiguous_format)
    if voted.numel():
        nothing = scores if kept_labels is None or labels is None else None
        vote_kernel[(recordings, triton.cdiv(number, BLOCK_K))](
            kept.contiguous(), nothing if nothing is not None else kept_labels, segments.contiguous(),
            scores.contiguous(), nothing if nothing is not None else labels, scores if counts is None else counts, voted,
            number, scores.shape[1], threshold, PER_CLASS=nothing is None, HAS_COUNTS=counts is not None,
            BLOCK_K=BLOCK_K, BLOCK_N=BLOCK_N,
        )  # fmt: skip
    return voted

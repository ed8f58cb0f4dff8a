"""Decoding and suppression of a batch with fixed capacities, on the device alone: nothing waits for a count.

Everything here is a fixed sequence of launches for given shapes, so it can be captured in a CUDA graph. Unused places hold
score -inf. Needs the Triton back end (float32).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tzn.ops.backend import choose_backend
from tzn.ops.checks import fail
from tzn.ops.picks import best_picks
from tzn.reference import Crossings, Segments


class PaddedCandidates(NamedTuple):
    """Candidates of B recordings, level by level by falling score; unused places: score -inf, label -1, point 0."""

    point: Tensor  # [B, N] int64
    label: Tensor  # [B, N] int32
    score: Tensor  # [B, N]


class PaddedPicks(NamedTuple):
    """The best K picks of B recordings by falling score; past ``count``: score -inf, index 0, label -1."""

    index: Tensor  # type: ignore[assignment]  # [B, K] int64 into the candidates
    segments: Tensor  # [B, K, 2], after voting
    score: Tensor  # [B, K]
    label: Tensor  # [B, K] int32
    count: Tensor  # type: ignore[assignment]  # [B] int64


def check_backend(device: torch.device) -> None:
    """Raises ValueError where tensors on ``device`` do not run on the Triton kernels."""
    chosen = choose_backend(device)
    if chosen != "triton":
        fail("back end", f"{chosen!r} for tensors on {device}", "'triton'; see tzn.ops.backends()")


def select_candidates(scores: Tensor, level: Tensor, levels: int, *, min_score: float, topk: int) -> PaddedCandidates:
    """As :func:`tzn.ops.select_candidates` for ``scores`` ``[B, P, C]`` float32; N = ``levels`` * ``topk``.

    ``level`` ``[P]`` int64 in [0, ``levels``).
    """
    from tzn.kernels import select_candidates as kernels

    check_backend(scores.device)
    classes = scores.shape[2]
    table = kernels.select_candidates(scores, *kernels.level_order(level, levels), min_score=min_score, topk=topk)
    entry = table.entry.flatten(1)
    label = torch.where(entry >= 0, entry % classes, -1).to(torch.int32)
    return PaddedCandidates(entry.clamp(min=0) // classes, label, table.score.flatten(1))


def boundary_crossings(
    distance: Tensor, scale: Tensor, *, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> Crossings:
    """As :func:`tzn.ops.boundary_crossings` with capacity T // 2: two crossings lie two steps apart or more."""
    from tzn.kernels import boundary_crossings as kernels

    check_backend(distance.device)
    return Crossings(
        *kernels.boundary_crossings(
            distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
        )
    )


def decode_segments(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: Crossings | None, ends: Crossings | None,
    *, snap_sigmas: float,
) -> Segments:  # fmt: skip
    """As :func:`tzn.ops.decode_segments` for a batch: ``position`` ``[B, N]``, offsets ``[B, N, 2]``."""
    from tzn.kernels import decode_segments as kernels

    first, last = (None if c is None else (c.position, c.std, c.count) for c in (starts, ends))
    return Segments(*kernels.decode_segments(position, offset, offset_std, first, last, snap_sigmas))


def batched_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, classes: int, limit: int, *, method: str, multiclass: bool,
    iou_threshold: float, sigma: float, min_score: float, voting_thresh: float,
) -> PaddedPicks:  # fmt: skip
    """As :func:`tzn.ops.batched_nms` for ``segments`` ``[B, N, 2]``, ``scores`` ``[B, N]`` (-inf: none), ``labels`` int32.

    ``method``: "gaussian", "linear", "hard", or "none" (the best ``limit`` candidates as they are).
    """
    from tzn.kernels import nms as kernels
    from tzn.kernels.segment_voting import vote

    check_backend(segments.device)
    if method == "none":
        score, index = scores.sort(dim=1, descending=True, stable=True)
        score, index = score[:, :limit], index[:, :limit]
    else:
        picks = kernels.suppress(
            segments, scores, labels if multiclass else None, None, classes if multiclass else 1, limit, method=method,
            iou_threshold=iou_threshold, sigma=sigma, min_score=min_score,
        )  # fmt: skip
        index, score, _, _ = best_picks(picks, limit)
    found = score != -torch.inf
    index = torch.where(found, index, 0).long()
    kept = segments.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))
    if voting_thresh > 0 and not multiclass and method != "none":
        voters = torch.where(scores == -torch.inf, 0.0, scores)
        kept = vote(kept, None, segments, voters, None, None, voting_thresh)
    label = torch.where(found, labels.gather(1, index), -1)
    return PaddedPicks(index, torch.where(found.unsqueeze(-1), kept, 0.0), score, label, found.sum(1))

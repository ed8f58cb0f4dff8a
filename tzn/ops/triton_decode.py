"""Decoding and suppression of one recording on the Triton kernels, with the sizes that the public ops promise.

The kernels write tables of fixed capacity and counts on the device; cutting a table to its count asks the device for that
number. :mod:`tzn.ops.padded` keeps the tables, for a whole batch and without asking.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops.backend import choose_backend
from tzn.ops.picks import best_picks
from tzn.reference import ActiveTokens, Candidates, Crossings, Segments


def serves(*tensors: Tensor, double: bool = False) -> bool:
    """Whether the kernels compute in these tensors' dtype: float32, some (``double``) also float64; else the reference does."""
    dtypes = (torch.float32, torch.float64) if double else (torch.float32,)
    return choose_backend(tensors[0].device) == "triton" and all(t.dtype in dtypes for t in tensors)


def active_tokens(gate: Tensor, window: int, mask: Tensor | None) -> ActiveTokens:
    from tzn.kernels.compaction import compact

    lists = compact(gate.detach(), mask, gate.shape[0], gate.shape[1], window, gate.device)
    active, halo = lists.counts.tolist()
    return ActiveTokens(lists.active[:active].long(), lists.halo[:halo].long())


def boundary_crossings(
    distance: Tensor, scale: Tensor, *, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> Crossings:
    from tzn.kernels import boundary_crossings as kernels

    table = kernels.boundary_crossings(
        distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
    )
    most = int(table.counts.max()) if table.counts.numel() else 0
    return Crossings(table.position[:, :most], table.std[:, :most], table.slope[:, :most], table.counts)


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    from tzn.kernels import select_candidates as kernels

    classes = scores.shape[1]
    levels = int(level.max()) + 1 if level.numel() else 0
    topk = min(topk, max(scores.numel(), 1))
    table = kernels.select_candidates(
        scores.unsqueeze(0), *kernels.level_order(level, levels), min_score=min_score, topk=topk
    )
    kept = table.entry[0] >= 0
    entry = table.entry[0][kept]
    return Candidates(entry // max(classes, 1), entry % max(classes, 1), table.score[0][kept])


def decode_segments(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: Crossings | None, ends: Crossings | None,
    *, snap_sigmas: float,
) -> Segments:  # fmt: skip
    from tzn.kernels import decode_segments as kernels

    first, last = (None if c is None else (c.position, c.std, c.count) for c in (starts, ends))
    found = kernels.decode_segments(position[None], offset[None], offset_std[None], first, last, snap_sigmas)
    return Segments(found[0][0], found[1][0])


def pair_segments(
    starts: Crossings, ends: Crossings, class_scores: Tensor, *, max_ends: int, topk: int
) -> tuple[Segments, Tensor, Tensor]:
    from tzn.kernels import pair_segments as kernels

    tables = [(c.position, c.std, c.count) for c in (starts, ends)]
    segments, std, labels, scores, count = kernels.pair_segments(
        tables[0], tables[1], class_scores[None], max_ends=max_ends, topk=topk
    )
    number = int(count[0])
    return Segments(segments[0, :number], std[0, :number]), labels[0, :number], scores[0, :number]


def soft_nms(
    segments: Tensor, scores: Tensor, *, iou_threshold: float, sigma: float, min_score: float, method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from tzn.kernels import nms as kernels

    capacity = _capacity(max_seg_num, scores.shape[0])
    picks = kernels.suppress(
        segments[None], scores[None], None, None, 1, capacity, method=method, iou_threshold=iou_threshold, sigma=sigma,
        min_score=min_score,
    )  # fmt: skip
    made = int(picks.count[0, 0])
    return picks.index[0, 0, :made].long(), picks.score[0, 0, :made]


def nms(segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float, max_seg_num: int) -> Tensor:
    return soft_nms(
        segments, scores, iou_threshold=iou_threshold, sigma=1.0, min_score=min_score, method="hard",
        max_seg_num=max_seg_num,
    )[0]  # fmt: skip


def batched_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float, max_seg_num: int,
    *, method: str, multiclass: bool, sigma: float, voting_thresh: float, per_class_voting: bool,
    return_index: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    from tzn.kernels import nms as kernels
    from tzn.kernels.segment_voting import vote

    if segments.shape[0] == 0:
        nothing = labels.reshape(0)
        return segments.reshape(0, 2), scores.reshape(0), nothing, *([nothing.long()] if return_index else [])
    classes, group = labels.unique(return_inverse=True) if multiclass else (labels[:1], None)
    rows = None if group is None else group.to(torch.int32)[None]
    capacity = _capacity(max_seg_num, scores.shape[0])
    picks = kernels.suppress(
        segments[None], scores[None], rows, None, classes.shape[0], capacity, method=method, sigma=sigma,
        iou_threshold=iou_threshold, min_score=min_score,
    )  # fmt: skip
    index, score, _, count = best_picks(picks, picks.score[0].numel())
    number = int(count[0])
    index, score = index[0, :number].long(), score[0, :number]
    kept, kept_labels = segments[index], labels[index]
    if voting_thresh > 0 and (per_class_voting or not multiclass):
        votes = (kept_labels[None], labels[None]) if per_class_voting else (None, None)
        kept = vote(kept[None], votes[0], segments[None], scores[None], votes[1], None, voting_thresh)[0]
    cut = min(max_seg_num, number)  # a negative cap drops from the end, as in the definition
    return kept[:cut], score[:cut], kept_labels[:cut], *([index[:cut]] if return_index else [])


def _capacity(max_seg_num: int, candidates: int) -> int:
    return min(max_seg_num, candidates) if max_seg_num > 0 else candidates

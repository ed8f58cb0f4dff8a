"""Definition of the step from network outputs to candidate segments: selection, decoding, refinement, pairing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tzn.reference.boundary_crossings import Crossings


class Candidates(NamedTuple):
    """Points and classes that may be an action, level by level by falling score."""

    point: Tensor  # [N] int64, index into the points
    label: Tensor  # [N] int64
    score: Tensor  # [N]


class Segments(NamedTuple):
    """Segments in grid steps and the standard errors of their ends."""

    segments: Tensor  # [N, 2]
    std: Tensor  # [N, 2]


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    """Entries of ``scores`` ``[P, C]`` above ``min_score``, at most the best ``topk`` of each level (``level`` ``[P]``)."""
    points, labels = (scores > min_score).nonzero(as_tuple=True)
    values = scores[points, labels]
    order = values.argsort(descending=True, stable=True)
    order = order[level[points[order]].argsort(stable=True)]
    points, labels, values = points[order], labels[order], values[order]
    levels = level[points]
    first = torch.searchsorted(levels, levels)
    keep = torch.arange(levels.numel(), device=levels.device) - first < topk
    return Candidates(points[keep], labels[keep], values[keep])


def decode_segments(
    position: Tensor,
    offset: Tensor,
    offset_std: Tensor,
    starts: Crossings | None = None,
    ends: Crossings | None = None,
    *,
    snap_sigmas: float = 3.0,
) -> Segments:
    """Segments (t - left, t + right) with each end fused with the nearest crossing by inverse variance.

    Args:
        position: ``[N]`` grid time of the points.
        offset: ``[N, 2]`` left and right distances in grid steps.
        offset_std: ``[N, 2]`` their standard deviations in grid steps.
        starts, ends: crossings of one recording (``[1, K]``); None leaves the anchor-free segments as they are.
        snap_sigmas: a crossing farther off than this many combined standard errors is not the same boundary; nor is
            one used whose standard error exceeds the end's own.
    """
    ends_of = torch.stack([position - offset[:, 0], position + offset[:, 1]], dim=1)
    std = offset_std
    if starts is not None and ends is not None:
        fused = [
            _fuse(ends_of[:, side], std[:, side], crossings, snap_sigmas)
            for side, crossings in enumerate((starts, ends))
        ]
        refined = torch.stack([f[0] for f in fused], dim=1)
        # Ends that cross over would lose the segment: keep the anchor-free ends there.
        ordered = (refined[:, 1] > refined[:, 0])[:, None]
        ends_of = torch.where(ordered, refined, ends_of)
        std = torch.where(ordered, torch.stack([f[1] for f in fused], dim=1), std)
    return Segments(ends_of, std)


def _fuse(place: Tensor, std: Tensor, crossings: Crossings, snap_sigmas: float) -> tuple[Tensor, Tensor]:
    count = int(crossings.count[0])
    if count == 0 or place.numel() == 0:
        return place, std
    positions, errors = crossings.position[0, :count], crossings.std[0, :count]
    later = torch.searchsorted(positions, place.contiguous())
    before, after = (later - 1).clamp(min=0), later.clamp(max=count - 1)
    nearest = torch.where((positions[after] - place).abs() < (positions[before] - place).abs(), after, before)
    found, error = positions[nearest], errors[nearest]
    total = std**2 + error**2
    # A crossing less certain than the end itself has nothing to add; this also bounds how far an end can reach.
    snap = (error <= std) & ((found - place).abs() <= snap_sigmas * total.sqrt())
    share = std**2 / total  # weight of the crossing: the other one's variance over the sum
    return torch.where(snap, place + share * (found - place), place), torch.where(snap, std * error / total.sqrt(), std)


def pair_segments(
    starts: Crossings, ends: Crossings, class_scores: Tensor, *, max_ends: int = 16, topk: int = 2000
) -> tuple[Segments, Tensor, Tensor]:
    """Join every start crossing with the next ``max_ends`` end crossings of one recording.

    The score of a pair for a class is the mean of ``class_scores`` ``[T, C]`` over the steps inside, by prefix sums.

    Returns:
        segments (grid steps), labels ``[N]``, scores ``[N]``: the best ``topk`` (pair, class) entries.
    """
    num_starts, num_ends = int(starts.count[0]), int(ends.count[0])
    begin, end = starts.position[0, :num_starts], ends.position[0, :num_ends]
    nothing = class_scores.new_zeros(0, 2)
    empty = (Segments(nothing, nothing), begin.new_zeros(0, dtype=torch.long), class_scores.new_zeros(0))
    if num_starts == 0 or num_ends == 0:
        return empty
    first = torch.searchsorted(end, begin.contiguous(), right=True)
    partner = first[:, None] + torch.arange(min(max_ends, num_ends), device=begin.device)
    row, column = (partner < num_ends).nonzero(as_tuple=True)
    if row.numel() == 0:
        return empty
    end_index = partner[row, column]
    segments = torch.stack([begin[row], end[end_index]], dim=1)
    std = torch.stack([starts.std[0, row], ends.std[0, end_index]], dim=1)
    prefix = torch.cat([class_scores.new_zeros(1, class_scores.shape[1]), class_scores.double().cumsum(0)])
    low = segments[:, 0].ceil().long().clamp(0, class_scores.shape[0])
    high = (segments[:, 1].floor().long() + 1).clamp(0, class_scores.shape[0])
    inside = (high - low).clamp(min=1)[:, None]
    mean = ((prefix[high] - prefix[torch.minimum(low, high)]) / inside).to(class_scores.dtype)
    score, flat = mean.flatten().topk(min(topk, mean.numel()))
    pair = flat // class_scores.shape[1]
    return Segments(segments[pair], std[pair]), flat % class_scores.shape[1], score

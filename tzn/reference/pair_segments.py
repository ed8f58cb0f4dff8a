"""Definition of the step from crossings to segments."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.reference.boundary_crossings import Crossings
from tzn.reference.decode_segments import Segments


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

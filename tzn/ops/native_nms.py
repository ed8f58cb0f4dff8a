"""Suppression on the compiled kernels (``csrc/cpu/nms.cpp``): the picks of ``tzn.reference``, without its passes over all."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.reference.nms import HARD

# Of csrc/suppression_rule.h. Hard suppression removes what overlaps, whatever its score.
METHODS = {"gaussian": 0, "linear": 1, "hard": 3, "diou": 4}


def serves(segments: Tensor, scores: Tensor) -> bool:
    """Whether the kernels compute what the definition does: finite float32 or float64, scores that only fall."""
    if segments.dtype not in (torch.float32, torch.float64) or scores.dtype != segments.dtype:
        return False
    return bool(torch.ops.tzn_native.plain_candidates(segments, scores))


def soft_nms(
    segments: Tensor, scores: Tensor, *, iou_threshold: float, sigma: float, min_score: float, method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    index, score = torch.ops.tzn_native.suppress_segments(
        segments, scores, None, METHODS[method], iou_threshold, sigma, min_score, 0.0, max_seg_num
    )
    return index, score


def nms(
    segments: Tensor, scores: Tensor, iou_threshold: float, *, min_score: float, max_seg_num: int, overlap: str
) -> Tensor:
    method = METHODS["diou" if overlap == "diou" else "hard"]
    index, _ = torch.ops.tzn_native.suppress_segments(
        segments, scores, None, method, iou_threshold, 1.0, 0.0, min_score, max_seg_num
    )
    return index  # type: ignore[no-any-return]


def batched_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float, max_seg_num: int, *,
    method: str, multiclass: bool, sigma: float, voting_thresh: float, per_class_voting: bool,
    return_index: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    counts = torch.tensor([scores.shape[0]])
    kept, score, label, _, *index = batched_nms_many(
        segments, scores, labels, counts, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
        sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
        return_index=return_index,
    )  # fmt: skip
    return kept, score, label, *index


def batched_nms_many(
    segments: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, iou_threshold: float, min_score: float,
    max_seg_num: int, *, method: str, multiclass: bool, sigma: float, voting_thresh: float, per_class_voting: bool,
    return_index: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Recordings side by side; ``counts`` ``[R]`` candidates of each, which lie one after the other."""
    hard = method in HARD
    index, score, made = torch.ops.tzn_native.suppress_recordings(
        segments, scores, labels.long() if multiclass else None, counts, METHODS[method], iou_threshold, sigma,
        min_score, min_score if hard else 0.0, max_seg_num,
    )  # fmt: skip
    kept, kept_labels = segments[index], labels[index]
    if voting_thresh > 0 and (per_class_voting or not multiclass):
        classes = (kept_labels.long(), labels.long()) if per_class_voting else (None, None)
        kept = _voted(kept, made, segments, scores, counts, voting_thresh, *classes)
    return kept, score, kept_labels, made, *([index] if return_index else [])


def _voted(
    kept: Tensor, made: Tensor, segments: Tensor, scores: Tensor, counts: Tensor, threshold: float,
    kept_class: Tensor | None, candidate_class: Tensor | None,
) -> Tensor:  # fmt: skip
    """Each recording's kept segments after the votes of its own candidates."""

    def parts(x: Tensor | None, sizes: list[int]) -> tuple[Tensor | None, ...]:
        return (None,) * len(sizes) if x is None else x.split(sizes)

    few, all_ = made.tolist(), counts.tolist()
    votes = zip(
        parts(kept, few), parts(segments, all_), parts(scores, all_), parts(kept_class, few),
        parts(candidate_class, all_), strict=True,
    )  # fmt: skip
    found = [torch.ops.tzn_native.vote_segments(k, s, p, threshold, kc, c) for k, s, p, kc, c in votes]
    return torch.cat(found) if found else kept

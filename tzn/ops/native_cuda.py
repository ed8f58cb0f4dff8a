"""Suppression on the compiled CUDA kernel (``csrc/cuda/nms.cu``), which a build with ``TZN_CUDA=1`` adds.

Triton's kernel comes first; this one serves CUDA tensors where Triton is not installed, or when ``TZN_BACKEND=cpp`` asks.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tzn.ops import native
from tzn.ops.backend import uses_compiled_cuda
from tzn.ops.picks import Picks, best_picks
from tzn.reference.nms import vote_segments

METHODS = {"gaussian": 0, "linear": 1, "hard": 3}  # of csrc/suppression_rule.h; 3 removes what overlaps


@cache
def missing_reason() -> str | None:
    """Loads the CUDA library on the first call; None when its kernel can be used, otherwise why not."""
    library = next(iter(sorted(native.PACKAGE.glob("_native_cuda.*so"))), None)
    if library is None:
        return "compiled CUDA kernels are not built (TZN_CUDA=1 builds them; see csrc/cuda/README.md)"
    if not torch.cuda.is_available():
        return f"{library.name} is built, but no CUDA device is visible to this torch"
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        return f"{library.name} has no code for compute capability {capability[0]}.{capability[1]}, only from 8.0 on"
    if (reason := native.missing_reason()) is not None:  # it declares the op
        return reason
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load with torch {torch.__version__} (CUDA {torch.version.cuda}): {error}"
    return None


def serves(segments: Tensor, scores: Tensor) -> bool:
    """Whether the kernel is there and asked for, and computes in these tensors' dtype."""
    if segments.device.type != "cuda" or segments.dtype != torch.float32 or scores.dtype != torch.float32:
        return False
    return uses_compiled_cuda() and missing_reason() is None


def suppress(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, classes: int, capacity: int,
    *, method: str, iou_threshold: float, sigma: float, min_score: float,
) -> Picks:  # fmt: skip
    """Picks of every (recording, class), at most ``capacity`` each; nothing waits for the device.

    Args:
        segments: ``[R, N, 2]`` float32, finite, no end before its start; scores: ``[R, N]``, -inf: no candidate.
        labels: ``[R, N]`` int32 in [0, classes), others belong to no row; None: one row per recording.
        counts: ``[R]`` int64, candidates used of each recording; None: all.
        min_score: soft methods remove what decays below it; "hard" takes only scores above it, if positive.
    """
    above = min_score if method == "hard" else 0.0
    index, score, count = torch.ops.tzn_native.suppress_groups(
        segments, scores, labels, counts, classes, capacity, METHODS[method], iou_threshold, sigma, min_score, above
    )
    return Picks(index, score, count)


def soft_nms(
    segments: Tensor, scores: Tensor, *, iou_threshold: float, sigma: float, min_score: float, method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    picks = suppress(
        segments[None], scores[None], None, None, 1, _capacity(max_seg_num, scores), method=method, sigma=sigma,
        iou_threshold=iou_threshold, min_score=min_score,
    )  # fmt: skip
    made = int(picks.count[0, 0])  # the public op returns as many rows as there are picks: here it waits
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
    if scores.shape[0] == 0:
        nothing = labels.reshape(0)
        return segments.reshape(0, 2), scores.reshape(0), nothing, *([nothing.long()] if return_index else [])
    classes, group = labels.unique(return_inverse=True) if multiclass else (labels[:1], None)
    picks = suppress(
        segments[None], scores[None], None if group is None else group.int()[None], None, classes.shape[0],
        _capacity(max_seg_num, scores), method=method, sigma=sigma, iou_threshold=iou_threshold, min_score=min_score,
    )  # fmt: skip
    index, score, _, count = best_picks(picks, picks.score[0].numel())
    number = int(count[0])
    index, score = index[0, :number].long(), score[0, :number]
    kept, kept_labels = segments[index], labels[index]
    if voting_thresh > 0 and (per_class_voting or not multiclass):
        voters = labels if per_class_voting else None
        kept = vote_segments(kept, segments, scores, voting_thresh, kept_labels, voters)
    cut = min(max_seg_num, number)  # a negative cap drops from the end, as in the definition
    return kept[:cut], score[:cut], kept_labels[:cut], *([index[:cut]] if return_index else [])


def _capacity(max_seg_num: int, scores: Tensor) -> int:
    return min(max_seg_num, scores.shape[0]) if max_seg_num > 0 else scores.shape[0]

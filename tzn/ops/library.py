"""Ops without gradients as single nodes of compiled and exported graphs (``torch.ops.tzn.*``).

Their results have data-dependent sizes, so tracing cannot look inside; in eager mode the public functions call
``dispatch`` directly. Attention and the block, which have gradients, register theirs in their own files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops import dispatch
from tzn.reference import Crossings


def _new_size() -> torch.SymInt:
    return torch.library.get_ctx().new_dynamic_size()


@torch.library.custom_op("tzn::active_tokens", mutates_args=())
def active_tokens(gate: Tensor, window: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    active, halo = dispatch.active_tokens(gate, window, mask)
    return active.clone(), halo.clone()


@active_tokens.register_fake
def _(gate, window, mask):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(_new_size(), dtype=torch.long, device=gate.device) for _ in range(2))


@torch.library.custom_op("tzn::boundary_crossings", mutates_args=())
def boundary_crossings(
    distance: Tensor, scale: Tensor, estimator: str, vote_window: int, min_slope: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return dispatch.boundary_crossings(
        distance, scale, estimator=estimator, vote_window=vote_window, min_slope=min_slope, mask=mask
    )


@boundary_crossings.register_fake
def _(distance, scale, estimator, vote_window, min_slope, mask):  # type: ignore[no-untyped-def]
    batch, capacity = distance.shape[0], _new_size()
    fields = [distance.new_empty(batch, capacity) for _ in range(3)]
    return (*fields, torch.empty(batch, dtype=torch.long, device=distance.device))


@torch.library.custom_op("tzn::select_candidates", mutates_args=())
def select_candidates(scores: Tensor, level: Tensor, min_score: float, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch.select_candidates(scores, level, min_score=min_score, topk=topk)


@select_candidates.register_fake
def _(scores, level, min_score, topk):  # type: ignore[no-untyped-def]
    size = _new_size()
    index = [torch.empty(size, dtype=torch.long, device=scores.device) for _ in range(2)]
    return (*index, scores.new_empty(size))


@torch.library.custom_op("tzn::decode_segments", mutates_args=())
def decode_segments(
    position: Tensor, offset: Tensor, offset_std: Tensor, starts: list[Tensor], ends: list[Tensor], snap_sigmas: float
) -> tuple[Tensor, Tensor]:
    """``starts``, ``ends``: the four tensors of :class:`Crossings`, or empty lists."""
    segments, std = dispatch.decode_segments(
        position, offset, offset_std, *(Crossings(*c) if c else None for c in (starts, ends)), snap_sigmas=snap_sigmas
    )
    return segments, std.clone()  # without crossings the standard errors are the input itself


@decode_segments.register_fake
def _(position, offset, offset_std, starts, ends, snap_sigmas):  # type: ignore[no-untyped-def]
    shape = (position.shape[0], 2)
    return offset.new_empty(shape), offset_std.new_empty(shape)


@torch.library.custom_op("tzn::pair_segments", mutates_args=())
def pair_segments(
    starts: list[Tensor], ends: list[Tensor], class_scores: Tensor, max_ends: int, topk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (segments, std), labels, scores = dispatch.pair_segments(
        Crossings(*starts), Crossings(*ends), class_scores, max_ends=max_ends, topk=topk
    )
    return segments, std.clone(), labels, scores


@pair_segments.register_fake
def _(starts, ends, class_scores, max_ends, topk):  # type: ignore[no-untyped-def]
    size = _new_size()
    segments = [starts[0].new_empty(size, 2) for _ in range(2)]
    return (*segments, torch.empty(size, dtype=torch.long, device=class_scores.device), class_scores.new_empty(size))


@torch.library.custom_op("tzn::soft_nms", mutates_args=())
def soft_nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    max_seg_num: int,
) -> tuple[Tensor, Tensor]:
    index, score = dispatch.soft_nms(
        segments, scores, iou_threshold=iou_threshold, sigma=sigma, min_score=min_score, method=method,
        max_seg_num=max_seg_num,
    )  # fmt: skip
    return index, score


@soft_nms.register_fake
def _(segments, scores, iou_threshold, sigma, min_score, method, max_seg_num):  # type: ignore[no-untyped-def]
    size = _new_size()
    return torch.empty(size, dtype=torch.long, device=scores.device), scores.new_empty(size)


@torch.library.custom_op("tzn::nms", mutates_args=())
def nms(
    segments: Tensor, scores: Tensor, iou_threshold: float, min_score: float, max_seg_num: int, overlap: str = "iou"
) -> Tensor:
    return dispatch.nms(segments, scores, iou_threshold, min_score=min_score, max_seg_num=max_seg_num, overlap=overlap)


@nms.register_fake
def _(segments, scores, iou_threshold, min_score, max_seg_num, overlap="iou"):  # type: ignore[no-untyped-def]
    return torch.empty(_new_size(), dtype=torch.long, device=scores.device)


@torch.library.custom_op("tzn::batched_nms", mutates_args=())
def batched_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float, max_seg_num: int,
    method: str, multiclass: bool, sigma: float, voting_thresh: float, per_class_voting: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kept = dispatch.batched_nms(
        segments, scores, labels, iou_threshold, min_score, max_seg_num, method=method, multiclass=multiclass,
        sigma=sigma, voting_thresh=voting_thresh, per_class_voting=per_class_voting,
    )  # fmt: skip
    return kept if segments.shape[0] else tuple(x.clone() for x in kept)  # type: ignore[return-value]


@batched_nms.register_fake
def _(segments, scores, labels, *settings):  # type: ignore[no-untyped-def]
    size = _new_size()
    return segments.new_empty(size, 2), scores.new_empty(size), labels.new_empty(size)

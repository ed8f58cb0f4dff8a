"""Non-maximum suppression in time: hard, soft, batched over classes and recordings, with voting.

One op: ``torch.ops.tzn.nms`` suppresses any number of recordings with any rule; the public functions are its arguments by
the names that the field knows. ``torch.ops.tzn.nms_padded`` has a capacity instead of sizes, for CUDA graphs. Kernels are
compiled ones: ``csrc/cpu/nms.cpp`` and ``csrc/cuda/nms.cu``, which share their arithmetic (``csrc/suppression_rule.h``).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.ops._backend import choose_backend, kernels, missing_cuda, missing_native, serves
from tzn.ops._checks import (
    check_choice,
    check_count,
    check_device,
    check_floating,
    check_number,
    check_shape,
    checks_values,
    fail,
)
from tzn.ops._register import define, new_size
from tzn.ops.segment_iou import check_segments
from tzn.reference.nms import METHODS, VOTE_WEIGHTS, Rule, best_picks, suppress_recordings, vote_segments

SOFT_METHODS = ("gaussian", "linear", "zero")
OVERLAPS = {"iou": "hard", "diou": "diou"}  # -> method of suppression


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.1,
    sigma: float = 0.5,
    min_score: float = 0.001,
    method: str = "gaussian",
    max_seg_num: int = 0,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017) of one list of candidates, with ActionFormer's rules.

    Repeatedly takes the highest score and decays the rest by its overlap o (every length + 1e-6): Gaussian
    ``s * exp(-o^2 / sigma)`` or linear ``s * (1 - o)`` where ``o >= iou_threshold``, or zero ``0`` there. A decayed
    score below ``min_score`` is removed; the first pick is never tested.

    Args:
        segments: ``[N, 2]`` floating (start, end), any unit; scores: ``[N]``.
        max_seg_num: stop after so many picks; 0: no cap.

    Returns:
        (indices of the picks ``[M]`` int64, their decayed scores ``[M]``), by falling score.

    Raises:
        ValueError: wrong shape, dtype or device, NaN scores, end < start, sigma <= 0, negative threshold, unknown method.
    """
    _check(segments, scores, iou_threshold, min_score, sigma)
    check_choice("method", method, SOFT_METHODS)
    rule = Rule(method, False, iou_threshold, sigma, min_score, max(max_seg_num, 0))
    return _OP(segments, scores, None, None, *rule)[:2]  # type: ignore[no-any-return]


def nms(
    segments: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    min_score: float = 0.0,
    max_seg_num: int = 0,
    overlap: str = "iou",
) -> Tensor:
    """Hard NMS: by falling score, drop what overlaps a kept segment by ``iou_threshold`` or more.

    Args:
        segments: ``[N, 2]`` floating (start, end); scores: ``[N]``.
        min_score: if positive, only scores above it are considered.
        max_seg_num: keep at most so many; 0: no cap.
        overlap: "iou", or "diou": less (distance of the centres / length of the hull)^2, so that of segments with the same
            IoU those with another centre are kept longer (Zheng et al. 2020).

    Returns:
        Indices ``[M]`` int64 by falling score.

    Raises:
        ValueError: as :func:`soft_nms`; unknown overlap.
    """
    _check(segments, scores, iou_threshold, min_score, 1.0)
    check_choice("overlap", overlap, OVERLAPS)
    rule = Rule(OVERLAPS[overlap], False, iou_threshold, 1.0, min_score, max(max_seg_num, 0))
    return _OP(segments, scores, None, None, *rule)[0]  # type: ignore[no-any-return]


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.75,
    *,
    method: str = "gaussian",
    per_class_voting: bool = False,
    overlap: str = "iou",
    vote_weight: str = "score_iou",
    return_index: bool = False,
) -> tuple[Tensor, ...]:
    """Suppress the candidates of one recording; ActionFormer's ``batched_nms`` (OpenTAD's: :mod:`tzn.compat.opentad`).

    Multi-class: each class on its own, at most ``max_seg_num`` picks each, no voting unless ``per_class_voting``.
    Class-agnostic: all together, then each kept segment becomes the mean of all candidates that overlap it by at least
    ``voting_thresh`` (0: no voting), weighted by ``vote_weight``. At last sorted by falling score and cut.

    Args:
        segments: ``[N, 2]`` floating (start, end), any unit; scores: ``[N]``; labels: ``[N]`` integer.
        iou_threshold: of hard and linear suppression; the Gaussian kind does not use it.
        min_score: soft: decayed scores below are removed; hard: scores up to it are dropped first.
        max_seg_num: number of segments returned at most; as in the original, 0 returns none.
        use_soft_nms: soft (``method`` "gaussian", "linear" or "zero") or hard.
        overlap: of hard suppression, "iou" or "diou" (:func:`nms`).
        vote_weight: "score_iou" (score times IoU, as ActionFormer votes) or "score" (as OpenTAD and TriDet do).
        return_index: return the index of every pick as well.

    Returns:
        (segments ``[M, 2]``, scores ``[M]``, labels ``[M]``), with ``return_index`` also indices ``[M]`` int64.

    Raises:
        ValueError: as :func:`soft_nms`.
    """
    rule = Rule(
        method, multiclass, iou_threshold, sigma, min_score, max(max_seg_num, 0), voting_thresh, vote_weight,
        per_class_voting,
    )  # fmt: skip
    rule = _checked_rule(segments, scores, labels, rule, use_soft_nms, overlap)
    index, score, kept, _ = _OP(segments, scores, labels, None, *rule)
    found = (kept, score, labels[index], *([index] if return_index else []))
    return found if max_seg_num > 0 else tuple(x[:max_seg_num] for x in found)


def batched_nms_many(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    counts: Tensor,
    iou_threshold: float,
    min_score: float,
    max_seg_num: int,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.75,
    *,
    method: str = "gaussian",
    per_class_voting: bool = False,
    overlap: str = "iou",
    vote_weight: str = "score_iou",
    return_index: bool = False,
) -> tuple[Tensor, ...]:
    """:func:`batched_nms` of many recordings in one call, whose candidates lie one after the other.

    On the CPU recordings run side by side on all threads.

    Args:
        segments: ``[N, 2]`` of all recordings; scores, labels: ``[N]``; the others as in :func:`batched_nms`.
        counts: ``[R]`` int64, candidates of each recording; their sum is N.
        max_seg_num: of each recording, >= 1.

    Returns:
        (segments ``[M, 2]``, scores ``[M]``, labels ``[M]``, counts ``[R]`` int64 on the CPU), recording by recording; with
        ``return_index`` also the indices ``[M]`` of the picks among all N.

    Raises:
        ValueError: as :func:`batched_nms`; counts that are negative or do not sum to N.
    """
    rule = Rule(
        method, multiclass, iou_threshold, sigma, min_score, max_seg_num, voting_thresh, vote_weight, per_class_voting
    )
    rule = _checked_rule(segments, scores, labels, rule, use_soft_nms, overlap)
    check_count("max_seg_num", max_seg_num, 1)
    check_shape("counts", counts, "[R]", None)
    if counts.dtype != torch.int64:
        fail("counts", str(counts.dtype), "torch.int64")
    counts = counts.cpu().contiguous()
    if checks_values(counts) and (bool((counts < 0).any()) or int(counts.sum()) != scores.shape[0]):
        given = f"{counts.tolist()[:10]} with a sum of {int(counts.sum())}"
        fail("counts", given, f"none negative, sum {scores.shape[0]}")
    index, score, kept, num_kept = _OP(segments, scores, labels, counts, *rule)
    return (kept, score, labels[index], num_kept, *([index] if return_index else []))


class PaddedPicks(NamedTuple):
    """The best K picks of B recordings by falling score; past ``num_kept``: score -inf, index 0, label -1, segment 0."""

    index: Tensor  # type: ignore[assignment]  # [B, K] int64 into the candidates
    segments: Tensor  # [B, K, 2], after voting
    score: Tensor  # [B, K]
    label: Tensor  # [B, K], dtype of the labels given
    num_kept: Tensor  # [B] int64


def nms_padded(
    segments: Tensor, scores: Tensor, labels: Tensor, classes: int, capacity: int, *, method: str = "gaussian",
    multiclass: bool = True, iou_threshold: float = 0.1, sigma: float = 0.5, min_score: float = 0.001,
    voting_thresh: float = 0.0, vote_weight: str = "score_iou", per_class_voting: bool = False,
) -> PaddedPicks:  # fmt: skip
    """:func:`batched_nms` of B recordings with a capacity instead of a size: nothing waits for the device.

    Args:
        segments: ``[B, N, 2]``; scores: ``[B, N]``, -inf where there is no candidate; labels: ``[B, N]`` integer in
            [0, ``classes``), others belong to no class.
        capacity: K >= 1 picks per recording at most.
        method: "gaussian", "linear", "zero", "hard" (as ``use_soft_nms=False``), or "none": the best K as they are.

    Raises:
        ValueError: wrong shape or dtype, unknown method; on CUDA devices without the compiled library while capturing.
    """
    check_floating("segments", segments)
    check_shape("segments", segments, "[B, N, 2]", None, None, 2)
    for name, tensor in (("scores", scores), ("labels", labels)):
        check_shape(name, tensor, f"[B, N] = {list(segments.shape[:2])}", *segments.shape[:2])
        check_device(name, tensor, segments.device)
    if labels.is_floating_point() or labels.is_complex():
        fail("labels", str(labels.dtype), "an integer tensor")
    for name, count in (("classes", classes), ("capacity", capacity)):
        check_count(name, count, 1)
    check_choice("method", method, (*METHODS, "none"))
    check_choice("vote_weight", vote_weight, VOTE_WEIGHTS)
    numbers = {"iou_threshold": iou_threshold, "sigma": sigma, "min_score": min_score, "voting_thresh": voting_thresh}
    for name, number in numbers.items():
        check_number(name, number)
    index, score, kept, num_kept = _PADDED(
        segments, scores, labels, classes, capacity, method, multiclass, iou_threshold, sigma, min_score, voting_thresh,
        vote_weight, per_class_voting,
    )  # fmt: skip
    there = score != -torch.inf
    label = torch.where(there, labels.gather(1, index), -1) if scores.shape[1] else index - 1  # none: -1 everywhere
    return PaddedPicks(index, kept, score, label, num_kept)


def _checked_rule(
    segments: Tensor, scores: Tensor, labels: Tensor, rule: Rule, use_soft_nms: bool, overlap: str
) -> Rule:
    """``rule`` with the method that all three of ``rule.method``, ``use_soft_nms`` and ``overlap`` ask for."""
    _check(segments, scores, rule.iou_threshold, rule.min_score, rule.sigma)
    check_shape("labels", labels, f"[N] = [{scores.shape[0]}]", scores.shape[0])
    check_device("labels", labels, segments.device)
    if labels.is_floating_point() or labels.is_complex():
        fail("labels", str(labels.dtype), "an integer tensor")
    check_choice("method", rule.method, SOFT_METHODS)
    check_choice("vote_weight", rule.vote_weight, VOTE_WEIGHTS)
    check_choice("overlap", overlap, OVERLAPS)
    if use_soft_nms and overlap != "iou":
        fail("overlap", repr(overlap), "'iou' for soft suppression; use_soft_nms=False for 'diou'")
    return rule if use_soft_nms else rule._replace(method=OVERLAPS[overlap])


def _check(segments: Tensor, scores: Tensor, iou_threshold: float, min_score: float, sigma: float) -> None:
    check_segments("segments", segments)
    check_floating("scores", scores)
    check_shape("scores", scores, f"[N] = [{segments.shape[0]}]", segments.shape[0])
    check_device("scores", scores, segments.device)
    if checks_values(scores) and bool(scores.isnan().any()):
        fail("scores", "NaN", "numbers")
    check_number("sigma", sigma)
    for name, value in (("iou_threshold", iou_threshold), ("min_score", min_score)):
        check_number(name, value)
        if not value >= 0:
            fail(name, value, ">= 0")
    if not sigma >= torch.finfo(segments.dtype).tiny:  # smaller ones round to 0, and 0 / 0 is NaN
        fail("sigma", sigma, f"> 0 in {segments.dtype}")


# ---- the ops ----


def _run(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rule, backend = Rule(*arguments), choose_backend(segments.device)
    if backend != "reference" and segments.is_cuda:
        floats = segments.dtype == scores.dtype == torch.float32
        if counts is None and floats and len(scores) and missing_cuda() is None:
            return _on_cuda(segments, scores, labels, rule)
        # Nothing on the device serves: the CPU's kernels are faster than one operator after the other.
        home = segments.cpu(), scores.cpu(), None if labels is None else labels.cpu()
        *found, num_kept = _run(*home, counts, *arguments)
        return *(x.to(segments.device) for x in found), num_kept  # type: ignore[return-value]
    if backend == "reference" or segments.device.type != "cpu" or missing_native() is not None:
        return _definition(segments, scores, labels, counts, *arguments)
    kernels = torch.ops.tzn_native
    # They compute what the definition does where scores only fall: of finite numbers.
    if not serves(segments, scores) or not kernels.plain_candidates(segments, scores):
        return _definition(segments, scores, labels, counts, *arguments)
    labels = None if labels is None else labels.long()
    index, score, kept, num_kept = kernels.suppress_recordings(
        segments, scores, labels if rule.multiclass else None, counts, *rule.of_kernels, rule.max_seg_num
    )
    if rule.votes:
        classes = (None, None) if labels is None or not rule.per_class_voting else (labels[index], labels)
        weight = VOTE_WEIGHTS.index(rule.vote_weight)
        kept = kernels.vote_segments(kept, num_kept, segments, scores, counts, rule.voting_thresh, *classes, weight)
    return index, score, kept, num_kept


def _on_cuda(
    segments: Tensor, scores: Tensor, labels: Tensor | None, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One recording; waits for the number of picks."""
    of_class = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels.unique(return_inverse=True)[1]
    classes = int(of_class.max()) + 1 if rule.multiclass or rule.per_class_voting else 1
    rule = rule._replace(max_seg_num=rule.max_seg_num if rule.max_seg_num > 0 else len(scores))
    *found, num_kept = _padded(segments[None], scores[None], of_class[None], classes, rule)
    number = int(num_kept[0])
    return *(x[0, :number] for x in found), num_kept.cpu()  # type: ignore[return-value]


def _definition(
    segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return suppress_recordings(segments, scores, labels, counts, Rule(*arguments))


def _fake(segments, scores, labels, counts, *_):  # type: ignore[no-untyped-def]
    size = new_size()
    num_kept = torch.empty(1 if counts is None else counts.shape[0], dtype=torch.long)
    return scores.new_empty(size, dtype=torch.long), scores.new_empty(size), segments.new_empty(size, 2), num_kept


def _run_padded(
    segments: Tensor, scores: Tensor, labels: Tensor, classes: int, capacity: int, method: str, multiclass: bool,
    iou_threshold: float, sigma: float, min_score: float, *voting: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rule = Rule(method, multiclass, iou_threshold, sigma, min_score, capacity, *voting)
    return _padded(segments, scores, labels, classes, rule)


def _padded(
    segments: Tensor, scores: Tensor, labels: Tensor, classes: int, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity = rule.max_seg_num
    if rule.method == "none":
        score, index = scores.sort(dim=1, descending=True, stable=True)
        missing = max(capacity - scores.shape[1], 0)
        index = F.pad(index[:, :capacity], (0, missing))
        score = F.pad(score[:, :capacity], (0, missing), value=-torch.inf)
    else:
        groups = labels.to(torch.int32) if rule.multiclass else None
        tables = _tables(segments, scores, groups, classes if rule.multiclass else 1, rule)
        floats = segments.dtype == scores.dtype == torch.float32
        if floats and not rule.votes and scores.numel() and choose_backend(scores.device) == "triton":
            return kernels("triton", "nms").best_picks(*tables, segments, capacity)  # type: ignore[no-any-return]
        index, score = best_picks(*tables, capacity)
    there = score != -torch.inf
    index = torch.where(there, index, 0).long()
    if not scores.shape[1]:
        return index, score, segments.new_zeros(*index.shape, 2), there.sum(1)
    kept = segments.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))
    if rule.votes and rule.method != "none":
        voters = torch.where(scores == -torch.inf, 0.0, scores)
        own, of_all = (labels.gather(1, index), labels) if rule.per_class_voting else (None, None)
        kept = vote_segments(kept, segments, voters, rule.voting_thresh, own, of_all, weight=rule.vote_weight)
    return index, score, torch.where(there.unsqueeze(-1), kept, 0.0), there.sum(1)


def _tables(segments: Tensor, scores: Tensor, groups: Tensor | None, classes: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Picks of every (recording, class) ``[B, C, K]``: index (-1: none) and score (-inf)."""
    compiled = choose_backend(segments.device) != "reference" and segments.dtype == scores.dtype == torch.float32
    if compiled and (missing_cuda() if segments.is_cuda else missing_native()) is None:
        index, score, _ = torch.ops.tzn_native.suppress_groups(
            segments, scores, groups, None, classes, rule.max_seg_num, *rule.of_kernels
        )
        return index, score
    if segments.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(f"suppression in a CUDA graph needs the compiled CUDA library: {missing_cuda()}")
    shape = scores.shape[0], classes, rule.max_seg_num
    index, score = scores.new_full(shape, -1, dtype=torch.int32), scores.new_full(shape, -torch.inf)
    alone = rule._replace(multiclass=False, voting_thresh=0.0)
    for row, group in itertools.product(range(scores.shape[0]), range(classes)):
        mine = scores[row] > -torch.inf
        members = (mine if groups is None else mine & (groups[row] == group)).nonzero().squeeze(1)
        if len(members):
            found, picked, _, _ = _run(segments[row, members], scores[row, members], None, None, *alone)
            index[row, group, : len(found)], score[row, group, : len(found)] = members[found].int(), picked
    return index, score


def _fake_padded(segments, scores, labels, classes, capacity, *_):  # type: ignore[no-untyped-def]
    shape = scores.shape[0], capacity
    index, score = scores.new_empty(shape, dtype=torch.long), scores.new_empty(shape)
    return index, score, segments.new_empty(*shape, 2), scores.new_empty(scores.shape[0], dtype=torch.long)


def _definition_padded(segments: Tensor, scores: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run_padded(segments.detach(), scores.detach(), *rest)  # picks are no function of scores to derive


RULE = (
    "str method, bool multiclass, float iou_threshold, float sigma, float min_score, {}float voting_thresh, "
    "str vote_weight, bool per_class_voting"
)
_OP = define(
    f"nms(Tensor segments, Tensor scores, Tensor? labels, Tensor? counts, {RULE.format('int max_seg_num, ')}) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _run, _fake, _definition,
)  # fmt: skip
_PADDED = define(
    f"nms_padded(Tensor segments, Tensor scores, Tensor labels, int classes, int capacity, {RULE.format('')}) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _run_padded, _fake_padded, _definition_padded,
)  # fmt: skip

"""From network outputs to candidate segments."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops import dispatch, library
from tzn.ops.checks import check_floating, check_shape, checks_values, fail
from tzn.reference import Candidates, Crossings, Segments


def select_candidates(scores: Tensor, level: Tensor, *, min_score: float, topk: int) -> Candidates:
    """(point, class) entries that may be an action: score above ``min_score``, at most ``topk`` per level.

    Args:
        scores: ``[P, C]`` class probabilities; level: ``[P]`` int64, the pyramid level of each point.
        min_score: strict lower bound; topk: >= 1.

    Returns:
        ``Candidates(point, label, score)``, level by level, by falling score, ties in the order of the input.

    Raises:
        ValueError: wrong shape or dtype, NaN scores, ``topk`` < 1.
    """
    check_floating("scores", scores)
    check_shape("scores", scores, "[P, C]", None, None)
    check_shape("level", level, f"[P] = [{scores.shape[0]}]", scores.shape[0])
    if topk < 1:
        fail("topk", topk, ">= 1")
    if checks_values(scores) and bool(scores.isnan().any()):
        fail("scores", "NaN", "probabilities")
    if torch.compiler.is_compiling():
        return Candidates(*library.select_candidates(scores, level, min_score, topk))
    return dispatch.select_candidates(scores, level, min_score=min_score, topk=topk)


def decode_segments(
    position: Tensor,
    offset: Tensor,
    offset_std: Tensor,
    starts: Crossings | None = None,
    ends: Crossings | None = None,
    *,
    snap_sigmas: float = 3.0,
) -> Segments:
    """Anchor-free segments ``(t - left, t + right)``, each end fused with the nearest boundary crossing.

    A crossing at c with standard error s moves an end at e with standard deviation q to the inverse-variance mean
    ``(e / q^2 + c / s^2) / (1 / q^2 + 1 / s^2)`` when ``s <= q`` and ``|c - e| <= snap_sigmas * hypot(q, s)``.

    Args:
        position: ``[N]`` grid time of the points.
        offset: ``[N, 2]`` distances to the left and right end in grid steps.
        offset_std: ``[N, 2]`` their standard deviations in grid steps.
        starts, ends: crossings of this one recording (``[1, K]``); both or neither.
        snap_sigmas: > 0.

    Returns:
        ``Segments(segments [N, 2], std [N, 2])`` in grid steps.

    Raises:
        ValueError: wrong shapes, only one of starts and ends, crossings of several recordings.
    """
    check_floating("offset", offset)
    check_shape("position", position, "[N]", None)
    count = position.shape[0]
    check_shape("offset", offset, f"[N, 2] = [{count}, 2]", count, 2)
    check_shape("offset_std", offset_std, f"[N, 2] = [{count}, 2]", count, 2)
    if (starts is None) != (ends is None):
        fail("starts, ends", "only one of them", "both or neither")
    for name, crossings in (("starts", starts), ("ends", ends)):
        _check_one_recording(name, crossings)
    if torch.compiler.is_compiling():
        first, last = ([] if c is None else list(c) for c in (starts, ends))
        return Segments(*library.decode_segments(position, offset, offset_std, first, last, snap_sigmas))
    return dispatch.decode_segments(position, offset, offset_std, starts, ends, snap_sigmas=snap_sigmas)


def pair_segments(
    starts: Crossings, ends: Crossings, class_scores: Tensor, *, max_ends: int = 16, topk: int = 2000
) -> tuple[Segments, Tensor, Tensor]:
    """Segments that join a start crossing with one of the next ``max_ends`` end crossings, scored by the mean inside.

    Args:
        starts, ends: crossings of one recording (``[1, K]``).
        class_scores: ``[T, C]`` class probabilities per step.
        max_ends: ends tried per start; topk: best (pair, class) entries kept.

    Returns:
        ``(Segments, labels [N], scores [N])`` by falling score, grid steps.

    Raises:
        ValueError: wrong shape, ``max_ends`` or ``topk`` < 1.
    """
    check_floating("class_scores", class_scores)
    check_shape("class_scores", class_scores, "[T, C]", None, None)
    for name, value in (("max_ends", max_ends), ("topk", topk)):
        if value < 1:
            fail(name, value, ">= 1")
    _check_one_recording("starts", starts)
    _check_one_recording("ends", ends)
    if torch.compiler.is_compiling():
        found = library.pair_segments(list(starts), list(ends), class_scores, max_ends, topk)
        return Segments(found[0], found[1]), found[2], found[3]
    return dispatch.pair_segments(starts, ends, class_scores, max_ends=max_ends, topk=topk)


def _check_one_recording(name: str, crossings: Crossings | None) -> None:
    if crossings is not None and crossings.position.shape[0] != 1:
        fail(name, f"crossings of {crossings.position.shape[0]} recordings", "[1, K], one recording")

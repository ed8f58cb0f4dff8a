"""From network outputs to candidate segments."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn.ops import dispatch, library
from tzn.ops.checks import check_count, check_device, check_floating, check_shape, checks_values, fail
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
    check_device("level", level, scores.device)
    check_count("topk", topk, 1)
    if checks_values(scores) and bool(scores.isnan().any()):
        fail("scores", "NaN", "probabilities")
    if level.dtype != torch.int64:
        fail("level", str(level.dtype), "torch.int64")
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
    for name, tensor in (("position", position), ("offset", offset), ("offset_std", offset_std)):
        check_floating(name, tensor)
        check_device(name, tensor, position.device)
    check_shape("position", position, "[N]", None)
    count = position.shape[0]
    check_shape("offset", offset, f"[N, 2] = [{count}, 2]", count, 2)
    check_shape("offset_std", offset_std, f"[N, 2] = [{count}, 2]", count, 2)
    if (starts is None) != (ends is None):
        fail("starts, ends", "only one of them", "both or neither")
    if not snap_sigmas > 0:
        fail("snap_sigmas", snap_sigmas, "> 0")
    if starts is not None and ends is not None:
        _check_one_recording("starts", starts, position.device)
        _check_one_recording("ends", ends, position.device)
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
        check_count(name, value, 1)
    _check_one_recording("starts", starts, class_scores.device)
    _check_one_recording("ends", ends, class_scores.device)
    if torch.compiler.is_compiling():
        found = library.pair_segments(list(starts), list(ends), class_scores, max_ends, topk)
        return Segments(found[0], found[1]), found[2], found[3]
    return dispatch.pair_segments(starts, ends, class_scores, max_ends=max_ends, topk=topk)


def _check_one_recording(name: str, crossings: Crossings, device: torch.device) -> None:
    if not isinstance(crossings, Crossings):
        raise TypeError(f"{name}: got {type(crossings).__name__}, expected Crossings")
    check_shape(f"{name}.position", crossings.position, "[1, K], one recording", 1, None)
    capacity = crossings.position.shape[1]
    for field in ("position", "std", "slope"):
        check_floating(f"{name}.{field}", getattr(crossings, field))
        check_shape(f"{name}.{field}", getattr(crossings, field), f"[1, K] = [1, {capacity}]", 1, capacity)
        check_device(f"{name}.{field}", getattr(crossings, field), device)
    check_shape(f"{name}.count", crossings.count, "[1]", 1)
    check_device(f"{name}.count", crossings.count, device)
    if checks_values(crossings.count) and not 0 <= int(crossings.count[0]) <= capacity:
        fail(f"{name}.count", int(crossings.count[0]), f"0 to {capacity}, as many as there are places")

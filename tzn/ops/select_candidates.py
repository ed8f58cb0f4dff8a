"""From class probabilities to candidates: which (point, class) entries may be an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tzn import reference
from tzn.ops._backend import choose_backend, kernels, serves
from tzn.ops._checks import check_count, check_device, check_floating, check_number, check_shape, checks_values, fail
from tzn.ops._register import define, new_size
from tzn.reference import Candidates


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
    _check(scores, level, min_score, topk, "P, C")
    return Candidates(*_OP(scores, level, min_score, topk))


def _check(scores: Tensor, level: Tensor, min_score: float, topk: int, shape: str) -> None:
    check_floating("scores", scores)
    check_shape("scores", scores, f"[{shape}]", *(None for _ in shape.split(",")))
    check_shape("level", level, f"[P] = [{scores.shape[-2]}]", scores.shape[-2])
    check_device("level", level, scores.device)
    check_number("min_score", min_score)
    check_count("topk", topk, 1)
    if checks_values(scores) and bool(scores.isnan().any()):
        fail("scores", "NaN", "probabilities")
    if level.dtype != torch.int64:
        fail("level", str(level.dtype), "torch.int64")


class PaddedCandidates(NamedTuple):
    """Candidates of B recordings, level by level by falling score; unused places: score -inf, label -1, point 0."""

    point: Tensor  # [B, N] int64
    label: Tensor  # [B, N] int64
    score: Tensor  # [B, N]


def select_candidates_padded(
    scores: Tensor, level: Tensor, levels: int | Sequence[int], *, min_score: float, topk: int
) -> PaddedCandidates:
    """:func:`select_candidates` of B recordings with a capacity instead of a size: nothing waits for the device.

    Args:
        scores: ``[B, P, C]`` class probabilities; level: ``[P]`` int64 in [0, number of levels).
        levels: how many points each level has (P_l, adding up to P), or, where the host does not know, how many levels.
        min_score, topk: as in :func:`select_candidates`.

    Returns:
        :class:`PaddedCandidates`. Level l has min(``topk``, P_l * C) places behind those of the levels before; N is the sum
        of that, or, of a mere number of levels, ``levels`` * min(``topk``, P * C), of which the last are nobody's.

    Raises:
        ValueError: as :func:`select_candidates`; ``levels`` < 1, or sizes that are negative, none, or not those of ``level``.
    """
    _check(scores, level, min_score, topk, "B, P, C")
    entries, classes = scores.shape[1] * scores.shape[2], scores.shape[2]
    if isinstance(levels, Sequence):
        sizes, number = list(levels), len(levels)
        check_count("len(levels)", number, 1)
        for size in sizes:
            check_count("levels", size, 0)
        if sum(sizes) != scores.shape[1]:
            fail("levels", f"{sum(sizes)} points", f"the P = {scores.shape[1]} of scores")
        capacity = sum(min(topk, size * classes) for size in sizes)
    else:
        check_count("levels", levels, 1)
        sizes, number, capacity = None, levels, levels * min(topk, entries)
    if checks_values(level) and level.numel():
        if not (int(level.min()) >= 0 and int(level.max()) < number):
            fail("level", f"{int(level.min())} to {int(level.max())}", f"0 to levels - 1 = {number - 1}")
        if sizes is not None and (found := level.bincount(minlength=number).tolist()) != sizes:
            fail("level", f"levels of {found} points", f"of levels = {sizes}")
    return PaddedCandidates(*_PADDED(scores, level, number, capacity, min_score, topk))


def _run(scores: Tensor, level: Tensor, min_score: float, topk: int) -> tuple[Tensor, ...]:
    backend = choose_backend(scores.device)
    if backend == "cpp" and serves(scores):
        return torch.ops.tzn_native.select_candidates(scores, level, min_score, topk)  # type: ignore[no-any-return]
    if backend == "triton" and scores.dtype == torch.float32 and scores.numel():
        levels = int(level.max()) + 1
        table = _run_padded(scores.unsqueeze(0), level, levels, levels * min(topk, scores.numel()), min_score, topk)
        there = table[2][0] != -torch.inf
        return tuple(x[0][there] for x in table)
    return _definition(scores, level, min_score, topk)


def _definition(scores: Tensor, level: Tensor, min_score: float, topk: int) -> tuple[Tensor, ...]:
    return reference.select_candidates(scores, level, min_score=min_score, topk=topk)


def _fake(scores, level, min_score, topk):  # type: ignore[no-untyped-def]
    size = new_size()
    return *(scores.new_empty(size, dtype=torch.long) for _ in range(2)), scores.new_empty(size)


def _run_padded(
    scores: Tensor, level: Tensor, levels: int, capacity: int, min_score: float, topk: int
) -> tuple[Tensor, ...]:
    topk = min(topk, scores.shape[1] * scores.shape[2])
    if choose_backend(scores.device) == "triton" and scores.dtype == torch.float32:
        triton = kernels("triton", "select_candidates")
        order = _order(level, levels)
        return triton.select_candidates(scores, *order, min_score=min_score, topk=topk, capacity=capacity)[:3]  # type: ignore[no-any-return]
    tables = _fake_padded(scores, level, levels, capacity, min_score, topk)
    for table, empty in zip(tables, (0, -1, -torch.inf), strict=True):
        table.fill_(empty)
    places = (level.bincount(minlength=levels) * scores.shape[2]).clamp(max=topk)
    first = places.cumsum(0) - places
    for row in range(scores.shape[0]):
        found = _run(scores[row], level, min_score, topk)
        of_level = level[found[0]]
        rank = torch.arange(len(of_level), device=level.device) - torch.searchsorted(of_level, of_level)
        place = first[of_level] + rank
        for table, values in zip(tables, found, strict=True):
            table[row, place] = values
    return tables


# Level tensor -> (its version, number of levels, order, bounds): inference passes the same one again and again.
_ORDERS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _order(level: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Points sorted by level and where each level begins; kept as long as ``level`` lives and nobody writes into it."""
    find = kernels("triton", "select_candidates").level_order
    if level.is_inference():  # has no version
        return find(level, levels)  # type: ignore[no-any-return]
    known = _ORDERS.get(level)
    if known is None or known[:2] != (level._version, levels):
        with torch.inference_mode(False):
            known = (level._version, levels, *find(level, levels))
        _ORDERS[level] = known
    return known[2:]  # type: ignore[no-any-return]


def _definition_padded(
    scores: Tensor, level: Tensor, levels: int, capacity: int, min_score: float, topk: int
) -> tuple[Tensor, ...]:
    point, label, score = _run_padded(scores.detach(), level, levels, capacity, min_score, topk)
    row = torch.arange(scores.shape[0], device=scores.device)[:, None]
    return point, label, torch.where(label >= 0, scores[row, point, label.clamp(min=0)], score)


def _fake_padded(scores, level, levels, capacity, min_score, topk):  # type: ignore[no-untyped-def]
    shape = scores.shape[0], capacity
    return *(scores.new_empty(shape, dtype=torch.long) for _ in range(2)), scores.new_empty(shape)


_OP = define(
    "select_candidates(Tensor scores, Tensor level, float min_score, int topk) -> (Tensor, Tensor, Tensor)",
    _run, _fake, _definition,
)  # fmt: skip
_PADDED = define(
    "select_candidates_padded(Tensor scores, Tensor level, int levels, SymInt capacity, float min_score, int topk) -> "
    "(Tensor, Tensor, Tensor)",
    _run_padded, _fake_padded, _definition_padded,
)  # fmt: skip

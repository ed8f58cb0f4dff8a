"""From class probabilities to candidates: which (point, class) entries may be an action."""

from __future__ import annotations

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
    scores: Tensor, level: Tensor, levels: int, *, min_score: float, topk: int
) -> PaddedCandidates:
    """:func:`select_candidates` of B recordings with a capacity instead of a size: nothing waits for the device.

    Args:
        scores: ``[B, P, C]`` class probabilities; level: ``[P]`` int64 in [0, ``levels``).
        min_score, topk: as in :func:`select_candidates`.

    Returns:
        :class:`PaddedCandidates` with N = ``levels`` * min(``topk``, P * C).

    Raises:
        ValueError: as :func:`select_candidates`; ``levels`` < 1.
    """
    _check(scores, level, min_score, topk, "B, P, C")
    check_count("levels", levels, 1)
    if checks_values(level) and level.numel() and not (int(level.min()) >= 0 and int(level.max()) < levels):
        fail("level", f"{int(level.min())} to {int(level.max())}", f"0 to levels - 1 = {levels - 1}")
    return PaddedCandidates(*_PADDED(scores, level, levels, min_score, topk))


def _run(scores: Tensor, level: Tensor, min_score: float, topk: int) -> tuple[Tensor, ...]:
    backend = choose_backend(scores.device)
    if backend == "cpp" and serves(scores):
        return torch.ops.tzn_native.select_candidates(scores, level, min_score, topk)  # type: ignore[no-any-return]
    if backend == "triton" and scores.dtype == torch.float32 and scores.numel():
        table = _run_padded(scores.unsqueeze(0), level, int(level.max()) + 1, min_score, topk)
        there = table[2][0] != -torch.inf
        return tuple(x[0][there] for x in table)
    return _definition(scores, level, min_score, topk)


def _definition(scores: Tensor, level: Tensor, min_score: float, topk: int) -> tuple[Tensor, ...]:
    return reference.select_candidates(scores, level, min_score=min_score, topk=topk)


def _fake(scores, level, min_score, topk):  # type: ignore[no-untyped-def]
    size = new_size()
    return *(scores.new_empty(size, dtype=torch.long) for _ in range(2)), scores.new_empty(size)


def _capacity(scores: Tensor, topk: int) -> int:
    return min(topk, scores.shape[1] * scores.shape[2])


def _run_padded(scores: Tensor, level: Tensor, levels: int, min_score: float, topk: int) -> tuple[Tensor, ...]:
    topk = _capacity(scores, topk)
    if choose_backend(scores.device) == "triton" and scores.dtype == torch.float32:
        triton = kernels("triton", "select_candidates")
        table = triton.select_candidates(scores, *_order(level, levels), min_score=min_score, topk=topk)
        return table.point.flatten(1), table.label.flatten(1), table.score.flatten(1)
    tables = _fake_padded(scores, level, levels, min_score, topk)
    for table, empty in zip(tables, (0, -1, -torch.inf), strict=True):
        table.fill_(empty)
    for row in range(scores.shape[0]):
        found = _run(scores[row], level, min_score, topk)
        of_level = level[found[0]]
        rank = torch.arange(len(of_level), device=level.device) - torch.searchsorted(of_level, of_level)
        place = of_level * topk + rank
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


def _definition_padded(scores: Tensor, level: Tensor, levels: int, min_score: float, topk: int) -> tuple[Tensor, ...]:
    point, label, score = _run_padded(scores.detach(), level, levels, min_score, topk)
    row = torch.arange(scores.shape[0], device=scores.device)[:, None]
    return point, label, torch.where(label >= 0, scores[row, point, label.clamp(min=0)], score)


def _fake_padded(scores, level, levels, min_score, topk):  # type: ignore[no-untyped-def]
    shape = scores.shape[0], levels * _capacity(scores, topk)
    return *(scores.new_empty(shape, dtype=torch.long) for _ in range(2)), scores.new_empty(shape)


_OP = define(
    "select_candidates(Tensor scores, Tensor level, float min_score, int topk) -> (Tensor, Tensor, Tensor)",
    _run, _fake, _definition,
)  # fmt: skip
_PADDED = define(
    "select_candidates_padded(Tensor scores, Tensor level, int levels, float min_score, int topk) -> "
    "(Tensor, Tensor, Tensor)",
    _run_padded, _fake_padded, _definition_padded,
)  # fmt: skip

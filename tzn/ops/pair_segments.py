"""From start and end crossings to segments. On the CPU the definition serves: it is a few whole-array operations."""

from __future__ import annotations

import torch
from torch import Tensor

from tzn import reference
from tzn.ops._backend import choose_backend, kernels, serves
from tzn.ops._checks import check_count, check_floating, check_shape
from tzn.ops._register import define, new_size
from tzn.ops.decode_segments import check_crossings
from tzn.reference import Crossings, Segments


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
    for name, crossings in (("starts", starts), ("ends", ends)):
        check_crossings(name, crossings, 1, class_scores.device)
    segments, std, labels, scores = _OP(class_scores, starts.table(), ends.table(), max_ends, topk)
    return Segments(segments, std), labels, scores


def _run(
    class_scores: Tensor, starts: list[Tensor], ends: list[Tensor], max_ends: int, topk: int
) -> tuple[Tensor, ...]:
    """``starts``, ``ends``: position, standard error and count."""
    backend = choose_backend(class_scores.device)
    if backend == "triton" and serves(class_scores, starts[0]):
        *found, count = kernels(backend, "pair_segments").pair_segments(
            starts, ends, class_scores[None], max_ends=max_ends, topk=topk
        )
        number = int(count[0])
        return tuple(x[0, :number] for x in found)
    return tuple(x.clone() for x in _definition(class_scores, starts, ends, max_ends, topk))


def _definition(
    class_scores: Tensor, starts: list[Tensor], ends: list[Tensor], max_ends: int, topk: int
) -> tuple[Tensor, ...]:
    first, last = Crossings.of_table(*starts), Crossings.of_table(*ends)
    segments, labels, scores = reference.pair_segments(first, last, class_scores, max_ends=max_ends, topk=topk)
    return *segments, labels, scores


def _fake(class_scores, starts, ends, max_ends, topk):  # type: ignore[no-untyped-def]
    size = new_size()
    segments = [starts[0].new_empty(size, 2) for _ in range(2)]
    return *segments, class_scores.new_empty(size, dtype=torch.long), class_scores.new_empty(size)


_OP = define(
    "pair_segments(Tensor class_scores, Tensor[] starts, Tensor[] ends, int max_ends, int topk) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _run, _fake, _definition,
)  # fmt: skip

"""Overlap of segments in time."""

from __future__ import annotations

from torch import Tensor

from tzn import reference
from tzn.ops._checks import check_choice, check_floating, check_shape, checks_values, fail

KINDS = ("iou", "diou")


def segment_iou(a: Tensor, b: Tensor, kind: str = "iou") -> Tensor:
    """Intersection over union of all pairs of segments.

    Args:
        a: ``[N, 2]`` floating (start, end), start <= end, any unit; b: ``[M, 2]``.
        kind: "iou", or "diou": minus the squared distance of the centres over the squared length of the hull.

    Returns:
        ``[N, M]``; NaN for two segments of no length at the same place.

    Raises:
        ValueError: wrong shape or dtype, a segment with end < start, unknown kind.
    """
    check_segments("a", a)
    check_segments("b", b)
    check_choice("kind", kind, KINDS)
    return reference.segment_iou(a, b, kind)


def check_segments(name: str, segments: Tensor) -> None:
    """``[N, 2]`` floating with start <= end and no NaN."""
    check_floating(name, segments)
    check_shape(name, segments, "[N, 2]", None, 2)
    if checks_values(segments) and not bool((segments[:, 1] >= segments[:, 0]).all()):
        fail(name, "a segment with end < start or NaN", "start <= end")

"""Counting the multiply-adds that a run really does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


def count_multiply_adds(run: Callable[[], Result]) -> tuple[Result, int]:
    """Run ``run`` and count the multiply-adds of its matrix products and convolutions.

    Skipped tokens are never in a matrix product on the reference back end, so they are not counted. Element-wise work
    (norms, activations, softmax) is not counted, as usual in this field.

    Returns:
        (what ``run`` returned, multiply-adds); 1 GMAC = 2 GFLOP.
    """
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops() // 2

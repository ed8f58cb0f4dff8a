"""When an op runs as one opaque node: while tracing, and while counting multiply-adds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

_counting: ContextVar[bool] = ContextVar("_counting", default=False)


def as_one_node() -> bool:
    """Whether the public ops call ``torch.ops.tzn.*`` instead of running directly."""
    return torch.compiler.is_compiling() or _counting.get()


def is_counting() -> bool:
    return not torch.compiler.is_compiling() and _counting.get()


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Inside, every op is a node of its own, so counters see the op and not how a back end computes it."""
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)

"""No speed-up without parity: what is compared in time gives the same results in the same run, or nothing is printed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

Run = TypeVar("Run", bound=Callable[[], Any])


class NoParity(SystemExit):
    """Results differ, so there is no speed-up to report: ends the program with the reason, exit code 1."""


def same(name: str, given: Any, wanted: Any, *, rtol: float, atol: float) -> None:
    """``given`` is ``wanted`` within a tolerance: tensors, arrays and numbers, in lists, tuples and dicts.

    Raises:
        NoParity: it is not; says where.
    """
    try:
        torch.testing.assert_close(given, wanted, rtol=rtol, atol=atol, equal_nan=True, check_dtype=False)
    except (AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise NoParity(f"{name}: results differ, no speed-up to report: {reason}") from error


def checked(runs: Mapping[str, Run], wanted: Any, *, rtol: float, atol: float) -> Mapping[str, Run]:
    """``runs``, each run once and compared.

    Args:
        wanted: the right result, or a function from a run's name to its own right result.

    Raises:
        NoParity: a run gives something else.
    """
    for name, run in runs.items():
        same(name, run(), wanted(name) if callable(wanted) else wanted, rtol=rtol, atol=atol)
    return runs


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside, ``TZN_BACKEND`` is ``name``: on "reference" every op is its definition."""
    before = os.environ.get("TZN_BACKEND")
    os.environ["TZN_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZN_BACKEND"]
        else:
            os.environ["TZN_BACKEND"] = before


def by_definition(run: Callable[[], Any]) -> Any:
    """What ``run`` gives on the ops' definitions."""
    with backend("reference"):
        return run()

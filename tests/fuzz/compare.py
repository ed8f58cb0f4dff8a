"""When an answer is right: equal to the definition wherever what it depends on are ordinary numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ORDINARY = 100.0  # beyond, sums may overflow in half precision or lose all digits


def tensors_of(*values: Any) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_of(*value)
        elif isinstance(value, dict):
            yield from tensors_of(*value.values())


def elsewhere(*values: Any) -> bool:
    """Whether a tensor has no values to compare: on the meta device."""
    return any(x.device.type != "cpu" for x in tensors_of(*values))


def answer(run: Callable[[Any], Any]) -> Callable[[Callable[..., None]], Callable[[Any], Callable[[Any], None]]]:
    """Decorates a check of (arguments, ``run(arguments)``, random numbers): what is fuzzed calls, and returns its check."""

    def decorate(check: Callable[..., None]) -> Callable[[Any], Callable[[Any], None]]:
        def call(a: Any) -> Callable[[Any], None]:
            out = run(a)
            return lambda rng: None if elsewhere(a) else check(a, out, rng)

        return call

    return decorate


def ordinary(x: Tensor) -> Tensor:
    """Entries that are finite and not large, bool of the shape of ``x``."""
    return x.detach().double().abs() <= ORDINARY


def all_ordinary(*values: Any) -> bool:
    return all(bool(ordinary(x).all()) for x in tensors_of(*values) if x.is_floating_point())


def double(x: Any) -> Any:
    """Copies in float64; what is not floating stays."""
    if isinstance(x, Tensor):
        return x.detach().double() if x.is_floating_point() else x
    if isinstance(x, tuple):
        return type(x)(*map(double, x)) if hasattr(x, "_fields") else tuple(map(double, x))
    return x


def assert_near(
    given: Tensor, exact: Tensor, what: str, *, size: float = 1.0, inner: torch.dtype | None = None
) -> None:
    """``given`` equals ``exact`` up to its own rounding and 40 units in the last place of ``size`` in ``inner``.

    ``inner`` is what the op computes in: float32, float64 for float64, unless told otherwise.
    """
    assert given.shape == exact.shape, f"{what}: shape {tuple(given.shape)} instead of {tuple(exact.shape)}"
    if inner is None:
        inner = torch.float64 if given.dtype == torch.float64 else torch.float32
    largest = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 0.0
    torch.testing.assert_close(
        given.detach().double(), exact.detach().double(), rtol=torch.finfo(given.dtype).eps,
        atol=40 * torch.finfo(inner).eps * max(size, largest), equal_nan=True, msg=lambda m: f"{what}: {m}",
    )  # fmt: skip


def assert_same(given: Any, wanted: Any, what: str) -> None:
    """Bit by bit, NaN equal to NaN."""
    for number, (a, b) in enumerate(zip(tensors_of(given), tensors_of(wanted), strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{what}, result {number}: {m}")  # noqa: B023

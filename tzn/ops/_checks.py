"""Argument checks of the public ops: every message names the argument, what was given and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor


def fail(name: str, given: object, expected: str) -> NoReturn:
    raise ValueError(f"{name}: got {given}, expected {expected}")


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError, as Python does, for None, numbers, lists and arrays; ValueError for a sparse tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided:
        fail(name, str(value.layout), "a dense tensor (torch.strided)")


def check_shape(name: str, tensor: Tensor, expected: str, *sizes: int | None) -> None:
    """``sizes`` are the dimensions, None where any size will do; ``expected`` is the text for the message."""
    check_tensor(name, tensor)
    shape = tensor.shape
    if shape == sizes:
        return
    if len(shape) != len(sizes) or any(
        want is not None and have != want for have, want in zip(shape, sizes, strict=True)
    ):
        fail(name, f"shape {tuple(shape)}", expected)


def check_alike(name: str, tensor: Tensor, like: Tensor, of: str) -> None:
    """Shape, device and dtype of the argument ``of``, which is ``like``."""
    check_tensor(name, tensor)
    if tensor.shape == like.shape and tensor.device == like.device and tensor.dtype == like.dtype:
        return  # nothing more is spent on the right case, which attention over short recordings would feel
    check_shape(name, tensor, f"the shape of {of} {tuple(like.shape)}", *like.shape)
    check_device(name, tensor, like.device)
    fail(name, str(tensor.dtype), f"{like.dtype} like {of}")


def check_floating(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        fail(name, str(tensor.dtype), "a floating-point tensor")


def check_mask(name: str, mask: Tensor | None, batch: int | None, steps: int, device: torch.device) -> None:
    """``[B, T]`` bool, or ``[N]`` where there is no batch."""
    if mask is None:
        return
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        fail(name, str(mask.dtype), "torch.bool (True = valid)")
    if mask.shape != ((steps,) if batch is None else (batch, steps)):
        fail(
            name, f"shape {tuple(mask.shape)}", f"[N] = [{steps}]" if batch is None else f"[B, T] = [{batch}, {steps}]"
        )
    check_device(name, mask, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    check_tensor(name, tensor)
    if tensor.device != device:
        fail(name, f"device {tensor.device}", f"device {device} like the first argument")


def check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or value < least:
        fail(name, value, f"an integer >= {least}")


def check_number(name: str, value: float) -> None:
    if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        fail(name, repr(value)[:80], "a number")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        fail(name, repr(value), f"one of {', '.join(choices)}")


def check_window(window: int) -> None:
    if not isinstance(window, int) or window < 1 or window % 2 == 0:
        fail("window", window, "an odd positive integer")


def checks_values(tensor: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not while tracing, where there are none, and only on the CPU, because
    looking at those of another device waits for it, in every layer, and is impossible while a CUDA graph is captured.
    """
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu"

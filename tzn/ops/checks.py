"""Argument checks of the public ops: every message names the argument, what was given and what was expected."""

from __future__ import annotations

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
    fits = tensor.dim() == len(sizes) and all(
        want is None or have == want for have, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        fail(name, f"shape {tuple(tensor.shape)}", expected)


def check_floating(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        fail(name, str(tensor.dtype), "a floating-point tensor")


def check_mask(name: str, mask: Tensor | None, batch: int, steps: int, device: torch.device) -> None:
    if mask is None:
        return
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        fail(name, str(mask.dtype), "torch.bool (True = valid)")
    check_shape(name, mask, f"[B, T] = [{batch}, {steps}]", batch, steps)
    check_device(name, mask, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    check_tensor(name, tensor)
    if tensor.device != device:
        fail(name, f"device {tensor.device}", f"device {device} like the first argument")


def check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or value < least:
        fail(name, value, f"an integer >= {least}")


def check_window(window: int) -> None:
    if not isinstance(window, int) or window < 1 or window % 2 == 0:
        fail("window", window, "an odd positive integer")


def checks_values(tensor: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not while tracing, where there are none, and only on the CPU, because
    looking at those of another device waits for it, in every layer, and is impossible while a CUDA graph is captured.
    """
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu"

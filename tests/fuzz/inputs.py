"""Random arguments, and what messes them up: shapes, strides, dtypes, devices, values, numbers, things that are no tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64, torch.complex128,
)  # fmt: skip
# Large numbers are either harmless or too large to be allocated: nothing in between, which would only take memory.
INTEGERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 1001, 2**45, 2**62 + 1, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 0.0, 1e-320, 1e-40, 0.5, 1.0, 3.7, 1e30, 1e308)
STRANGE = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 1e-42, 0.0, -0.0, -1.0, 6e4)


class Random:
    """Everything random of one case, from its seed."""

    def __init__(self, seed: str):
        self.python = random.Random(seed)
        self.torch = torch.Generator().manual_seed(self.python.getrandbits(48))

    def chance(self, share: float) -> bool:
        return self.python.random() < share

    def choice(self, of: Any) -> Any:
        return self.python.choice(of)

    def integer(self, low: int, high: int) -> int:
        return self.python.randint(low, high)

    def size(self, most: int) -> int:
        """0 … most; the edges often."""
        return min(self.choice((0, 1, 2, most)), most) if self.chance(0.3) else self.integer(0, most)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float64).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=self.torch, dtype=torch.float64).to(dtype)

    def mask(self, *shape: int) -> Tensor:
        return self.uniform(*shape) < self.choice((0.0, 0.2, 0.8, 1.0))

    def maybe(self, make: Callable[[], Any]) -> Any:
        return make() if self.chance(0.5) else None


def restride(rng: Random, x: Tensor) -> Tensor:
    """The same values in another memory order, or (expanded) some of the values with a stride of 0."""
    kind = rng.choice(("permuted", "stepped", "shifted", "flipped", "expanded"))
    if x.dim() == 0:
        return x
    dim = rng.integer(0, x.dim() - 1)
    if kind == "permuted":
        order = rng.python.sample(range(x.dim()), x.dim())
        back = [order.index(i) for i in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    if kind == "stepped":
        return x.repeat_interleave(3, dim)[(slice(None),) * dim + (slice(1, None, 3),)]
    if kind == "shifted":
        return torch.cat([x.narrow(dim, 0, min(1, x.shape[dim])), x], dim).narrow(
            dim, min(1, x.shape[dim]), x.shape[dim]
        )
    if kind == "flipped":
        return x.flip(dim)
    return x.narrow(dim, 0, 1).expand(x.shape) if x.shape[dim] else x


def reshape(rng: Random, x: Tensor) -> Tensor:
    """Another shape."""
    kind = rng.choice(("drop", "add", "longer", "shorter", "empty", "scalar"))
    if kind == "scalar" or x.dim() == 0:
        return x.flatten()[0] if x.numel() else x.new_zeros(())
    dim = rng.integer(0, x.dim() - 1)
    if kind == "drop":
        return x.select(dim, 0) if x.shape[dim] else x.new_zeros(x.shape[:dim] + x.shape[dim + 1 :])
    if kind == "add":
        return x.unsqueeze(dim)
    if kind == "longer":
        return torch.cat([x, x.new_zeros(*x.shape[:dim], 1, *x.shape[dim + 1 :])], dim)
    return x.narrow(dim, 0, max(x.shape[dim] - 1, 0) if kind == "shorter" else 0)


def revalue(rng: Random, x: Tensor) -> Tensor:
    """Strange numbers at a few places, or huge and negative integers."""
    x = x.clone(memory_format=torch.contiguous_format)
    if not x.numel() or x.dtype == torch.bool:
        return x
    flat = x.view(-1)
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.integer(0, flat.numel() - 1)
        if x.is_floating_point() or x.is_complex():
            flat[place] = rng.choice(STRANGE)
        else:
            info = torch.iinfo(x.dtype)
            flat[place] = min(max(rng.choice(INTEGERS), info.min), info.max)
    return x


def mutate(rng: Random, x: Any) -> Any:
    """One argument, messed up; ``x`` may be a tensor, a number, a name, None or a tuple of tensors."""
    if isinstance(x, tuple) and x:
        place = rng.integer(0, len(x) - 1)
        if rng.chance(0.1):
            return rng.choice((None, x[:-1], 3, "x"))
        parts = [mutate(rng, y) if i == place else y for i, y in enumerate(x)]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.device.type == "meta":
            return x
        kind = rng.choice(("stride", "stride", "value", "value", "shape", "dtype", "meta", "sparse", "none", "grad"))
        if kind in ("stride", "value", "shape"):
            return {"stride": restride, "value": revalue, "shape": reshape}[kind](rng, x)
        if kind == "grad":
            return x.detach().clone().requires_grad_() if x.is_floating_point() else x
        if kind == "sparse":
            return x.detach().to_sparse() if x.dim() else x
        return {"dtype": x.to(rng.choice(DTYPES)), "meta": x.to("meta"), "none": rng.choice((None, 1.5, "x", [1]))}[
            kind
        ]
    if isinstance(x, str):
        return rng.choice(("", "cubic", None, 0))
    if isinstance(x, bool):
        return rng.choice((True, False, None, 2))
    if isinstance(x, (int, float)):
        return rng.choice((*INTEGERS, *NUMBERS, None, "x"))
    return rng.choice((None, 1, 2.5, "x", torch.zeros(3), torch.zeros(2, 3, dtype=torch.bool)))

"""What the machine does at best: products per second, and bytes per second at a given working set."""

from __future__ import annotations

import torch

from benchmarks.lib.timing import medians

PRODUCT = 2048


def gigaflops() -> float:
    """Of a large float32 matrix product, two operations per multiply-add."""
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    out = torch.empty(PRODUCT, PRODUCT)
    return 2 * PRODUCT**3 / medians({"product": lambda: torch.mm(a, b, out=out)})["product"]["median"] / 1e9


def gigabytes_per_second(size: int) -> float:
    """Of a copy that reads and writes ``size`` bytes in all: small ones stay in caches, as the op's own data do."""
    source = torch.randn(size // 8)
    target = torch.empty_like(source)
    return size / medians({"copy": lambda: target.copy_(source)})["copy"]["median"] / 1e9

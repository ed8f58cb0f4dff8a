"""Arrays as text inside a page: little-endian, deflated, base64, with a table of where each array lies."""

from __future__ import annotations

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np

MISSING = -32768  # stands for NaN among quantised values
STEPS = 65534


class Quantised(NamedTuple):
    """Values as 16-bit integers: ``low + (q + 32767) / 65534 * (high - low)``, finer than any screen."""

    values: np.ndarray
    low: float
    high: float


def quantise(values: np.ndarray) -> Quantised:
    """``[T]`` real numbers as int16; NaN and infinities become ``MISSING``."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    scaled = np.rint((np.where(finite, values, low).astype(np.float64) - low) * (STEPS / (high - low))) - 32767
    return Quantised(np.where(finite, scaled, MISSING).astype(np.int16), low, high)


def pack(arrays: dict[str, np.ndarray]) -> tuple[dict[str, list[Any]], str]:
    """``{name: [dtype, byte offset, length]}`` and the arrays, one after the other, as base64 of a zlib stream."""
    table: dict[str, list[Any]] = {}
    parts, offset = [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(-1)
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        table[name] = [array.dtype.str[1:], offset, array.size]
        content += bytes(-len(content) % 8)  # typed arrays of a browser start at multiples of their item size
        parts.append(content)
        offset += len(content)
    return table, pack_bytes(b"".join(parts))


def pack_bytes(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()

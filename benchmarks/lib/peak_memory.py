"""Peak memory of a run above what was in use before it."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_megabytes(run: Callable[[], Any], device: str = "cpu") -> float:
    """MB (1e6 bytes) that ``run`` needs at its peak, results included: resident memory, or the CUDA allocator's."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not sys.platform.startswith("linux"):
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would hide what the run takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1e6


def resident_bytes() -> float:
    """Resident memory of the process now; Linux."""
    return _status("VmRSS")


def _status(field: str) -> float:
    """Bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, field
    return 1024.0 * int(found[1])

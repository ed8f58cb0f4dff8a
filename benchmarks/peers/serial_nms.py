"""The original's serial soft-NMS, compiled when it is first called (needs g++)."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("serial_soft_nms.cpp")


def serial_soft_nms(
    segments: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, *, gaussian: bool = True
) -> tuple[Tensor, Tensor]:
    """Picked segments ``[M, 2]`` and decayed scores ``[M]``, best first, of float32 ``[N, 2]`` and ``[N]`` on the CPU."""
    segments, scores = (x.to(torch.float32).clone(memory_format=torch.contiguous_format) for x in (segments, scores))
    count = _library().serial_soft_nms(
        ctypes.c_void_p(segments.data_ptr()), ctypes.c_void_p(scores.data_ptr()), ctypes.c_int64(len(scores)),
        ctypes.c_float(iou_threshold), ctypes.c_float(sigma), ctypes.c_float(min_score), ctypes.c_bool(gaussian),
    )  # fmt: skip
    return segments[:count], scores[:count]


@cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "serial_soft_nms.so"
        subprocess.run(["g++", "-O3", "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    library.serial_soft_nms.restype = ctypes.c_int64
    return library

"""Compiles and runs the CUDA suppression kernel's source on the host (tests/cuda/emulation.h)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parent / "cuda" / "nms_emulation.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def compile_emulation(target: Path, *flags: str) -> ctypes.CDLL:
    command = [
        str(COMPILER),
        "-std=c++20",
        "-O1",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
    ]
    subprocess.run([*command, *flags, "-o", str(target), str(SOURCE)], check=True)
    return ctypes.CDLL(str(target))


def emulate(
    library: ctypes.CDLL, segments: Tensor, scores: Tensor, labels: Tensor | None, counts: Tensor | None, groups: int,
    capacity: int, method: int, iou_threshold: float, sigma: float, min_score: float, above: float,
    *, places: int | None = None, threads: int = 64, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``places``: candidates that shared memory holds (all by default); ``seed``: of the order in which threads run."""
    recordings, number = scores.shape
    segments, scores = segments.contiguous(), scores.contiguous()
    index = torch.full((recordings, groups, capacity), -7, dtype=torch.int32)
    score = torch.full((recordings, groups, capacity), torch.nan)
    count = torch.full((recordings, groups), -7, dtype=torch.int32)
    pointers = [None if x is None else x.contiguous() for x in (segments, scores, labels, counts)]
    c_float, c_long = ctypes.c_float, ctypes.c_int64
    library.suppress_groups(
        *(ctypes.c_void_p(None if x is None else x.data_ptr()) for x in pointers),
        c_long(recordings), c_long(number), c_long(groups), c_long(capacity), c_long(method),
        c_float(iou_threshold), c_float(sigma), c_float(min_score), c_float(above),
        c_long(number if places is None else places), c_long(threads), c_long(seed),
        *(ctypes.c_void_p(x.data_ptr()) for x in (index, score, count)),
    )  # fmt: skip
    return index, score, count

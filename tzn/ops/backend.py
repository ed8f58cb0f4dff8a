"""Which implementation the ops run on."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

from tzn.ops import native

BACKENDS = ("reference", "cpp", "triton")


def backends() -> dict[str, str]:
    """Every back end by name: "available", or the reason why it is not."""
    return {
        "reference": "available",
        "cpp": native.missing_reason() or "available",
        "triton": _triton_missing() or "available",
    }


def choose_backend(device: torch.device | str = "cpu") -> str:
    """Back end for tensors on ``device``: the environment variable ``TZN_BACKEND``, by default "auto".

    "auto" is what serves the device best: Triton kernels on CUDA devices, compiled kernels on the CPU, each where it is
    installed, else the reference. Triton kernels serve the CPU only when asked for, in Triton's interpreter.

    Raises:
        ValueError: unknown name, or a back end that is not available, with the reason.
    """
    name = os.environ.get("TZN_BACKEND", "auto")
    kind = (torch.device(device) if isinstance(device, str) else device).type
    if name == "auto":
        if kind == "cpu":
            return "cpp" if native.missing_reason() is None else "reference"
        return "triton" if kind == "cuda" and _triton_missing() is None else "reference"
    if name not in BACKENDS:
        raise ValueError(f"TZN_BACKEND = {name!r}: expected one of auto, {', '.join(BACKENDS)}")
    reason = backends()[name]
    if name == "cpp" and kind != "cpu":
        reason = f"compiled CPU kernels do not serve tensors on {device}"
    if name == "triton" and reason == "available" and kind == "cpu" and not _interpreted():
        reason = (
            "on the CPU, Triton kernels run in the interpreter only: set TRITON_INTERPRET=1 before Triton is imported"
        )
    if reason != "available":
        raise ValueError(f"TZN_BACKEND = {name!r}: {reason}")
    return name


def uses_triton(device: torch.device) -> bool:
    """Whether ops on ``device`` run as Triton kernels; fixed while tracing, where each back end has its own nodes."""
    return choose_backend(device) == "triton"


def uses_compiled_cuda() -> bool:
    """Whether suppression of CUDA tensors is to run on compiled kernels: by name, or by "auto" where Triton is missing."""
    name = os.environ.get("TZN_BACKEND", "auto")
    return name == "cpp" or (name == "auto" and _triton_missing() is not None)


# What torch.compiler.assume_constant_result sets; calling that imports all of Dynamo, and Triton with it.
uses_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; Linux only)"
    if not torch.cuda.is_available() and not _interpreted():
        return "no CUDA device is visible to this torch; TRITON_INTERPRET=1 runs the kernels on the CPU, slowly"
    return None

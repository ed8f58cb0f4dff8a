"""Which back ends there are, and why not; which one runs an op on a device."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "cpp", "triton")
BEST = {"cpu": "cpp", "cuda": "triton"}  # by type of device
PACKAGE = Path(__file__).resolve().parent.parent


def backends() -> dict[str, str]:
    """Every back end by name: "available", or the reason why it is not."""
    return {
        "reference": "available",
        "cpp": missing_native() or "available",
        "triton": _missing_triton() or "available",
    }


def can_run(name: str, device: torch.device, *, raise_error: bool = False) -> bool:
    """Whether back end ``name`` serves tensors on ``device``.

    Raises:
        ValueError: with ``raise_error``, where it does not, with the reason.
    """
    reason = _missing(name, device)
    if reason is not None and raise_error:
        raise ValueError(f"TZN_BACKEND = {name!r}: {reason}")
    return reason is None


def choose_backend(device: torch.device | str = "cpu") -> str:
    """Back end for tensors on ``device``: the environment variable ``TZN_BACKEND``, by default "auto".

    "auto" is what serves the device best: Triton kernels on CUDA devices, compiled kernels on the CPU, each where it is
    installed, else the reference. Triton kernels serve the CPU only when asked for, in Triton's interpreter. An op that a
    back end has no kernel for runs on the compiled kernels of its device if there are any, else on the reference.

    Raises:
        ValueError: unknown name, or a back end that is not available, with the reason.
    """
    device = torch.device(device) if isinstance(device, str) else device
    name = os.environ.get("TZN_BACKEND", "auto")
    if name == "auto":
        best = BEST.get(device.type, "reference")
        return best if can_run(best, device) else "reference"
    if name not in BACKENDS:
        raise ValueError(f"TZN_BACKEND = {name!r}: expected one of auto, {', '.join(BACKENDS)}")
    can_run(name, device, raise_error=True)
    return name


def kernels(backend: str, op: str) -> Any:
    """What the back end "triton" or "cpp" has for an op, beside or instead of ``torch.ops.tzn_native``: a module."""
    return importlib.import_module(f"tzn.kernels.{'cpu.' if backend == 'cpp' else ''}{op}")


def serves(*tensors: Tensor) -> bool:
    """Whether they have the dtypes that kernels of decoding are written for: float32 or float64, all the same one."""
    dtype = tensors[0].dtype
    return dtype in (torch.float32, torch.float64) and all(x.dtype == dtype for x in tensors)


def _missing(name: str, device: torch.device) -> str | None:
    if name == "reference":
        return None
    if name == "cpp":
        if device.type == "cuda":
            return missing_cuda()
        return missing_native() if device.type == "cpu" else f"compiled kernels do not serve tensors on {device}"
    if device.type == "cpu" and not _interpreted():
        return _missing_triton() or (
            "on the CPU, Triton kernels run in the interpreter only: set TRITON_INTERPRET=1 before Triton is imported"
        )
    return _missing_triton()


def build_facts() -> dict[str, Any]:
    """What the build recorded: compiler, torch, kernels, or the reason why there are none."""
    try:
        return dict(json.loads((PACKAGE / "_build.json").read_text()))
    except (OSError, ValueError):
        return {}


@cache
def missing_native() -> str | None:
    """Loads the compiled CPU kernels (``torch.ops.tzn_native``) on the first call; None when they can be used, else why not.

    ``TZN_NATIVE_LIBRARY`` names another build of the same sources, which is loaded instead.
    """
    chosen = os.environ.get("TZN_NATIVE_LIBRARY")
    library = Path(chosen) if chosen else next(iter(sorted(PACKAGE.glob("_native.*so"))), None)
    if library is None:
        reason = build_facts().get("reason", "this installation was made without them")
        return f"compiled CPU kernels are not built ({reason}); see 'Set-up' in the README"
    reason = _load(library)
    if reason is None and torch.ops.tzn_native.layout() != LAYOUT:
        return f"{library.name} is of another version of tzn, build it again"
    return reason


# Of the raw kernels' arguments; changes with every change of them (csrc/cpu/layout.cpp), so that an old build is noticed.
LAYOUT = 5


@cache
def missing_cuda() -> str | None:
    """Likewise for the compiled CUDA library, which serves suppression."""
    library = next(iter(sorted(PACKAGE.glob("_native_cuda.*so"))), None)
    if library is None:
        return "compiled CUDA kernels are not built (TZN_CUDA=1 builds them; see csrc/cuda/README.md)"
    if not torch.cuda.is_available():
        return f"{library.name} is built, but no CUDA device is visible to this torch"
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        return f"{library.name} has no code for compute capability {capability[0]}.{capability[1]}, only from 8.0 on"
    return missing_native() or _load(library)  # the CPU library declares the op


def _load(library: Path) -> str | None:
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load with torch {torch.__version__} (CUDA {torch.version.cuda}): {error}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _missing_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; Linux only)"
    if not torch.cuda.is_available() and not _interpreted():
        return "no CUDA device is visible to this torch; TRITON_INTERPRET=1 runs the kernels on the CPU, slowly"
    return None

"""Which implementation the ops run on."""

from __future__ import annotations

import os

import torch

from tzn.ops import native

BACKENDS = ("reference", "cpp", "triton")


def backends() -> dict[str, str]:
    """Every back end by name: "available", or the reason why it is not."""
    return {
        "reference": "available",
        "cpp": native.missing_reason() or "available",
        "triton": "not part of this version: Triton kernels are not built yet",
    }


def choose_backend(device: torch.device | str = "cpu") -> str:
    """Back end for tensors on ``device``: the environment variable ``TZN_BACKEND``, by default "auto".

    "auto" is compiled kernels where they are installed and serve the device, else the reference.

    Raises:
        ValueError: unknown name, or a back end that is not available, with the reason.
    """
    name = os.environ.get("TZN_BACKEND", "auto")
    on_cpu = torch.device(device).type == "cpu"
    if name == "auto":
        return "cpp" if on_cpu and native.missing_reason() is None else "reference"
    if name not in BACKENDS:
        raise ValueError(f"TZN_BACKEND = {name!r}: expected one of auto, {', '.join(BACKENDS)}")
    reason = backends()[name]
    if name == "cpp" and not on_cpu:
        reason = f"compiled CPU kernels do not serve tensors on {device}"
    if reason != "available":
        raise ValueError(f"TZN_BACKEND = {name!r}: {reason}")
    return name

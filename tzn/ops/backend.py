"""Which implementation the ops run on."""

from __future__ import annotations

import os

BACKENDS = ("reference", "cpp", "triton")


def backends() -> dict[str, str]:
    """Every back end by name: "available", or the reason why it is not."""
    return {
        "reference": "available",
        "cpp": "not part of this version: compiled CPU kernels are not built yet",
        "triton": "not part of this version: Triton kernels are not built yet",
    }


def choose_backend() -> str:
    """Back end named by the environment variable ``TZN_BACKEND`` (default "auto": the fastest available).

    Raises:
        ValueError: unknown name, or a back end that is not available, with the reason.
    """
    name = os.environ.get("TZN_BACKEND", "auto")
    if name == "auto":
        return "reference"
    if name not in BACKENDS:
        raise ValueError(f"TZN_BACKEND = {name!r}: expected one of auto, {', '.join(BACKENDS)}")
    reason = backends()[name]
    if reason != "available":
        raise ValueError(f"TZN_BACKEND = {name!r}: {reason}")
    return name

"""What ``tzn info`` shows: versions, back ends, devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from tzn import __version__
from tzn.ops import backends, choose_backend
from tzn.ops._backend import build_facts, missing_cuda

OPTIONAL = {"lightning": "train", "tensorboard": "train", "matplotlib": "plot", "scipy": "signal"}


def collect_info() -> dict[str, dict[str, Any]]:
    """Sections "versions", "build", "backends" and "devices" as plain data."""
    versions = {"tzn": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "triton", *OPTIONAL):
        versions[package] = _version(package)
    try:
        chosen = choose_backend()
    except ValueError as error:
        chosen = f"none: {error}"
    devices = {
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    }
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            devices[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    else:
        devices["cuda"] = "none found by this torch"
    asked = os.environ.get("TZN_BACKEND", "auto")
    return {
        "versions": versions,
        "build": _build(),
        "backends": {**backends(), f"chosen (TZN_BACKEND={asked})": chosen},
        "devices": devices,
    }


def _build() -> dict[str, str]:
    """How the compiled kernels were made, or why there are none."""
    facts = build_facts()
    if "compiler" not in facts or "reason" in facts:
        return {"compiled kernels": f"none: {facts.get('reason', 'this installation was made without them')}"}
    made = {"compiled kernels": f"{facts['compiler']}, against torch {facts['torch']}"}
    if "cuda" in facts or "cuda_reason" in facts:  # a build that asked for them
        state = missing_cuda() or "available"
        made["compiled CUDA kernels"] = facts.get("cuda_reason") or f"{facts['cuda']}; {state}"
    return made


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        extra = OPTIONAL.get(package)
        return f"not installed (pip install 'tzn[{extra}]')" if extra else "not installed"

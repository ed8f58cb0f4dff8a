"""Compiles every kernel for GPUs that are not here and reads what the compiler made of it (``make aot``).

The launchers themselves choose the variants: they run on CPU tensors while a stub driver names the target and launches are
compiled instead of run. From the binary: registers, stack and shared memory (cuobjdump), and from its disassembly the matrix
instructions (HMMA; HGMMA on sm_90; UTC*MMA on sm_100), 128-bit global loads, and loads and stores of spilled registers.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tzn.kernels import _launch as launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """One compiled variant."""

    architecture: str
    kernel: str
    variant: str
    warps: int
    registers: int
    spills: int  # instructions that move registers to or from local memory
    stack: int  # bytes per thread
    shared: int  # bytes
    matrix: str  # kind of matrix instruction, "-": none
    matrix_count: int
    wide_loads: int  # 128-bit loads from global memory, asynchronous copies included
    loads: int  # all of them


class _Stub:
    """Stands in for a CUDA driver: names the target; a device number per target keeps their caches apart."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def collect(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Inside, every launch of a kernel compiles it for ``capability`` and appends (name, compiled kernel)."""
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        if id(kernel) not in seen:
            seen.add(id(kernel))
            found.append((self.__name__, kernel))
        return kernel

    driver.set_active(_Stub(capability))
    JITFunction.run = compile_only
    launch.ASSUMED = f"sm{capability}"
    try:
        yield found
    finally:
        JITFunction.run = original
        driver.reset_active() if torch.cuda.is_available() else driver.set_active(_Stub(capability))


def resources(architecture: str, name: str, variant: str, kernel: Any) -> Resources:
    """Reads a compiled kernel's binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
        sass = subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    facts = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage.stdout)}
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?\s*([A-Z][A-Z0-9_.]*)", sass, flags=re.MULTILINE)
    families = [operation.split(".")[0] for operation in operations]
    kinds = [f for f in families if f.endswith("MMA") and f not in ("FMMA",)]
    matrix = max(set(kinds), key=kinds.count) if kinds else "-"
    loads = [o for o in operations if o.startswith(("LDG", "LDGSTS", "UTMALDG"))]
    return Resources(
        architecture, name.removesuffix("_kernel"), variant, kernel.metadata.num_warps, facts["REG"],
        sum(f in ("LDL", "STL") for f in families), facts["STACK"], kernel.metadata.shared,
        matrix, len(kinds), sum(".128" in o or o.startswith("UTMALDG") for o in loads), len(loads),
    )  # fmt: skip

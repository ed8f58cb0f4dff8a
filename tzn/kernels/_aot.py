"""Compiles every kernel for GPUs that are not here and reads what the compiler made of it (``make aot``), or compiles them
side by side before a GPU has to wait for them (``benchmarks/gpu/precompile.py``).

The launchers themselves choose the variants: they run on CPU tensors while a stub driver names the target and launches are
compiled, or only noted, instead of run. From the binary: registers, stack and shared memory (cuobjdump), and from its
disassembly the matrix instructions (HMMA; HGMMA on sm_90; UTC*MMA on sm_100), 128-bit global loads, and loads and stores of
spilled registers.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
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


WAIT = "ACQBULK"  # griddepcontrol.wait
# Of memory outside the multiprocessor, but for constants.
TOUCHING = {"LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UTMALDG", "UTMASTG", "UBLKCP"}


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
    early: int  # of a programmatic launch: accesses of memory that stand before the wait for the kernel before


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


class Variant(NamedTuple):
    """What one launch compiles: a kernel, its argument types, constants and options."""

    module: str
    kernel: str
    specialization: str  # JSON of Triton's


@contextmanager
def _targeting(capability: int, run: Callable[..., Any]) -> Iterator[None]:
    """Inside, the target is ``capability`` and ``run`` stands in for launching a kernel."""
    original, assumed = JITFunction.run, launch.ASSUMED
    driver.set_active(_Stub(capability))
    JITFunction.run = run
    launch.ASSUMED = launch.architecture_for(divmod(capability, 10))
    try:
        yield
    finally:
        JITFunction.run, launch.ASSUMED = original, assumed
        driver.reset_active() if torch.cuda.is_available() else driver.set_active(_Stub(capability))


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

    with _targeting(capability, compile_only):
        yield found


@contextmanager
def variants(capability: int) -> Iterator[dict[Variant, None]]:
    """Inside, launches compile and run nothing: what each would compile is noted, in order, once.

    Tensors that a launch is given are zero afterwards, so that what is counted and indexed with them is in range.
    """
    found: dict[Variant, None] = {}
    original = JITFunction.run

    def note(fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[Variant(fn.module, fn.name, compile["specialization_data"])] = None
        return True  # compiles nothing

    def note_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        for x in args:
            if isinstance(x, torch.Tensor) and x.numel() < MOST_ZEROED and 0 not in x.stride():
                x.data.zero_()  # unseen by autograd, which would refuse a change of what it keeps
        return kernel

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    try:
        with _targeting(capability, note_only):
            yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = before


MOST_ZEROED = 1 << 26  # elements: larger tensors stay untouched, so that no memory backs them


def compile_variant(variant: Variant, capability: int) -> bool:
    """Puts a variant's binary into Triton's cache on disk; False: it lay there already."""
    hits: list[bool] = []

    def note(*, cache_hit: bool, **_: Any) -> None:
        hits.append(cache_hit)

    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = note
    try:
        with _targeting(capability, JITFunction.run):
            kernel.preload(variant.specialization)
    finally:
        triton.knobs.compilation.listener = before
    return not all(hits)


def disassembled(binary: bytes) -> list[str]:
    """Operations of a compiled kernel, in the order in which they stand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        found = subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?\s*([A-Z][A-Z0-9_.]*)", found, flags=re.MULTILINE)


def resources(architecture: str, name: str, variant: str, kernel: Any) -> Resources:
    """Reads a compiled kernel's binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    facts = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage.stdout)}
    operations = disassembled(kernel.asm["cubin"])
    families = [operation.split(".")[0] for operation in operations]
    kinds = [f for f in families if f.endswith("MMA") and f not in ("FMMA",)]
    matrix = max(set(kinds), key=kinds.count) if kinds else "-"
    touching = [n for n, family in enumerate(families) if family in TOUCHING]
    wait = operations.index(WAIT) if WAIT in operations else len(operations)
    loads = [o for o in operations if o.startswith(("LDG", "LDGSTS", "UTMALDG"))]
    return Resources(
        architecture, name.removesuffix("_kernel"), variant, kernel.metadata.num_warps, facts["REG"],
        sum(f in ("LDL", "STL") for f in families), facts["STACK"], kernel.metadata.shared,
        matrix, len(kinds), sum(".128" in o or o.startswith("UTMALDG") for o in loads), len(loads),
        sum(n < wait for n in touching) if kernel.metadata.launch_pdl else 0,
    )  # fmt: skip

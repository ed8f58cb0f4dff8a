"""What every launcher shares: the current device, tile configurations per architecture, accumulator types, float32
precision, autotuning, programmatic launches.

``configs.json`` maps architecture -> kernel -> "<bits>/<width>" to a tile configuration, so that a first call compiles one
variant and measures nothing; a kernel without entries of its own takes those of its family. ``TZN_AUTOTUNE=1`` times the
candidates of ``candidates.json`` once per kernel and shape class instead.

``TZN_PDL=1`` launches what inference launches programmatically, on devices that can (sm_90 and later): a kernel is started
while the one before it still runs. Its programs call `after_previous` before anything else: they wait until that one has
ended and what it wrote can be seen, and only then allow the next one to start. By induction nothing that a program reads
or overwrites is in use by any earlier kernel of the stream, whatever memory the allocator gives out again; a kernel
launched otherwise (PyTorch's, nvcc's, those of a backward pass) waits for the end of the one before it as ever.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

Given = ParamSpec("Given")
Result = TypeVar("Result")
Config = dict[str, int]  # tile sizes, num_warps, num_stages
FOLDER = Path(__file__).resolve().parent
ARCHITECTURES = ("sm80", "sm90", "sm100")
ASSUMED = "sm90"  # of tensors that are on no GPU: interpreted, or compiled ahead of time for what ``aot`` sets here
TUNED: dict[str, Config] = {}  # "<architecture> <kernel> <bits>/<width>" -> what autotuning found in this process
FITTING: dict[object, Config] = {}  # what a configuration that this device has no room for came down to
# Configurations with "maxnreg" were chosen where ahead-of-time compilation showed no spill: attention on sm_90 with 128
# registers, so that two programs fit on a multiprocessor, spills nothing with triton 3.6 and 20 instructions with 3.9.
LIMITS_REGISTERS = triton.__version__.startswith("3.6.")
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # programs run one after the other there
PROGRAMMATIC_FROM = 9  # major compute capability: Hopper
# Users of one tile loop: tuned each on its own, since their depths and neighbours differ, shipped with one set of entries.
FAMILIES = {
    "qkv_projection": "linear", "up_projection": "linear", "output_projection": "linear", "down_projection": "linear",
    "linear_gradient": "linear", "qkv_gradient": "linear",
    "down_gradient": "branch_gradient", "output_gradient": "branch_gradient",
    "lateral": "linear", "offsets": "head",
}  # fmt: skip
# Whose programs may take many tiles ("PER_SM" of a configuration, see tile_grid).
PERSISTENT = ("qkv_projection", "up_projection", "output_projection", "down_projection")


class Accumulator(NamedTuple):
    triton: tl.dtype
    torch: torch.dtype


def accumulator(dtype: torch.dtype) -> Accumulator:
    return Accumulator(tl.float64, torch.float64) if dtype == torch.float64 else Accumulator(tl.float32, torch.float32)


def block_width(width: int) -> int:
    """Columns a tile holds: a power of two that ``tl.dot`` takes."""
    return max(16, triton.next_power_of_2(width))


def precision(dtype: torch.dtype) -> str:
    """How float32 products run: three TF32 products on tensor cores (close to float32), or one where torch allows TF32.

    That is ``torch.set_float32_matmul_precision("high")`` or "medium". "ieee" would run on ordinary float32 units:
    ahead-of-time compilation showed thousands of spilled registers (2026-11).
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def after_previous(PDL: tl.constexpr):
    """First line of every kernel of an inference: what follows runs after the kernel before has ended."""
    if PDL and not INTERPRETED:
        gdc_wait()
        gdc_launch_dependents()


def programmatic(device: torch.device) -> dict[str, bool]:
    """Whether a kernel that calls `after_previous` is launched so: its constant and Triton's option."""
    wanted = os.environ.get("TZN_PDL") == "1" and torch.version.hip is None and _major(device) >= PROGRAMMATIC_FROM
    return {"PDL": True, "launch_pdl": True} if wanted else {"PDL": False}


def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else int(ASSUMED[2:]) // 10


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Inside, ``device`` is the current one if it is a CUDA device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def on_its_device(entry: Callable[Given, Result]) -> Callable[Given, Result]:
    """A launcher that runs on the device of its first tensor: Triton launches on the current one, whatever it is given."""

    @wraps(entry)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        device = _first_device([*args, *kwargs.values()])
        with nullcontext() if device is None else device_guard(device):
            return entry(*args, **kwargs)

    return run


def _first_device(values: Iterable[object]) -> torch.device | None:
    for value in values:
        if isinstance(value, Tensor):
            return value.device
        found = value if isinstance(value, torch.device) else None
        if found is None and isinstance(value, (list, tuple)):
            found = _first_device(value)
        if found is not None:
            return found
    return None


@cache
def _table(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name).read_text()))


def architecture(device: torch.device) -> str:
    """Entry of ``configs.json`` for a device: the newest architecture that is not newer than it."""
    return _architecture(device) if device.type == "cuda" else ASSUMED


@cache
def _architecture(device: torch.device) -> str:
    return architecture_for(torch.cuda.get_device_capability(device))


def architecture_for(capability: tuple[int, int]) -> str:
    fitting = [a for a in ARCHITECTURES if int(a[2:]) <= 10 * capability[0] + capability[1]]
    return fitting[-1] if fitting else ARCHITECTURES[0]


def bits_of(dtype: torch.dtype) -> str:
    return "16" if dtype.itemsize == 2 else "32"


def default_config(arch: str, kernel: str, dtype: torch.dtype, width: int) -> Config:
    """Shipped configuration: the narrowest entry that holds ``width`` columns, else the widest.

    The kernel's own entries, else its family's.
    """
    table = _table("configs.json")[arch]
    entries = table[kernel] if kernel in table else table[FAMILIES[kernel]]
    bits = bits_of(dtype)
    widths = sorted(int(key.split("/")[1]) for key in entries if key.startswith(bits + "/"))
    chosen = next((w for w in widths if w >= width), widths[-1])
    config = dict(entries[f"{bits}/{chosen}"])
    if not LIMITS_REGISTERS:
        config.pop("maxnreg", None)
    return config


def candidates(kernel: str) -> list[Config]:
    """Configurations that autotuning tries."""
    table = _table("candidates.json")
    tried = table.get(kernel, table.get(FAMILIES.get(kernel, ""), []))
    return [dict(c) for c in tried if "PER_SM" not in c or kernel in PERSISTENT]


def tile_grid(config: Config, across: int, rows: int, device: torch.device) -> tuple[tuple[int, int], Config]:
    """Grid of a kernel of tiles, ``across`` columns of them, and its constants.

    A program for every tile of ``rows``; where the configuration has "PER_SM" and tiles are more than that many programs
    on every multiprocessor, no more than those (PERSISTENT).
    """
    config = dict(config)
    held = config.pop("PER_SM", 0) * multiprocessors(device) // across
    down = triton.cdiv(rows, config["BLOCK_M"])
    persistent = 0 < held < down
    return (across, held if persistent else down), {**config, "PERSISTENT": persistent}


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; of no GPU those of an H100 SXM, of which ahead-of-time compilation and paper speak."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def launch(
    kernel: str, dtype: torch.dtype, width: int, run: Callable[[Config], None], device: torch.device
) -> None:  # fmt: skip
    """Runs a kernel with its configuration; ``run`` may be called repeatedly and must only write its own outputs.

    ``dtype``: of the products.
    """
    arch = architecture(device)
    config = default_config(arch, kernel, dtype, width)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if os.environ.get("TZN_AUTOTUNE") == "1" and not capturing:
        key = f"{arch} {kernel} {bits_of(dtype)}/{triton.next_power_of_2(width)}"
        if key not in TUNED:
            TUNED[key] = fastest([config, *candidates(kernel)], run, device)
        config = TUNED[key]
    key_of_room = (device, kernel, dtype, *config.items())
    fitting: Config | None = FITTING.get(key_of_room, config)
    while fitting is not None:
        try:
            run(fitting)
        except triton.runtime.errors.OutOfResources:  # GPUs of the same generation with less shared memory
            fitting = smaller(fitting)
            if fitting is None:
                raise
        else:
            if fitting is not config:
                FITTING[key_of_room] = fitting
            return


def smaller(config: Config) -> Config | None:
    """The next configuration that needs less shared memory: fewer stages, then half of the longest side."""
    if config.get("num_stages", 1) > 1:
        return {**config, "num_stages": config["num_stages"] - 1}
    sides = [name for name in config if name.startswith("BLOCK_")]
    if not sides:  # one BLOCK, which has to hold a whole band
        return None
    longest = max(sides, key=lambda name: config[name])
    return {**config, longest: config[longest] // 2} if config[longest] > 16 else None


def fastest(configs: list[Config], run: Callable[[Config], None], device: torch.device) -> Config:
    """The configuration with the smallest median time; one that needs too much or does not compile is passed over."""
    times = {}
    for number, config in enumerate(configs):
        try:
            times[number] = _milliseconds(partial(run, config), device)
        except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
            continue
        except RuntimeError as error:  # what Triton raises where its compiler gives up
            if "PassManager" not in str(error):
                raise
    return configs[min(times, key=lambda number: times[number])]


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        return warm_milliseconds(run)
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def warm_milliseconds(run: Callable[[], object], span: float = 1.0, rounds: int = 7) -> float:
    """Median time of a call among calls of itself, in one CUDA graph of about ``span`` milliseconds, on the current device.

    What the call reads lies in L2 if it fits there, as it does in inference, and launches cost what they cost in a graph.
    """

    def timed(call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        single = min(timed(run) for _ in range(3))
        repeats = max(1, min(200, round(span / max(single, 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                run()
        graph.replay()
        found = statistics.median(timed(graph.replay) for _ in range(rounds)) / repeats
    torch.cuda.current_stream().wait_stream(stream)
    return found

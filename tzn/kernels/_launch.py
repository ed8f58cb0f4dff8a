"""What every launcher shares: tile configurations per architecture, accumulator types, float32 precision, autotuning.

``configs.json`` maps architecture -> kernel -> "<bits>/<width>" to a tile configuration, so that a first call compiles one
variant and measures nothing. ``TZN_AUTOTUNE=1`` times the candidates of ``candidates.json`` once per shape class instead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

Config = dict[str, int]  # tile sizes, num_warps, num_stages
FOLDER = Path(__file__).resolve().parent
ARCHITECTURES = ("sm80", "sm90", "sm100")
ASSUMED = "sm90"  # of tensors that are on no GPU: interpreted, or compiled ahead of time for what ``aot`` sets here
TUNED: dict[str, Config] = {}  # "<architecture> <kernel> <bits>/<width>" -> what autotuning found in this process


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


@cache
def _table(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name).read_text()))


def architecture(device: torch.device) -> str:
    """Entry of ``configs.json`` for a device: the newest architecture that is not newer than it."""
    return _architecture(device) if device.type == "cuda" else ASSUMED


@cache
def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    fitting = [a for a in ARCHITECTURES if int(a[2:]) <= 10 * major + minor]
    return fitting[-1] if fitting else ARCHITECTURES[0]


def default_config(arch: str, kernel: str, dtype: torch.dtype, width: int) -> Config:
    """Shipped configuration: the narrowest entry that holds ``width`` columns, else the widest."""
    entries = _table("configs.json")[arch][kernel]
    bits = "16" if dtype.itemsize == 2 else "32"
    widths = sorted(int(key.split("/")[1]) for key in entries if key.startswith(bits + "/"))
    chosen = next((w for w in widths if w >= width), widths[-1])
    return dict(entries[f"{bits}/{chosen}"])


def candidates(kernel: str) -> list[Config]:
    """Configurations that autotuning tries."""
    return [dict(c) for c in _table("candidates.json").get(kernel, [])]


def launch(kernel: str, dtype: torch.dtype, width: int, run: Callable[[Config], None], device: torch.device) -> None:
    """Runs a kernel with its configuration; ``run`` may be called repeatedly and must only write its own outputs."""
    arch = architecture(device)
    config = default_config(arch, kernel, dtype, width)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if os.environ.get("TZN_AUTOTUNE") == "1" and not capturing:
        key = f"{arch} {kernel} {'16' if dtype.itemsize == 2 else '32'}/{triton.next_power_of_2(width)}"
        if key not in TUNED:
            TUNED[key] = fastest([config, *candidates(kernel)], run, device)
        config = TUNED[key]
    try:
        run(config)
    except triton.runtime.errors.OutOfResources:  # GPUs of the same generation with less shared memory
        run({**config, "num_stages": 1})


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
        return float(triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median"))
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)

"""One inference on paper, and the backward pass of a block: what they would take on a GPU, from the compiled kernels' own
resources. Nothing is run, nothing timed.

usage: python -m benchmarks.gpu.paper [--out FILE.md] [--shapes 1x2304 1x9216 1x18432 8x2304] [--title TEXT]
       [--backward | --bounds]

The THUMOS14 network in bfloat16 goes through ``tzn.inference.fixed.detect`` on tensors without values; every kernel that it
would launch is recorded (``benchmarks/lib/launches.py`` says what counts) and every Triton kernel compiled for sm_90, as
``make aot`` does. From the machine code: registers, shared memory, hence programs per multiprocessor (CTAs per SM) and waves.

    bytes      every tensor that a launch is given, once; every token active, every place of a capacity used
    floor      the larger of bytes / bandwidth and operations / matrix peak, of the data sheet
    expected   floor on the multiprocessors that the grid fills, plus LAUNCH, plus CHAIN for every wave, plus what kernels that
               go serially through their work need for that (``SERIAL``; ``PER_WAVE``: once a wave)

LAUNCH, PROGRAMMATIC, CHAIN, LOOP, PICK and REDUCTION are assumptions, as are the data sheets' peaks; ``benchmarks/run_gpu.sh``
measures what they should be. A second line of totals is with programmatic launches (``TZN_PDL=1``): PROGRAMMATIC in place of
LAUNCH from a Triton kernel to a Triton kernel, everywhere else a launch waits for the end of the one before.

``--bounds``: the most that could be gained by what is not built, or not switched on:

    split-K          each product in the best of 2, 4 and 8 parts in float32, with the launch that sums them; were both free
    persistent grid  CHAIN of all waves but the first, as if nothing overlapped; and of the waves of programs that find no
                     row, where a share of the tokens is active
    TMA              the instructions of a warp before the first product, one a cycle, in every wave
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.launches import Launch, block_backward, whole_inference
from benchmarks.lib.tables import table
from tzn.files import atomic_write

CAPABILITY = 90
LAUNCH = 1.0  # µs from the end of a node of a CUDA graph to the start of the next that depends on it: assumed
PROGRAMMATIC = 0.5  # µs of that where the next one has been started and waits for the end itself: assumed
CHAIN = 1.5  # µs of latency: a load from L2, work on it, a barrier or a store: assumed
LOOP = 0.05  # µs of an iteration whose loads come out of L1 and overlap with those of the next: assumed
PICK = 0.3  # µs of a pick of suppression: a loop over shared memory, two reductions of a warp, a barrier: assumed
REDUCTION = 0.05  # µs of a sum over all warps of a program: shuffles, shared memory, two barriers: assumed
SHAPES = ((1, 2304), (1, 9216), (1, 18432), (8, 2304))


class Device(NamedTuple):
    """Of the data sheet."""

    name: str
    bandwidth: float  # bytes / s
    matrix: float  # bfloat16 operations / s, dense
    processors: int = 132


DEVICES = (Device("H100 SXM", 3.35e12, 989e12), Device("H200", 4.8e12, 989e12))
# A multiprocessor of sm_90.
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 228 << 10, 2048, 32
SUPPRESSION = {"registers": 40, "shared": 48 << 10}  # of csrc/cuda, as `make cuda` prints them


class Cost(NamedTuple):
    """Of one launch."""

    programs: int  # CTAs
    resident: int  # per multiprocessor
    registers: int
    shared: int
    stack: int
    bytes: int
    operations: float  # of matrix products, two per multiply-add
    serial: float  # µs of dependent steps, one after the other
    serial_per_wave: float  # the same of every program

    def waves(self, device: Device) -> int:
        return math.ceil(self.programs / (self.resident * device.processors))

    def floor(self, device: Device) -> float:
        """In µs."""
        return 1e6 * max(self.bytes / device.bandwidth, self.operations / device.matrix)

    def expected(self, device: Device) -> float:
        """In µs."""
        rounds = math.ceil(self.programs / device.processors)
        busy = self.programs / (rounds * device.processors)
        work = 1e6 * max(self.bytes / device.bandwidth, self.operations / (device.matrix * busy))
        return work + LAUNCH + (CHAIN + self.serial_per_wave) * self.waves(device) + self.serial


# Operations of one launch from a kernel's arguments.
OPERATIONS: dict[str, Callable[[dict[str, Any]], float]] = {
    "qkv_kernel": lambda g: 6 * len(g["q_ptr"]) * g["D"] ** 2,
    "up_kernel": lambda g: 2 * len(g["hidden_ptr"]) * g["D"] * g["M"],
    "gated_residual_kernel": lambda g: 2 * len(g["a_ptr"]) * g["K"] * g["D"],
    "attention_forward_kernel": lambda g: 4 * g["q_ptr"].numel() * (2 * g["radius"] + 1),
    "conv_norm_kernel": lambda g: 6 * g["rows"] * g["C"] * g["N"],
    "head_kernel": lambda g: 6 * g["rows"] * g["C"] * g["N"],
    "offsets_kernel": lambda g: 6 * g["rows"] * g["C"] * 4,
    "lateral_kernel": lambda g: 2 * g["rows"] * g["K"] * g["N"],
    "attention_backward_queries_kernel": lambda g: 6 * g["q_ptr"].numel() * (2 * g["radius"] + 1),
    "attention_backward_keys_kernel": lambda g: 8 * g["q_ptr"].numel() * (2 * g["radius"] + 1),
    "attention_backward_kernel": lambda g: 10 * g["q_ptr"].numel() * (2 * g["radius"] + 1),
    "branch_gradient_kernel": lambda g: 2 * len(g["out_ptr"]) * g["D"] * g["K"],
    "linear_gradient_kernel": lambda g: 2 * len(g["out_ptr"]) * g["N"] * g["K"],
    "qkv_gradient_kernel": lambda g: 6 * len(g["out_ptr"]) * g["D"] ** 2,
    "weight_gradient_kernel": lambda g: 2 * len(g["grad_ptr"]) * g["N"] * g["K"],
}


def _select_steps(given: dict[str, Any]) -> int:
    """Chunks of the largest level in six passes: a count, four digits, the output."""
    chunks = math.ceil(given["points"] * given["classes"] / 2 / given["CHUNK"])
    return 6 * chunks


# µs of kernels that go through their work one piece after the other.
SERIAL: dict[str, Callable[[dict[str, Any]], float]] = {
    "select_kernel": lambda g: CHAIN * _select_steps(g),
    "dial_kernel": lambda g: CHAIN * (g["rounds"] + 1) * math.ceil(g["steps"] / g["TILE"]),
    "rank_kernel": lambda g: LOOP * math.ceil(g["topk"] / g["COMPARED"]),
    "best_picks_kernel": lambda g: LOOP * math.ceil(g["places"] / g["COMPARED"]),
    "suppress_groups": lambda g: 4 * LOOP * math.ceil(g["number"] / g["threads"]) + PICK * g["capacity"],
}

# As SERIAL, of every program, so once a wave.
PER_WAVE: dict[str, Callable[[dict[str, Any]], float]] = {
    # Two sums a bias offset and block of keys where they are not gathered first.
    "attention_backward_queries_kernel": lambda g: (
        0.0
        if g.get("GATHERED", False)
        else 2 * REDUCTION * (2 * g["radius"] + 1) * math.ceil((g["BLOCK_M"] + 2 * g["radius"]) / g["BLOCK_N"])
    ),
    # Blocks of rows of the table with most parts, each a load that the next one waits for.
    "sum_parts_kernel": lambda g: CHAIN * (math.ceil(max(g["numbers"]) / g["ROWS"]) - 1),
    "weight_gradient_kernel": lambda g: (
        REDUCTION
        * math.ceil(len(g["grad_ptr"]) / g["dw_ptr"].shape[0] / g["BLOCK_M"])  # of the bias, every block of rows
    ),
}


BLOCK_PRODUCTS = ("qkv_kernel", "up_kernel", "gated_residual_kernel")
PRODUCTS = (*BLOCK_PRODUCTS, "lateral_kernel")
PARTS = (2, 4, 8)
ACTIVE = (0.25, 0.1)  # shares of tokens
CLOCK = 1755.0  # cycles a µs: boost clock, assumed


def outputs(given: dict[str, Any]) -> int:
    """Elements that a product writes."""
    names = [name for name in ("q_ptr", "kv_ptr", "hidden_ptr", "out_ptr") if name in given]
    return sum(given[name].numel() for name in names)


def in_parts(found: Cost, elements: int, parts: int, device: Device) -> tuple[float, float]:
    """µs of a product whose depth is split, with the sum of its parts, and without what parts and their sum cost."""
    free = found._replace(programs=found.programs * parts)
    split = free._replace(bytes=found.bytes + 4 * parts * elements)
    summed = 1e6 * (4 * parts * elements) / device.bandwidth + LAUNCH + CHAIN
    return split.expected(device) + summed, free.expected(device)


def before_first_product(kernel: Any) -> int:
    """Instructions of a warp; all of them where no product is."""
    from tzn.kernels._aot import disassembled

    operations = disassembled(kernel.asm["cubin"])
    return next((n for n, name in enumerate(operations) if name.startswith("HGMMA")), len(operations))


def bounds(batch: int, steps: int, device: Device) -> list[list[str]]:
    """Lines of ``--bounds`` of one shape."""
    found = launches_and_costs(whole_inference, steps, batch)
    whole = sum(c.expected(device) for _, c in found)
    products = [(launch, c) for launch, c in found if launch.name in PRODUCTS]
    of_blocks = [(launch, c) for launch, c in products if launch.name in BLOCK_PRODUCTS]
    split, free = [], 0.0
    for launch, c in products:
        now, elements = c.expected(device), outputs(dict(launch.numbers))
        tried = [in_parts(c, elements, parts, device) for parts in PARTS]
        split.append(now - min(with_sum for with_sum, _ in tried))
        free += max(0.0, now - min(without for _, without in tried))
    waves = sum(c.waves(device) for _, c in of_blocks)
    idle = {
        share: sum(
            c.waves(device) - c._replace(programs=math.ceil(share * c.programs)).waves(device) for _, c in of_blocks
        )
        for share in ACTIVE
    }
    prologue = sum(before_first_product(launch.compiled) * c.waves(device) for launch, c in of_blocks) / CLOCK
    lines: list[tuple[str, float]] = [
        (f"split-K, best of {len(products)} products, with the sum of its parts", max(split)),
        (f"split-K in all {len(products)}, were parts and sums free", free),
        (f"persistent grid, all waves but the first ({waves - len(of_blocks)})", CHAIN * (waves - len(of_blocks))),
        *((f"persistent grid, {100 * a:.0f} % active: waves without rows ({n})", CHAIN * n) for a, n in idle.items()),
        (f"TMA, instructions before the first product ({waves} waves)", prologue),
    ]
    return [
        [f"{batch} x {steps}", name, f"{gain:.1f}", f"{100 * gain / whole:.1f}", f"{whole:.0f}"] for name, gain in lines
    ]


class Usage(NamedTuple):
    """Of a compiled Triton kernel."""

    warps: int
    registers: int
    stack: int  # bytes per thread: where spilled registers go
    shared: int


def usage(kernel: Any) -> Usage:
    from tzn.kernels._aot import TOOLS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        said = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    facts = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", said.stdout)}
    return Usage(kernel.metadata.num_warps, facts["REG"], facts["STACK"], kernel.metadata.shared)


def cost(launch: Launch, resources: Callable[[Launch], Usage]) -> Cost:
    given = dict(launch.numbers)
    operations, serial = 0.0, SERIAL.get(launch.name, lambda g: 0.0)(given)
    if launch.kind == "triton":
        found = resources(launch)
        threads, registers, shared, stack = 32 * found.warps, found.registers, found.shared, found.stack
        programs = math.prod(given["grid"])
        operations = OPERATIONS.get(launch.name, lambda g: 0.0)(given)
    elif launch.kind == "nvcc":
        threads, registers, shared, stack = given["threads"], SUPPRESSION["registers"], SUPPRESSION["shared"], 0
        programs = given["programs"]
    else:
        # PyTorch's: four elements a thread, 128 threads; a product of matrices: tiles of 128 x 128.
        threads, registers, shared, stack = 128, 32, 0, 0
        programs = math.ceil(max(x.numel() for x in launch.tensors) / 512)
        if launch.name in ("mm", "addmm"):
            left, right = launch.tensors[-3], launch.tensors[-2]
            operations = 2.0 * left.shape[0] * left.shape[1] * right.shape[1]
            threads, registers, shared = 256, 168, 128 << 10
            programs = math.ceil(left.shape[0] / 128) * math.ceil(right.shape[1] / 128)
    warps = max(threads // 32, 1)
    of_registers = REGISTERS // (warps * 256 * math.ceil(max(registers, 1) / 8))  # given out in 256 a warp
    resident = max(1, min(of_registers, SHARED // (shared + 1024), THREADS // threads, BLOCKS))
    per_wave = PER_WAVE.get(launch.name, lambda g: 0.0)(given)
    return Cost(max(programs, 1), resident, registers, shared, stack, launch.bytes, operations, serial, per_wave)


def launches_and_costs(what: Callable[..., list[Launch]], steps: int, batch: int) -> list[tuple[Launch, Cost]]:
    from triton.runtime.jit import JITFunction

    from tzn.kernels._aot import collect

    kept: dict[int, Usage] = {}

    def resources(launch: Launch) -> Usage:
        key = id(launch.compiled)
        if key not in kept:
            kept[key] = usage(launch.compiled)
        return kept[key]

    with collect(CAPABILITY):
        compile_only = JITFunction.run
        found = what(steps, batch, compile_only=lambda *a, **k: compile_only(*a, **k))
    return [(launch, cost(launch, resources)) for launch in found]


def report(what: Callable[..., list[Launch]], batch: int, steps: int, title: str) -> tuple[str, list[list[str]]]:
    """Table of one shape by kernel, and its lines of totals."""
    found = launches_and_costs(what, steps, batch)
    names = list(dict.fromkeys((launch.kind, launch.name) for launch, _ in found))
    rows = []
    for kind, name in names:
        mine = [c for launch, c in found if (launch.kind, launch.name) == (kind, name)]
        device = DEVICES[-1]
        rows.append([
            name.removesuffix("_kernel"), kind, str(len(mine)), _span([c.registers for c in mine]) if kind != "torch" else "-",
            _span([c.shared >> 10 for c in mine]) if kind != "torch" else "-",
            _span([c.resident for c in mine]) if kind != "torch" else "-", _span([c.programs for c in mine]),
            str(sum(c.waves(device) for c in mine)), f"{sum(c.bytes for c in mine) / 1e6:.2f}",
            *_times(mine, 1),
        ])  # fmt: skip
    costs = [c for _, c in found]
    spilling = sum(c.stack > 0 for c in costs)
    able = ["PDL" in launch.numbers for launch, _ in found]
    edges = sum(a and b for a, b in itertools.pairwise(able))
    totals = [
        [
            f"{batch} x {steps}", name, str(len(found)), str(sum(c.waves(DEVICES[-1]) for c in costs)),
            f"{sum(c.bytes for c in costs) / 1e6:.0f}", f"{sum(c.operations for c in costs) / 1e9:.1f}",
            *_times(costs, 0, saved),
        ]
        for name, saved in (
            (title, 0.0), (f"{title}, {edges} launches programmatic", edges * (LAUNCH - PROGRAMMATIC)),
        )[: 1 + (edges > 0)]
    ]  # fmt: skip
    head = ["kernel", "by", "launches", "regs", "shared KB", "CTAs per SM", "CTAs", "waves", "MB", *_columns()]
    said = f"{len(found)} launches, {spilling} of kernels that spill."
    text = f"### {title}: batch {batch}, T = {steps}\n\n{said}\n\n{table(head, rows)}\n"
    return text, totals


def _times(costs: list[Cost], digits: int, saved: float = 0.0) -> list[str]:
    """Under :func:`_columns`; ``saved`` µs between launches."""
    found = [
        time for d in DEVICES for time in (sum(c.floor(d) for c in costs), sum(c.expected(d) for c in costs) - saved)
    ]
    return [f"{time:.{digits}f}" for time in found]


def _columns() -> list[str]:
    return [f"{d.name} {what} µs" for d in DEVICES for what in ("floor", "expected")]


def _span(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"


TOTALS = ["shape", "program", "launches", "waves", "MB", "GFLOP", *_columns()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write it here, as Markdown")
    parser.add_argument("--title", default="now", help="name of the program in the tables")
    parser.add_argument("--shapes", nargs="+", default=[f"{batch}x{steps}" for batch, steps in SHAPES])
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--backward", action="store_true", help="of a block in training, in place of an inference")
    other.add_argument(
        "--bounds", action="store_true", help="the most that could be gained by what is not built or not on"
    )
    arguments = parser.parse_args()
    if arguments.bounds:
        rows = [
            line
            for shape in arguments.shapes
            for line in bounds(*(int(x) for x in shape.split("x")), device=DEVICES[0])
        ]
        text = table(["shape", "what", "at most µs", "%", "of µs"], rows)
        print(f"{DEVICES[0].name}\n\n{text}")
        if arguments.out is not None:
            with atomic_write(arguments.out) as file:
                file.write(text + "\n")
        return
    parts, totals = [], []
    for shape in arguments.shapes:
        batch, steps = (int(x) for x in shape.split("x"))
        text, total = report(block_backward if arguments.backward else whole_inference, batch, steps, arguments.title)
        print(text, flush=True)
        parts.append(text)
        totals += total
    text = "\n".join([table(TOTALS, totals), "", *parts])
    print(table(TOTALS, totals))
    if arguments.out is not None:
        with atomic_write(arguments.out) as file:
            file.write(text)


if __name__ == "__main__":
    main()

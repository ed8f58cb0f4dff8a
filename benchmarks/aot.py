"""Compiles every Triton kernel for GPUs that are not here and prints what each takes: ``make aot``.

usage: python -m benchmarks.aot [--all] [--only GROUP]... [--architecture 90]... [--out FILE.json] [--processes 2]

For sm_80, sm_90 and sm_100 to cubin, at the shapes of the THUMOS configuration (T = 2304, width 512, window 19; blocks also
with the tiles of long batches). By default the main configurations: bfloat16 and float32, 64 and 128 channels per head.
``--all`` (or TZN_AOT=all): float16 too, and 32 and 256 channels. Columns: registers per thread, instructions that spill, shared
memory in KB, tensor-core instructions, and how many of the loads from global memory are 128 bits wide.

It fails where a main configuration spills, or where a product of matrices is not on tensor cores (HGMMA on sm_90 and
UTC*MMA on sm_100 where the tile is large enough for them, HMMA elsewhere). With TZN_PDL=1, programmatic launches, also where a
kernel touches memory before it waits for the one before. Nothing is run, so nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.lib.tables import table
from tzn.files import atomic_write

ARCHITECTURES = (80, 90, 100)
STEPS, WIDTH, WINDOW, HIDDEN = 2304, 512, 19, 2048
PRODUCTS = (
    "attention", "qkv", "up", "gated_residual", "branch_gradient", "linear_gradient",
    "weight_gradient", "conv_norm", "head", "offsets", "lateral",
)  # fmt: skip
MAIN_DTYPES, MAIN_WIDTHS = ("bfloat16", "float32"), (64, 128)
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}  # bytes a block may have
CANDIDATE = ", candidate"  # of a variant that nothing runs before it has been tuned
ALL_DTYPES, ALL_WIDTHS = ("bfloat16", "float16", "float32"), (32, 64, 128, 256)

Task = tuple[int, str, str, int]  # compute capability, group, dtype, channels per head (0: does not matter)


def attention(dtype: torch.dtype, width: int) -> None:
    """Dense rows with a mask and query subset, forward and backward."""
    from tzn.kernels.active_tokens import compact
    from tzn.kernels.local_attention import attention_backward, attention_forward

    heads = WIDTH // width
    q, k, v, grad, dq, dk, dv = (torch.zeros(1, heads, STEPS, width, dtype=dtype) for _ in range(7))
    bias, gate = torch.zeros(heads, WINDOW), torch.ones(1, STEPS)
    lists = compact(gate, gate > 0, 1, STEPS, WINDOW, gate.device)
    times = torch.zeros(STEPS, dtype=torch.int32)  # packed recordings
    for chosen, moments in ((lists, None), (None, None), (None, times)):
        stats = attention_forward(q, k, v, bias, chosen, STEPS, WINDOW, grad, moments)
        attention_backward(grad, q, k, v, bias, grad, stats, chosen, STEPS, WINDOW, dq, dk, dv, moments)


def block(dtype: torch.dtype, width: int, batch: int = 1) -> None:
    """Forward and backward; with 16-bit weights x is also float32, as under autocast."""
    from tzn.kernels import variable_depth_block as kernels
    from tzn.nn import VariableDepthBlock

    weights = list(VariableDepthBlock(WIDTH, WIDTH // width, WINDOW, HIDDEN / WIDTH).weights())
    given = [w.detach().to(dtype) for w in weights]
    gate = torch.ones(batch, STEPS)
    for kind in dict.fromkeys((dtype, torch.float32)):
        x = torch.zeros(batch, STEPS, WIDTH, dtype=kind)
        out, saved = kernels.forward(x, gate, given, gate > 0, keep=True)
        kernels.backward(out, x, gate, given, saved)


def long_block(dtype: torch.dtype, width: int) -> None:
    """More rows than the tiles of short recordings are for."""
    block(dtype, width, batch=2)


def short_block(dtype: torch.dtype, width: int) -> None:
    """Inference with the tiles of few rows: the coarse levels of a pyramid, with a mask and with a gate."""
    from tzn.kernels import variable_depth_block as kernels
    from tzn.nn import VariableDepthBlock

    weights = [
        w.detach().to(dtype) for w in VariableDepthBlock(WIDTH, WIDTH // width, WINDOW, HIDDEN / WIDTH).weights()
    ]
    for steps in (STEPS, 512):
        x, gate = torch.zeros(1, steps, WIDTH, dtype=dtype), torch.ones(1, steps)
        for given, mask in ((None, None), (None, gate > 0), (gate, gate > 0)):
            kernels.forward(x, given, weights, mask, keep=False)


def persistent_block(dtype: torch.dtype, width: int) -> None:
    """Programs that take many tiles: what autotuning may choose for long recordings, with a gate, a mask, and neither."""
    from tzn.kernels import _launch as launch
    from tzn.kernels import variable_depth_block as kernels
    from tzn.nn import VariableDepthBlock

    steps, shipped = 8 * STEPS, launch.default_config
    weights = [
        w.detach().to(dtype) for w in VariableDepthBlock(WIDTH, WIDTH // width, WINDOW, HIDDEN / WIDTH).weights()
    ]
    x, gate = torch.zeros(1, steps, WIDTH, dtype=dtype), torch.ones(1, steps)
    for config in (c for c in launch.candidates("up_projection") if "PER_SM" in c):

        def chosen(arch: str, kernel: str, *rest: Any, config: launch.Config = config) -> launch.Config:
            return config if kernel in launch.PERSISTENT else shipped(arch, kernel, *rest)

        with mock.patch.object(launch, "default_config", chosen):
            for given, mask in ((gate, gate > 0), (None, gate > 0), (None, None)):
                kernels.forward(x, given, weights, mask, keep=False)


def decoding(dtype: torch.dtype, width: int) -> None:
    """Crossings, candidates, segments and pairs, always in float32; suppression is nvcc's (``make cuda``)."""
    from tzn.kernels import boundary_crossings, decode_segments, nms, pair_segments, select_candidates

    fields = torch.zeros(2, STEPS)
    for estimator in boundary_crossings.ESTIMATORS:
        found = boundary_crossings.boundary_crossings(
            fields, fields, estimator=estimator, vote_window=4, min_slope=0.5, mask=fields > 0
        )
    ends = (found.position, found.std, found.counts)
    scores = torch.zeros(2, 4560, 20)
    order = torch.arange(4560), torch.tensor([0, 2304, 3456, 4560])
    select_candidates.select_candidates(scores, *order, min_score=0.001, topk=2000, capacity=6000)
    offset = torch.zeros(2, 4096, 2)
    decode_segments.decode_segments(offset[..., 0], offset, offset, ends, ends, 3.0)
    nms.best_picks(torch.zeros(2, 20, 200, dtype=torch.int32), torch.zeros(2, 20, 200), offset, 200)
    pair_segments.pair_scores((ends[0], ends[2]), (ends[0], ends[2]), scores[:, :STEPS], 16)


def layers(dtype: torch.dtype, width: int) -> None:
    """What runs around the blocks in inference."""
    from tzn.kernels import fused, zoom

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    x, mask, norm = zeros(1, STEPS, WIDTH), torch.ones(1, STEPS, dtype=torch.bool), (zeros(WIDTH), zeros(WIDTH))
    narrow = WIDTH // 2
    fused.conv_norm(x, zeros(WIDTH, 3 * WIDTH), None, *norm, mask, 1e-5)
    hidden = fused.conv_norm(x, zeros(narrow, 3 * WIDTH), None, zeros(narrow), zeros(narrow), mask, 1e-5)
    fused.class_scores(hidden, zeros(20, 3 * narrow), zeros(20), mask)
    fused.fields(hidden, zeros(4, 3 * narrow), zeros(4), 8.0, 0.05)
    two, level = (zeros(2, 3 * narrow), zeros(2)), torch.zeros(STEPS, dtype=torch.int64)
    fused.offsets(hidden, *two, *two, zeros(6), level, torch.zeros(STEPS), 0.02, 1.4)
    fused.flatten_levels([x], [mask], [(*norm, 1e-5)])
    half, half_mask = fused.halve(x, mask)
    context = fused.lateral(half, zeros(narrow, WIDTH), zeros(narrow), half_mask, None, fused.ALONE)
    fused.lateral(x, zeros(narrow, WIDTH), zeros(narrow), mask, context, fused.DOUBLED)
    fused.lateral(x, zeros(narrow, WIDTH), zeros(narrow), mask, hidden, fused.SAME)
    fused.standardise(x, *norm, mask)
    logits, _, _ = fused.gates(zeros(1, STEPS), None, 3, 0.05)
    fused.dial(logits, mask, 0.5, 3.0, 0.05, 50)
    raw = torch.zeros(STEPS, 6)
    for gate, following in ((None, logits), (logits, logits), (logits, None)):
        dial = zoom.Dial(0.05, 0.0, 1.4, (0.1, 0.3), full=False)
        zoom.read_exit(x, (*norm, 1e-5), (zeros(6, WIDTH), zeros(6)), raw, mask, gate, following, torch.zeros(1), dial)
    zoom.fields(raw, mask.shape, 8.0, 0.05)


GROUPS: dict[str, Callable[[torch.dtype, int], None]] = {
    "block": block, "long_block": long_block, "short_block": short_block,
    "persistent_block": persistent_block, "attention": attention, "layers": layers, "decoding": decoding,
}  # fmt: skip


def tasks(everything: bool, groups: Sequence[str], architectures: Sequence[int]) -> Iterator[Task]:
    """The longest first, so that processes end together."""
    for capability in architectures:
        found: list[Task] = []
        for dtype in ALL_DTYPES if everything else MAIN_DTYPES:
            found.append((capability, "block", dtype, 128))
            if dtype != "float32":  # has the same tiles for any number of rows
                found += [(capability, group, dtype, 128) for group in ("long_block", "persistent_block")]
            found.append((capability, "short_block", dtype, 128))
        for dtype in ALL_DTYPES if everything else MAIN_DTYPES:
            for width in ALL_WIDTHS if everything else MAIN_WIDTHS:
                if everything or (dtype, width) != ("float32", 128):  # the block has that one
                    found.append((capability, "attention", dtype, width))
            found.append((capability, "layers", dtype, 0))
        found.append((capability, "decoding", "float32", 0))
        yield from (task for task in found if task[1] in groups)


def compile_task(task: Task) -> list[dict[str, object]]:
    """Resources of every variant that a group launches."""
    from tzn.kernels._aot import collect, resources

    capability, group, dtype, width = task
    torch.set_num_threads(1)
    with collect(capability) as found, torch.no_grad():
        GROUPS[group](getattr(torch, dtype), width)
    variant = dtype + (f"/{width}" if width else "") + (CANDIDATE if group == "persistent_block" else "")
    distinct = dict.fromkeys(resources(f"sm_{capability}", name, variant, kernel) for name, kernel in found)
    return [row._asdict() for row in distinct]


def faults(rows: list[dict[str, object]]) -> list[str]:
    """What is wrong with main configurations."""
    found = []
    for row in rows:
        name = f"{row['architecture']} {row['kernel']} {row['variant']}"
        dtype, _, width = str(row["variant"]).removesuffix(CANDIDATE).partition("/")
        main = (
            not str(row["variant"]).endswith(CANDIDATE)
            and dtype in MAIN_DTYPES
            and (not width or int(width) in MAIN_WIDTHS)
        )
        if main and row["spills"]:
            found.append(f"{name}: {row['spills']} instructions spill registers")
        if int(str(row["shared"])) > SHARED_LIMIT[str(row["architecture"])]:
            found.append(f"{name}: {row['shared']} bytes of shared memory are more than there are")
        if row["early"]:
            found.append(f"{name}: {row['early']} accesses of memory before the wait for the kernel before")
        if str(row["kernel"]).startswith(PRODUCTS) and row["matrix"] == "-":
            found.append(f"{name}: no tensor-core instructions")
    return found


def table_of(rows: list[dict[str, object]]) -> str:
    head = ["arch", "kernel", "variant", "warps", "regs", "spills", "shared KB", "matrix", "128-bit loads"]
    plain = ("architecture", "kernel", "variant", "warps", "registers", "spills")
    return table(head, [
        [*(str(r[key]) for key in plain), f"{r['shared'] / 1024:.1f}",  # type: ignore[operator]
         "-" if r["matrix"] == "-" else f"{r['matrix_count']} {r['matrix']}", f"{r['wide_loads']} of {r['loads']}"]
        for r in rows
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", default=os.environ.get("TZN_AOT") == "all")
    parser.add_argument("--only", choices=GROUPS, action="append", help="default: every group")
    parser.add_argument("--architecture", type=int, choices=ARCHITECTURES, action="append", help="default: all three")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled")
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        parts = pool.imap_unordered(
            compile_task,
            tasks(arguments.all, arguments.only or tuple(GROUPS), arguments.architecture or ARCHITECTURES),
        )
        rows = [row for part in parts for row in part]
    rows.sort(key=lambda r: (int(str(r["architecture"])[3:]), str(r["kernel"]), str(r["variant"])))
    print(table_of(rows))
    if arguments.out is not None:
        with atomic_write(arguments.out) as file:
            json.dump(rows, file, indent=1)
    wrong = faults(rows)
    spilling = sum(bool(row["spills"]) for row in rows)
    print(
        f"\ntriton {metadata.version('triton')}: {len(rows)} variants compiled in {time.perf_counter() - begin:.0f} s, "
        f"{spilling} of them spill, {len(wrong)} faults"
    )
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

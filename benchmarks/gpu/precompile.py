"""Compiles what the other stages will launch, in many processes side by side, before any of them has to wait for it.

The cases of all stages run on CPU tensors while a stub driver names the target (``tzn/kernels/_aot.py``): launches are only
noted. What they would compile is then compiled, each variant once, into Triton's cache on disk, where the stages find it. A row
per case that could not be followed and per variant that does not compile, and one with the sums.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.stage import CUT, Stage
from benchmarks.lib.provenance import RESULTS, parser
from tzn.kernels._aot import Variant, compile_variant, variants

STAGES = ("parity", "small_kernels", "op_times", "end_to_end", "autotune")
DRY = {("parity", "crossings"), ("small_kernels", "decoding")}  # of a dry run: few kernels that compile fast

Unit = tuple[str, str, int]  # stage, group, number of the case in it


def cases_of(stage: str, group: str, dry: bool) -> list[Any]:
    given = Stage(stage, Path(), dry, time.monotonic() + 1e6, compiling=True)
    return dict(importlib.import_module(f"benchmarks.gpu.{stage}").GROUPS)[group](given)  # type: ignore[no-any-return]


def units(dry: bool) -> list[Unit]:
    return [
        (stage, group, number)
        for stage in STAGES
        for group, _ in importlib.import_module(f"benchmarks.gpu.{stage}").GROUPS
        if not dry or (stage, group) in DRY
        for number, case in enumerate(cases_of(stage, group, dry))
        if case.compiles
    ]


def prepare() -> None:
    """A process of the pool: one thread, and Triton's kernels for CPU tensors, whose launches are noted only and whose values,
    which nothing computes, are not looked at, as those of CUDA tensors are not."""
    from tzn.ops import _backend, _checks

    looks = _checks.checks_values
    for module in list(sys.modules.values()):  # those loaded already have it by name
        if getattr(module, "checks_values", None) is looks:
            module.checks_values = lambda tensor: False  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    os.environ["TZN_BACKEND"] = "triton"
    _backend._interpreted = lambda: True
    _backend._missing_triton.cache_clear()


def follow(unit: Unit, capability: int, dry: bool) -> list[Variant]:
    stage, group, number = unit
    case = cases_of(stage, group, dry)[number]
    with variants(capability) as found:
        case.run()
    return list(found)


class Progress:
    """Work in a pool: cases first, then what they found."""

    def __init__(self, s: Stage, capability: int, processes: int) -> None:
        self.s, self.capability = s, capability
        self.answers: queue.Queue[tuple[str, Any, Any]] = queue.Queue()
        self.known: set[Variant] = set()
        self.waiting: dict[tuple[str, Any], dict[str, Any]] = {}
        self.sums = {"cases": 0, "variants": 0, "compiled": 0, "found in the cache": 0}
        self.failed = 0
        self.pool = multiprocessing.get_context("spawn").Pool(processes, prepare)

    def submit(self, kind: str, what: Any, shown: dict[str, Any], function: Any, *given: Any) -> None:
        self.waiting[kind, what] = shown
        self.pool.apply_async(
            function, given, callback=lambda found: self.answers.put((kind, what, found)),
            error_callback=lambda error: self.answers.put((kind, what, error)),
        )  # fmt: skip

    def run(self) -> int:
        begin = time.monotonic()
        for unit in units(self.s.dry):
            stage, group, number = unit
            what = cases_of(stage, group, self.s.dry)[number].what
            self.submit("case", unit, {"stage": stage, **what}, follow, unit, self.capability, self.s.dry)
        while self.waiting:
            try:
                kind, what, found = self.answers.get(timeout=max(self.s.deadline - time.monotonic(), 0.01))
            except queue.Empty:
                break
            shown = self.waiting.pop((kind, what))
            if isinstance(found, BaseException):
                self.failed += 1
                self.s.record(shown, {"error": f"{type(found).__name__}: {found}"[:400]})
            elif kind == "case":
                self.sums["cases"] += 1
                for variant in found:
                    if variant not in self.known:
                        self.known.add(variant)
                        self.submit(
                            "variant", variant, {"kernel": variant.kernel}, compile_variant, variant, self.capability
                        )
            else:
                self.sums["variants"] += 1
                self.sums["compiled" if found else "found in the cache"] += 1
        self.pool.terminate()
        self.s.skipped = list(self.waiting.values())
        self.s.record({"row": "all", "capability": self.capability}, {**self.sums, "seconds": time.monotonic() - begin})
        return self.s.close()


def main() -> int:
    arguments = parser(__doc__, RESULTS / "gpu")
    arguments.add_argument("--dry-run", action="store_true", help="a few small cases, for sm_90, without a GPU")
    arguments.add_argument("--seconds", type=float, default=60.0, help="stop after so long")
    arguments.add_argument("--processes", type=int, help="default: all cores but two, at most 14")
    arguments.add_argument("--resume", action="store_true", help="nothing to resume here: ends at once")
    options = arguments.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        arguments.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled")
    if options.resume:
        return CUT
    if not options.dry_run and not torch.cuda.is_available():
        arguments.error("no CUDA device to compile for; --dry-run compiles for sm_90")
    major, minor = (9, 0) if options.dry_run else torch.cuda.get_device_capability()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the processes: they need none, and each would take memory of it
    s = Stage("precompile", options.out, options.dry_run, time.monotonic() + options.seconds, compiling=True)
    processes = options.processes or max(1, min(14, (os.cpu_count() or 1) - 2))
    return Progress(s, 10 * major + minor, processes).run()


if __name__ == "__main__":
    sys.exit(main())

"""Shared by the stages of ``benchmarks/run_gpu.sh``: cases in groups, timing, and results that survive whatever ends a stage.

A stage is a list of groups, a group a list of cases, a case a row of results. All rows are known before the first one runs, so
those that time left out are listed in the file (``skipped``), however the process ended. A stage ends with 0, 1 (a row
failed), 2 (rows were skipped), or LOST: the device takes no more work from this process, and ``--resume`` in a new one goes
on with the next group.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.lib import parity
from benchmarks.lib.contenders import clustered_depth
from benchmarks.lib.provenance import RESULTS, facts, parser, write_json
from tzn.kernels._launch import warm_milliseconds
from tzn.ops._backend import missing_cuda, missing_native

WIDTH, WINDOW = 512, 19
FAILED, CUT, LOST = 1, 2, 75


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: what it is, and what finds its figures.

    Attributes:
        compiles: it launches kernels of ours, so "precompile" runs it before anybody waits for them.
    """

    what: dict[str, Any]
    run: Callable[[], dict[str, Any]]
    compiles: bool = True


Cases = Callable[["Stage"], list[Case]]
Groups = Sequence[tuple[str, Cases]]


@dataclasses.dataclass
class Stage:
    """One stage: where it runs, how large, until when, and what it has found.

    Attributes:
        dry: every line runs, on the CPU in Triton's interpreter, at sizes where that takes seconds.
        compiling: nothing is compared or timed: kernels that a case launches are compiled, on CPU tensors (``precompile``).
    """

    name: str
    out: Path
    dry: bool
    deadline: float
    compiling: bool = False
    resume: bool = False
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    groups: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry or self.compiling else "cuda")

    @property
    def low(self) -> torch.dtype:
        """The 16-bit type: the interpreter computes bfloat16 products wrongly."""
        return torch.float16 if self.dry else torch.bfloat16

    @property
    def on_gpu(self) -> bool:
        return not self.dry and not self.compiling

    @property
    def file(self) -> Path:
        return self.out / f"{self.name}.json"

    def pick(self, real: Any, dry: Any) -> Any:
        return dry if self.dry else real

    def expired(self) -> bool:
        """Whether the stage should begin nothing more."""
        return time.monotonic() > self.deadline

    def run(self, groups: Groups) -> int:
        """Runs the cases of all groups that no earlier process began; returns the exit code."""
        plan = [(name, cases(self)) for name, cases in groups]
        if self.resume:
            self._take_over()
        self.skipped = [case.what for name, cases in plan if name not in self.groups for case in cases]
        self._write()
        for name, cases in plan:
            if name in self.groups:
                continue
            if self.expired():
                break
            self.groups[name] = "begun"
            self._write()  # should the process end here, the next one does not begin the same group again
            for number, case in enumerate(cases):
                if self.expired():
                    break
                self.record(case.what, self.attempt(case))
                if self._device_is_lost():
                    for other in cases[number + 1 :]:
                        self.record(other.what, {"error": "not run: the device was lost in the row before"})
                    self.groups[name] = "lost"
                    self._write()
                    return LOST
            else:
                self.groups[name] = "done"
        return self.close()

    def close(self) -> int:
        """Prints what there is to say at the end; the exit code."""
        self._write()
        failed = [row for row in self.rows if "error" in row]
        print(f"{self.name}: {len(self.rows)} rows, {len(failed)} failed, {len(self.skipped)} skipped for want of time")
        for title, rows in (("failed", failed), ("skipped", self.skipped)):
            for row in rows:
                print(f"  {title}: " + _line(row))
        return FAILED if failed else CUT if self.skipped else 0

    def attempt(self, case: Case) -> dict[str, Any]:
        """A case's figures, or the error instead: one row that fails does not end the stage."""
        begin = time.monotonic()
        try:
            found = case.run()
            if self.on_gpu:
                torch.cuda.synchronize()  # an error on the device belongs to the row that made it
        except (Exception, SystemExit) as error:  # SystemExit: no parity
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        return {**found, "seconds": round(time.monotonic() - begin, 2)}

    def record(self, what: dict[str, Any], found: dict[str, Any]) -> None:
        """Adds a row; the file is complete after every one."""
        self.rows.append({**what, **found})
        self.skipped = [other for other in self.skipped if other != what]
        print(_line(self.rows[-1]), flush=True)
        self._write()

    def _take_over(self) -> None:
        """What the process before this one found. A group that it did not leave in order is closed with an error."""
        content = json.loads(self.file.read_text())
        self.rows, self.groups = content["rows"], content["groups"]
        for name, state in self.groups.items():
            if state == "begun":
                self.groups[name] = "lost"
                self.rows.append(
                    {"group": name, "error": "the process ended in this group, whose other rows were not run"}
                )

    def _device_is_lost(self) -> bool:
        if not self.on_gpu:
            return False
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.device).item()
        except RuntimeError:
            return True
        return False

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        known = {**_facts(self.device.type), **({"dry_run": "times mean nothing"} if self.dry else {})}
        state = {"groups": self.groups, "rows": self.rows, "skipped": self.skipped}
        write_json(self.file, {**known, **state})

    def same(self, name: str, given: Callable[[], Any], wanted: Callable[[], Any], *, rtol: float, atol: float) -> None:
        """Both run and compared; while compiling only what ``given`` launches counts.

        ``atol`` is a share of the largest value wanted where that is larger than 1.

        Raises:
            NoParity: they differ.
        """
        found = given()
        if not self.compiling:
            right = wanted()
            largest = max((float(x.abs().max()) for x in _tensors(right) if x.numel()), default=1.0)
            parity.same(name, found, right, rtol=rtol, atol=atol * max(largest, 1.0))

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Median time of a call on the device that finds nothing of its own in L2."""
        if self.on_gpu:
            return float(triton.testing.do_bench(run, warmup=10, rep=60, return_mode="median"))
        return self._once(run)

    def graphed(self, run: Callable[[], Any]) -> dict[str, float]:
        """Medians of a call as a CUDA graph: among calls of itself, as in inference, and with L2 emptied before."""
        if not self.on_gpu:
            return {"milliseconds": self._once(run), "cold_milliseconds": 0.0}
        return {"milliseconds": warm_milliseconds(run), "cold_milliseconds": self.milliseconds(self.graph_of(run))}

    def replayed(self, replay: Callable[[], Any], rounds: int = 7) -> float:
        """Median time of a CUDA graph among replays of itself."""
        found = []
        replay()
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10):
                replay()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 10)
        return statistics.median(found)

    def graph_of(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """``run`` as a CUDA graph (elsewhere: itself)."""
        if not self.on_gpu:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        return graph.replay

    def compiled(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` under ``torch.compile`` (dry: traced to one graph, without a compiler)."""
        return torch.compile(run, dynamic=False, fullgraph=True, backend="eager" if self.dry else "inductor")

    def _once(self, run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)


def stage(name: str, description: str | None) -> Stage:
    arguments = parser(description, RESULTS / "gpu")
    arguments.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU in Triton's interpreter")
    arguments.add_argument("--seconds", type=float, default=100.0, help="begin nothing new after so long")
    arguments.add_argument(
        "--resume", action="store_true", help="go on after the group that the process before ended in"
    )
    options = arguments.parse_args()
    os.environ.setdefault("TZN_BACKEND", "triton" if options.dry_run else "auto")
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        arguments.error("--dry-run needs TRITON_INTERPRET=1 in the environment")
    if not options.dry_run and not torch.cuda.is_available():
        arguments.error("no CUDA device; --dry-run runs every line on the CPU")
    if options.dry_run:
        interpreter_reads_numbers()
    torch.set_float32_matmul_precision("highest")
    return Stage(name, options.out, options.dry_run, time.monotonic() + options.seconds, resume=options.resume)


def interpreter_reads_numbers() -> None:
    """Lets the interpreter of triton 3.6 and earlier run loops with bounds from the device where NumPy is 2.4 or later.

    It makes a Python number of an array of one element and one axis, which that NumPy refuses; triton 3.9 drops the axis
    first, and so does this. Compiled kernels have nothing to do with it.
    """
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        index = lambda self: int(self.handle.data.squeeze())  # noqa: E731
        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patch


def clustered_gate(batch: int, steps: int, share: float, device: torch.device) -> torch.Tensor:
    """``[B, T]`` of zeros and ones: ``share`` of the tokens active, in clusters, as actions are."""
    return clustered_depth(share, steps).expand(batch, -1).contiguous().to(device)


@cache
def _facts(device: str) -> dict[str, Any]:
    """Facts of the run, and what of the compiled libraries it found beside the sources."""
    found = {"_native": missing_native(), "_native_cuda": missing_cuda()}
    libraries = {name: reason or "loaded" for name, reason in found.items()}
    return {**facts(device, packages=("tzn", "torch", "triton", "numpy")), "compiled_libraries": libraries}


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [x for value in values for x in _tensors(value)] if isinstance(values, (list, tuple)) else []


def _line(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
    )

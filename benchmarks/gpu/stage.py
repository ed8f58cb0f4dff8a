"""Shared by the stages of ``benchmarks/run_gpu.sh``: arguments, timing, and results that survive a stage cut short."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.lib.contenders import clustered_depth
from benchmarks.lib.parity import NoParity
from benchmarks.lib.provenance import RESULTS, facts, parser, write_json

WIDTH, WINDOW = 512, 19


@dataclasses.dataclass
class Stage:
    """One stage: where it runs, how large, until when, and what it has found.

    Attributes:
        dry: every line runs, on the CPU in Triton's interpreter, at sizes where that takes seconds.
    """

    name: str
    out: Path
    dry: bool
    deadline: float
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def low(self) -> torch.dtype:
        """The 16-bit type: the interpreter computes bfloat16 products wrongly."""
        return torch.float16 if self.dry else torch.bfloat16

    def pick(self, real: Any, dry: Any) -> Any:
        return dry if self.dry else real

    def expired(self) -> bool:
        """Whether the stage should begin nothing more."""
        return time.monotonic() > self.deadline

    def record(self, **row: Any) -> None:
        """Adds a row; the file is complete after every one."""
        self.rows.append(row)
        print("  ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        known = facts(self.device.type, packages=("tzn", "torch", "triton"))
        known |= {"dry_run": "times mean nothing"} if self.dry else {}
        write_json(self.out / f"{self.name}.json", {**known, "rows": self.rows})

    def guarded(self, what: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
        """Records ``run``'s row, or the error instead: one peer that fails does not end the stage."""
        if self.expired():
            return
        try:
            found = run()
        except (Exception, NoParity) as error:
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        self.record(**what, **found)

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Median time of a call on the device."""
        if not self.dry:
            return float(triton.testing.do_bench(run, warmup=10, rep=60, return_mode="median"))
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """``run`` as a CUDA graph (dry: itself)."""
        if self.dry:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def compiled(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` under ``torch.compile`` (dry: traced to one graph, without a compiler)."""
        return torch.compile(run, dynamic=False, fullgraph=True, backend="eager" if self.dry else "inductor")


def stage(name: str, description: str | None) -> Stage:
    arguments = parser(description, RESULTS / "gpu")
    arguments.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU in Triton's interpreter")
    arguments.add_argument("--seconds", type=float, default=100.0, help="begin nothing new after so long")
    options = arguments.parse_args()
    os.environ.setdefault("TZN_BACKEND", "triton" if options.dry_run else "auto")
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        arguments.error("--dry-run needs TRITON_INTERPRET=1 in the environment")
    if not options.dry_run and not torch.cuda.is_available():
        arguments.error("no CUDA device; --dry-run runs every line on the CPU")
    torch.set_float32_matmul_precision("highest")
    return Stage(name, options.out, options.dry_run, time.monotonic() + options.seconds)


def clustered_gate(batch: int, steps: int, share: float, device: torch.device) -> torch.Tensor:
    """``[B, T]`` of zeros and ones: ``share`` of the tokens active, in clusters, as actions are."""
    return clustered_depth(share, steps).expand(batch, -1).contiguous().to(device)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value

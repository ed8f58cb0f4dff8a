"""Do the tests notice? Thirty small faults in ops, definitions and kernels, one at a time, and which test catches each.

Each fault is put into a copy of the repository (``--copy``, made with ``git worktree``), C++ is built again where it is hit,
and the tests named with it run until the first failure. A fault that no test catches is printed as SURVIVED, and the program
exits with 1.

    python -m benchmarks.mutations            all of them; half an hour on two cores
    python -m benchmarks.mutations --only nms those whose name contains "nms"
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BLOCK, ATTENTION = "tests/ops/test_variable_depth_block.py", "tests/ops/test_local_attention.py"
DISPATCH, NMS, CROSSINGS = "tests/ops/test_dispatch.py", "tests/ops/test_nms.py", "tests/ops/test_boundary_crossings.py"
DECODE = "tests/ops/test_decode_segments.py"
SELECT = f"{DECODE} tests/ops/test_messy_decode.py tests/ops/test_public_surface.py tests/ops/test_library.py"


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    tests: str
    interpreted: bool = False  # of a Triton kernel: tests run in the interpreter

    @property
    def name(self) -> str:
        return f"{self.file}: {self.old.strip()[:60]!r} -> {self.new.strip()[:60]!r}"


FAULTS = [
    # Rules that all ops share
    Fault("tzn/ops/_register.py", "create_graph=again", "create_graph=False", DISPATCH),
    Fault("tzn/ops/_register.py", "if forward_ad._current_level >= 0 or", "if False and", DISPATCH),
    Fault("tzn/ops/_register.py", "x if x.dtype == torch.float64 else x.to(dtype)", "x.to(dtype)", DISPATCH),
    Fault("tzn/ops/_register.py", "        if torch.is_grad_enabled():\n            found = iter(_by", "        if False:\n            found = iter(_by", DISPATCH),
    Fault("tzn/ops/_register.py", "_modes() or _transforms() or", "_transforms() or", "tests/test_profiling.py"),
    # Public functions and implementations
    Fault("tzn/reference/local_attention.py", "window // 2 : window // 2 + window", ":window", ATTENTION),
    Fault("tzn/reference/local_attention.py", "last >= radius], 1)", "last >= 0], 1)", ATTENTION),
    Fault("tzn/kernels/cpu/local_attention.py", "out.zero_().index_copy_(0, chosen, few)", "out.index_copy_(0, chosen, few)", ATTENTION),
    Fault("tzn/kernels/cpu/variable_depth_block.py", "dnormed1 += dquery_rows", "pass", BLOCK),
    Fault("tzn/kernels/cpu/variable_depth_block.py", "dgate1 + dgate2", "dgate1", BLOCK),
    Fault("tzn/ops/nms.py", "max(max_seg_num, 0), voting_thresh", "max_seg_num + 1, voting_thresh", NMS),
    Fault("tzn/ops/nms.py", "VOTE_WEIGHTS.index(rule.vote_weight)", "0", NMS),
    Fault("tzn/ops/select_candidates.py", "first[of_level] + rank", "first[of_level]", SELECT),
    # Definitions
    Fault("tzn/reference/active_tokens.py", "near if mask is None else near & mask", "near", "tests/ops/test_depth.py"),
    Fault("tzn/reference/depth_gates.py", "- layer).clamp(0, 1)", "- layer).clamp(0, 2)", "tests/ops/test_depth.py"),
    Fault("tzn/reference/nms.py", "decayed < min_score", "decayed <= min_score", NMS),
    Fault("tzn/reference/boundary_crossings.py", "(left < 0) & (right >= 0)", "(left <= 0) & (right >= 0)", CROSSINGS),
    Fault("tzn/reference/decode_segments.py", "share = std**2 / total", "share = error**2 / total", DECODE),
    # Compiled kernels
    Fault("csrc/cpu/active_tokens.cpp", "radius >= steps - t ? steps : t + radius + 1", "radius >= steps - t ? steps : t + radius", BLOCK),
    Fault("csrc/cpu/boundary_crossings.cpp", "reached.back() / 2", "reached.back() / 3", CROSSINGS),
    Fault("csrc/cpu/select_candidates.cpp", "score > other.score ||", "score >= other.score ||", SELECT),
    Fault("csrc/cpu/decode_segments.cpp", "std::max<int64_t>(later - 1, 0)", "std::max<int64_t>(later - 2, 0)", DECODE),
    Fault("csrc/cpu/nms_kernels.h", "iou >= threshold && ", "iou > threshold + F(0.05) && ", NMS),
    Fault("csrc/suppression_rule.h", "overlap >= decay.iou_threshold ? next * (F(1) - overlap)", "overlap > decay.iou_threshold + F(1e-3) ? next * (F(1) - overlap)", NMS),
    Fault("csrc/cpu/local_attention.cpp", "std::min(start + steps, row + plan.radius + 1)", "std::min(start + steps, row + plan.radius)", ATTENTION),
    # Triton kernels
    Fault("tzn/kernels/local_attention.py", "total * shrink + tl.sum(weights, 1)", "total + tl.sum(weights, 1)", ATTENTION, True),
    Fault("tzn/kernels/local_attention.py", "weights * (dweights - delta[:, None])\n        dq", "weights * dweights\n        dq", ATTENTION, True),
    Fault("tzn/kernels/active_tokens.py", "before_active + tl.cumsum(active, 0) - active", "before_active + tl.cumsum(active, 0)", BLOCK, True),
    Fault("tzn/kernels/_linear.py", "0.5 * (1.0 + tl.erf(x * SQRT_HALF))", "0.5 * (1.0 + tl.erf(x))", BLOCK, True),
    Fault("tzn/kernels/variable_depth_block.py", "copy_idle_rows(grad, lists.flags, 2, dx)", "copy_idle_rows(grad, lists.flags, 1, dx)", BLOCK, True),
]  # fmt: skip


def caught(fault: Fault, copy: Path, python: str) -> tuple[bool, str, float]:
    """Whether a test fails with the fault in ``copy``; which, and how long it took to know."""
    path = copy / fault.file
    text = path.read_text()
    if text.count(fault.old) == 0:
        raise SystemExit(f"{fault.file}: {fault.old!r} is not there any more; write the fault anew")
    began = time.monotonic()
    path.write_text(text.replace(fault.old, fault.new, 1))
    environment = {**os.environ, "TZN_BUILD": "1", "TZN_REQUIRE_NATIVE": "1", "OMP_NUM_THREADS": "2"}
    if fault.interpreted:
        environment["TRITON_INTERPRET"] = "1"
    try:
        if fault.file.startswith("csrc"):
            build = [python, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=copy, env=environment, check=True, capture_output=True)
        command = [python, "-m", "pytest", "-q", "-x", "--no-header", "--ignore=tests/ops/test_fuzz.py"]
        command += fault.tests.split()
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
        if fault.file.startswith("csrc"):
            subprocess.run(["touch", str(path)], check=True)  # built anew with the next
    if run.returncode < 0:  # a kernel that writes where nothing is ends the process
        return True, f"signal {-run.returncode}", time.monotonic() - began
    if run.returncode > 1:
        raise SystemExit(f"{fault.name}: the tests did not run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    failed = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("FAILED")]
    return run.returncode == 1, failed[0] if failed else "-", time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--first", type=int, default=1, help="number of the first one to run, from 1")
    parser.add_argument("--copy", type=Path, help="where to copy the repository (default: a temporary folder)")
    arguments = parser.parse_args()
    chosen = [(n, f) for n, f in enumerate(FAULTS, start=1) if n >= arguments.first and arguments.only in f.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = arguments.copy or Path(folder) / "tzn"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(copy), "HEAD"], cwd=ROOT, check=True)
        try:
            for built in (*ROOT.glob("tzn/_native*.so"), ROOT / "tzn" / "_build.json"):
                if built.exists():
                    (copy / "tzn" / built.name).write_bytes(built.read_bytes())
            survived = 0
            for number, fault in chosen:
                found, test, seconds = caught(fault, copy, sys.executable)
                survived += not found
                print(
                    f"{number:2d} {'caught  ' if found else 'SURVIVED'} {seconds:5.0f} s  {fault.name}  {test}",
                    flush=True,
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(copy)], cwd=ROOT, check=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

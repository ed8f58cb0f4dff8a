"""Runs the tests whose numbers depend on the instruction set once per SIMD level below the machine's own.

usage: python tests/simd_levels.py [--list] [PYTEST OPTION ...]

PyTorch, oneDNN, MKL and tzn each have a switch that keeps them to a lower level; it is read when they are loaded, so every
level is a process of its own. The machine's own level is what the ordinary test run has. A program, not a test: hence no
``test_`` in its name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What computes: operators, the modules and networks on them, and what becomes of their numbers. Fuzzing, registration,
# compilation and the number of threads are no different at another level.
TESTS = ("ops", "nn", "models", "inference/test_localize.py")
LEFT_OUT = tuple(f"ops/test_{name}.py" for name in ("fuzz", "backend", "dispatch", "library", "threads"))
# By level, lowest first: the flags of /proc/cpuinfo that it needs, and the switches.
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "TZN_SIMD")
LEVELS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "portable": (set(), ("default", "SSE41", "SSE4_2", "portable")),
    "avx2": ({"avx2", "fma", "bmi2"}, ("avx2", "AVX2", "AVX2", "avx2")),
    "avx512": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}, ("avx512", "AVX512_CORE", "AVX512", "avx512"),
    ),
}  # fmt: skip


def cpu_flags(cpuinfo: str) -> set[str]:
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(found[1].split()) if found else set()


def levels(flags: set[str]) -> list[str]:
    """Those that a CPU with ``flags`` has, lowest first."""
    return [name for name, (needed, _) in LEVELS.items() if needed <= flags]


def environment(level: str) -> dict[str, str]:
    return dict(zip(SWITCHES, LEVELS[level][1], strict=True))


def main(options: list[str]) -> int:
    path = Path("/proc/cpuinfo")
    have = levels(cpu_flags(path.read_text() if path.is_file() else ""))
    missing = [name for name in LEVELS if name not in have]
    said = f"SIMD levels: {', '.join(have)}; the machine's own is {have[-1]}, which the ordinary test run has"
    print(said + (f"; skipped, this CPU lacks them: {', '.join(missing)}" if missing else ""), flush=True)
    if "--list" in options:
        return 0
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "worksteal",
        *(str(HERE / test) for test in TESTS),
    ]
    command += [f"--ignore={HERE / test}" for test in LEFT_OUT] + options
    failed = []
    for level in have[:-1]:
        print(f"SIMD level {level}: {environment(level)}", flush=True)
        if subprocess.run(command, env=os.environ | environment(level), cwd=HERE.parent).returncode:
            failed.append(level)
    if failed:
        print(f"red at SIMD level {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The program that runs the numeric tests at lower SIMD levels: which levels a CPU has, and that the switches work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import simd_levels

V3 = {"avx2", "fma", "bmi2"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), ["portable"]),
        ({"avx2", "fma"}, ["portable"]),
        (V3, ["portable", "avx2"]),
        (V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}, ["portable", "avx2", "avx512"]),
    ],
    ids=["none", "half", "avx2", "avx512"],
)
def test_levels_of_a_cpu(flags, expected):
    cpuinfo = f"processor : 0\nflags\t\t: fpu {' '.join(sorted(flags))}\nbugs : none\n"
    assert simd_levels.levels(simd_levels.cpu_flags(cpuinfo)) == expected


def test_what_is_run_exists():
    assert all((simd_levels.HERE / test).exists() for test in simd_levels.TESTS + simd_levels.LEFT_OUT)


def test_the_lowest_level_is_what_torch_then_has():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    env = os.environ | simd_levels.environment("portable")
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "DEFAULT"


def test_skipped_levels_are_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(simd_levels, "cpu_flags", lambda text: V3)
    assert simd_levels.main(["--list"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "portable, avx2" in line and line.endswith("skipped, this CPU lacks them: avx512")

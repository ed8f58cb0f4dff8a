"""What the build makes of the assembler's report, and what it refuses."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "cuda" / "build_cuda.py")
assert SPEC and SPEC.loader
build_cuda = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_cuda)

NAME = "_ZN3tzn12_GLOBAL__N__22suppress_groups_kernelILNS_6MethodE1EEEvNS_10CandidatesE"
ENTRY = """ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 39 registers, used 1 barriers, 640 bytes smem
"""


def _report(stack=0, stores=0):
    return "ptxas info    : 28 bytes gmem\n" + ENTRY.format(name=NAME, stack=stack, stores=stores)


def test_a_clean_kernel():
    usage = build_cuda.parse_usage(_report())
    build_cuda.check_usage(usage)
    row = "| suppress_groups<linear> | sm_90 | 39 | 0 | 0 | 640 |"
    assert build_cuda.table(usage).splitlines()[-1] == row


def test_every_method_of_the_rule_has_a_name():
    source = (ROOT / "csrc" / "suppression_rule.h").read_text()
    named = re.search(r"enum class Method : int64_t \{ (.*?) \}", source)
    assert named is not None
    names = [build_cuda.readable(NAME.replace("MethodE1E", f"MethodE{i}E")) for i in range(5)]
    assert names == [f"suppress_groups<{method}>" for method in named.group(1).split(", ")]


@pytest.mark.parametrize(
    "report", [_report(stack=8, stores=4), _report(stack=16), ""], ids=["spill", "stack", "nothing"]
)
def test_what_spills_or_cannot_be_read_is_an_error(report):
    with pytest.raises(RuntimeError, match="spill|not understood"):
        build_cuda.check_usage(build_cuda.parse_usage(report))


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    with pytest.raises(RuntimeError, match="nvcc was not found"):
        build_cuda.build(tmp_path / "library.so", tmp_path)

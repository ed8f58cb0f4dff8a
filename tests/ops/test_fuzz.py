"""Every public op and every registered CPU op with messed-up arguments: an error with a message or a right answer.

Each op is fuzzed in a process of its own (``tests/fuzz``), so a crash or a hang is a failed test that names the case.
``TZN_FUZZ_CASES`` sets the number of cases per op, ``TZN_FUZZ_SEED`` which, ``TZN_FUZZ_SECONDS`` what one op may take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import tzn
from tzn import ops

pytestmark = pytest.mark.not_interpreted("thousands of calls")
FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
CASES, SEED = os.environ.get("TZN_FUZZ_CASES", "40"), os.environ.get("TZN_FUZZ_SEED", "0")
SECONDS = os.environ.get("TZN_FUZZ_SECONDS", "300")
NOT_FUZZED = {"backends", "choose_backend"}  # they take no tensors
PUBLIC = sorted(n for n in ops.__all__ if n.islower() and n not in NOT_FUZZED)
RAW = [
    f"native.{name}"
    for name in (
        "active_tokens", "boundary_crossings", "conv3", "decode_segments", "gate_backward", "gated_add_layer_norm",
        "gated_scatter", "gather_layer_norm", "layer_norm_backward", "layout", "local_attention", "local_attention_backward",
        "packed_local_attention", "packed_local_attention_backward", "plain_candidates", "read_exit", "select_candidates",
        "suppress_groups", "suppress_recordings", "variable_depth_block", "vote_segments",
    )
]  # fmt: skip


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str | None]]:
    """What went wrong per op (None: nothing) on a back end; the process imports torch once and forks for every op."""

    @cache
    def run(backend: str) -> dict[str, str | None]:
        file = tmp_path_factory.mktemp("fuzz") / "report.json"
        paths = [str(Path(tzn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        names = PUBLIC + (RAW if backend == "cpp" else [])
        process = subprocess.run(
            [sys.executable, str(FUZZ), *names, "--cases", CASES, "--seed", SEED, "--seconds", SECONDS, "--report", str(file)],
            env={**os.environ, "TZN_BACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if not file.exists():
            pytest.fail(f"exit status {process.returncode}\n{process.stdout[-3000:]}", pytrace=False)
        return dict(json.loads(file.read_text()))

    return run


@pytest.mark.parametrize("name", PUBLIC)
def test_public_op(report, backend, name):
    wrong = report(backend)[name]
    if wrong:
        pytest.fail(wrong, pytrace=False)


@pytest.mark.parametrize("name", RAW)
def test_registered_op(report, backend, name):
    if backend != "cpp":
        pytest.skip("registered by the compiled kernels")
    wrong = report(backend)[name]
    if wrong:
        pytest.fail(wrong, pytrace=False)


def test_no_registered_op_is_left_out(backend):
    if backend == "cpp":
        registered = {schema.name.removeprefix("tzn_native::") for schema in torch._C._jit_get_all_schemas()
                      if schema.name.startswith("tzn_native::")}  # fmt: skip
        assert {f"native.{name}" for name in registered} == set(RAW)

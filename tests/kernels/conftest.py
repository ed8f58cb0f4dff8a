"""Kernels without a GPU: Triton's interpreter runs them, in a pytest process of its own (``make test``).

The interpreter is chosen when Triton is imported, so these tests refuse to run where that has not been done.
bfloat16 is left to a GPU: the interpreter's bfloat16 dot is wrong, not the kernels.
"""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("tests/kernels needs TRITON_INTERPRET=1 in the environment; see the Makefile")


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZN_BACKEND", "triton")

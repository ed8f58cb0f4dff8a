"""Every op test runs on every back end that serves the CPU; on the Triton kernels in the interpreter's own process."""

from __future__ import annotations

import os

import pytest
import torch

from tzn import ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpp"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``not_interpreted("why")`` are left to the other back ends, or to a GPU."""
    left = [i for i in items if INTERPRETED and i.get_closest_marker("not_interpreted")]
    config.hook.pytest_deselected(items=left)
    items[:] = [i for i in items if i not in left]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the back end the test runs on; where kernels could not be built ``TZN_REQUIRE_NATIVE=1`` makes it fail."""
    state = ops.backends()[request.param]
    if state != "available":
        (pytest.fail if os.environ.get("TZN_REQUIRE_NATIVE") == "1" else pytest.skip)(state)
    monkeypatch.setenv("TZN_BACKEND", request.param)
    torch.compiler.reset()  # a compiled program keeps the back end that it was traced with
    return str(request.param)

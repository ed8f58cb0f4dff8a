"""Every op test runs on every back end that serves the CPU."""

from __future__ import annotations

import os

import pytest

from tzn import ops

BACKENDS = ["reference", "cpp"]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the back end the test runs on; where kernels could not be built ``TZN_REQUIRE_NATIVE=1`` makes it fail."""
    state = ops.backends()[request.param]
    if state != "available":
        (pytest.fail if os.environ.get("TZN_REQUIRE_NATIVE") == "1" else pytest.skip)(state)
    monkeypatch.setenv("TZN_BACKEND", request.param)
    return str(request.param)

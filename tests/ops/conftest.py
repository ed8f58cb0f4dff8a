"""Every op test runs on every back end that serves the CPU; on the Triton kernels in the interpreter's own process."""

from __future__ import annotations

import os

import pytest
import torch

from tzn import ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpp"]
# What the interpreter leaves to the other back ends or to a GPU, and why.
NOT_INTERPRETED = {
    "bfloat16": "its bfloat16 products are wrong",
    "autocast_keeps": "autocast to bfloat16; tests/kernels has one to float16",
    "gradcheck": "40 s; tests/kernels compares gradients with the reference's in float64",
    "finite_differences": "likewise",
    "goldens": "minutes; tests/kernels compares picks with the reference, which the golden files prove",
    "golden_with_tied_scores": "likewise",
    "equals_a_plain_loop": "hundreds of examples",
    "independent_laplace_noise": "thousands of fields",
    "early_stop": "of the reference",
    "multiply_adds": "of the reference",
    "without_a_library": "of the compiled kernels",
    "test_properties": "hundreds of examples",
    "test_fuzz": "thousands of calls",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    left = [
        i for i in items if str(i.path).startswith(here) and INTERPRETED and any(n in i.nodeid for n in NOT_INTERPRETED)
    ]
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

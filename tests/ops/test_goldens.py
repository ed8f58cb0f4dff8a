"""Every op on every back end against the golden set inside the repository (tests/goldens/make.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_as_good_as_eager
from torch import Tensor

from tzn import ops, reference

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
sys.path.insert(0, str(GOLDENS))

from make import SETTINGS, call  # noqa: E402

# Suppression has no Triton kernel, and what is its own definition has no kernel at all.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SUPPRESSION = ("soft_nms", "nms", "batched_nms")
CASES = [case for case, (op, _) in SETTINGS.items() if not (INTERPRETED and op in SUPPRESSION)]


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(GOLDENS / "ops.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def _of(case: str, arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    mine = {name.split("/")[1]: x for name, x in arrays.items() if name.startswith(f"{case}/")}
    count = sum(name.startswith("out_") for name in mine)
    return {name: x for name, x in mine.items() if not name.startswith("out_")}, [
        mine[f"out_{i}"] for i in range(count)
    ]


def _same_shape(out: Tensor, expected: Tensor) -> Tensor:
    """Crossings have a capacity: what is past the count of the definition has to be padding."""
    assert out.dtype == expected.dtype or out.is_floating_point() == expected.is_floating_point()
    assert out.shape == expected.shape
    return out


@pytest.mark.parametrize("case", CASES)
def test_float64_gives_the_stored_numbers(case, arrays):
    arguments, expected = _of(case, arrays)
    op, settings = SETTINGS[case]
    out = call(getattr(ops, op), arguments, settings)
    assert len(out) == len(expected) > 0
    for mine, stored in zip(out, expected, strict=True):
        torch.testing.assert_close(_same_shape(mine, stored), stored, rtol=1e-9, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize(
    "case", [case for case in CASES if SETTINGS[case][0] in ("local_attention", "variable_depth_block")]
)
def test_float32_is_as_near_to_them_as_eager_pytorch(case, arrays):
    arguments, (expected,) = _of(case, arrays)
    op, settings = SETTINGS[case]
    single = {name: x.float() if x.is_floating_point() else x for name, x in arguments.items()}
    (given,), (eager,) = (call(getattr(kind, op), single, settings) for kind in (ops, reference))
    assert_as_good_as_eager(given, eager, expected)


def test_the_set_is_small_and_whole(arrays):
    assert {name.split("/")[0] for name in arrays} == set(SETTINGS)
    assert sum(path.stat().st_size for path in GOLDENS.glob("*.npz")) < 200_000
    public = {op for op, _ in SETTINGS.values()}
    # The others choose by size or device among these, or decode what a whole network gives (tests/models).
    assert public >= {"local_attention", "variable_depth_block", "boundary_crossings", "select_candidates", "soft_nms"}

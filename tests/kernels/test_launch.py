"""Tile configurations: what the package ships, and what ahead-of-time compilation calls a fault."""

from __future__ import annotations

import pytest
import torch

from benchmarks import aot
from tzn.kernels import _launch as launch


def test_every_architecture_has_every_kernel_for_both_sizes_of_numbers():
    table = launch._table("configs.json")
    assert tuple(table) == launch.ARCHITECTURES
    for kernels in table.values():
        assert set(kernels) == set(table["sm90"])
        for kernel, entries in kernels.items():
            assert {key.split("/")[0] for key in entries} == {"16", "32"}
            fields = set(next(iter(entries.values())))
            assert all(set(entry) == fields for entry in [*entries.values(), *launch.candidates(kernel)])


def test_the_narrowest_entry_that_holds_the_width_is_taken(monkeypatch):
    entries = {"16/32": {"BLOCK_M": 1}, "16/128": {"BLOCK_M": 2}, "32/64": {"BLOCK_M": 3}}
    monkeypatch.setattr(launch, "_table", lambda name: {"sm90": {"kernel": entries}})
    chosen = [
        launch.default_config("sm90", "kernel", dtype, width)["BLOCK_M"]
        for dtype, width in ((torch.bfloat16, 16), (torch.float16, 64), (torch.float16, 256), (torch.float32, 512))
    ]
    assert chosen == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"spills": 1}, "spill"),
        ({"spills": 1, "variant": "float16/128"}, None),
        ({"matrix": "-"}, "tensor-core"),
        ({"matrix": "-", "kernel": "nms"}, None),
        ({"shared": 230 << 10}, "shared memory"),
    ],
    ids=["fine", "spills", "spills-beside-the-main-ones", "no-matrix-unit", "needs-none", "shared-memory"],
)
def test_faults_of_compiled_kernels(change, fault):
    row = {
        "architecture": "sm_90", "kernel": "norm_up", "variant": "bfloat16/128", "warps": 4, "registers": 100,
        "spills": 0, "stack": 0, "shared": 1024, "matrix": "HGMMA", "matrix_count": 4, "wide_loads": 4, "loads": 8,
    }  # fmt: skip
    found = aot.faults([row | change])
    assert (found == []) if fault is None else fault in found[0]
    assert "| norm_up |" in aot.table_of([row])


def test_autotuning_times_candidates_once_per_shape_class(monkeypatch):
    monkeypatch.setenv("TZN_AUTOTUNE", "1")
    monkeypatch.setattr(launch, "TUNED", {})
    seen = []
    for width in (100, 120, 200):
        launch.launch("linear", torch.float16, width, seen.append, torch.device("cpu"))
    tried = 1 + len(launch.candidates("linear"))
    assert set(launch.TUNED) == {"sm90 linear 16/128", "sm90 linear 16/256"}
    assert len(seen) == 2 * tried + 3


def test_less_shared_memory_than_expected_drops_the_pipeline():
    seen = []

    def run(config):
        seen.append(config["num_stages"])
        if len(seen) == 1:
            raise launch.triton.runtime.errors.OutOfResources(200_000, 100_000, "shared memory")

    launch.launch("linear", torch.float16, 64, run, torch.device("cpu"))
    assert seen[0] > 1
    assert seen[1:] == [1]

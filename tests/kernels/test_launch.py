"""Launches: the device they run on, their grids and tile configurations, and what ahead-of-time compilation calls a fault."""

from __future__ import annotations

import contextlib

import pytest
import torch
from oracle import noisy_fields
from small_model import build
from triton.runtime import interpreter

from benchmarks import aot
from tzn import ops
from tzn.config import InferenceConfig
from tzn.inference.fixed import GraphedDetector, detect
from tzn.kernels import _launch as launch
from tzn.kernels import pair_segments
from tzn.nn import VariableDepthBlock


def test_every_architecture_has_every_kernel_for_both_sizes_of_numbers():
    table = launch._table("configs.json")
    assert tuple(table) == launch.ARCHITECTURES
    for kernels in table.values():
        assert set(kernels) == set(table["sm90"])
        assert set(launch.FAMILIES.values()) < set(kernels)
        for kernel, entries in kernels.items():
            assert {key.split("/")[0] for key in entries} == {"16", "32"}
            fields = set(next(iter(entries.values()))) - {"maxnreg"}
            tried, optional = launch.candidates(kernel), {"maxnreg"}
            if kernel in launch.PERSISTENT:
                optional.add("PER_SM")
            assert all(set(entry) - optional == fields for entry in [*entries.values(), *tried])


def test_the_narrowest_entry_that_holds_the_width_is_taken(monkeypatch):
    entries = {"16/32": {"BLOCK_M": 1}, "16/128": {"BLOCK_M": 2}, "32/64": {"BLOCK_M": 3}}
    monkeypatch.setattr(launch, "_table", lambda name: {"sm90": {"kernel": entries}})
    chosen = [
        launch.default_config("sm90", "kernel", dtype, width)["BLOCK_M"]
        for dtype, width in ((torch.bfloat16, 16), (torch.float16, 64), (torch.float16, 256), (torch.float32, 512))
    ]
    assert chosen == [1, 2, 2, 3]


def test_registers_are_limited_only_where_the_compiler_does_not_spill_then(monkeypatch):
    found = []
    for limits in (True, False):
        monkeypatch.setattr(launch, "LIMITS_REGISTERS", limits)
        found.append(launch.default_config("sm90", "attention_forward", torch.bfloat16, 128))
    assert found[0].pop("maxnreg") == 128
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"spills": 1}, "spill"),
        ({"spills": 1, "variant": "float16/128"}, None),
        ({"matrix": "-"}, "tensor-core"),
        ({"matrix": "-", "kernel": "nms"}, None),
        ({"shared": 230 << 10}, "shared memory"),
        ({"early": 1}, "before the wait"),
    ],
    ids=[
        "fine",
        "spills",
        "spills-beside-the-main-ones",
        "no-matrix-unit",
        "needs-none",
        "shared-memory",
        "does-not-wait",
    ],
)
def test_faults_of_compiled_kernels(change, fault):
    row = {
        "architecture": "sm_90", "kernel": "up", "variant": "bfloat16/128", "warps": 4, "registers": 100,
        "spills": 0, "stack": 0, "shared": 1024, "matrix": "HGMMA", "matrix_count": 4, "wide_loads": 4, "loads": 8,
        "early": 0,
    }  # fmt: skip
    found = aot.faults([row | change])
    assert (found == []) if fault is None else fault in found[0]
    assert "| up |" in aot.table_of([row])


def test_a_kernel_has_its_own_entries_or_those_of_its_family(monkeypatch):
    table = {
        "linear": {"16/64": {"BLOCK_M": 1}, "32/64": {"BLOCK_M": 3}},
        "up_projection": {"16/64": {"BLOCK_M": 4}, "32/64": {"BLOCK_M": 5}},
    }
    monkeypatch.setattr(launch, "_table", lambda name: {"sm90": table} if name == "configs.json" else {"linear": [{}]})
    low, high = torch.bfloat16, torch.float32
    cases = [("qkv_projection", low), ("qkv_projection", high), ("up_projection", low), ("up_projection", high)]
    assert [launch.default_config("sm90", k, d, 64)["BLOCK_M"] for k, d in cases] == [1, 3, 4, 5]
    assert launch.candidates("qkv_gradient") == [{}]


def test_autotuning_times_candidates_once_per_kernel_and_shape_class(monkeypatch):
    monkeypatch.setenv("TZN_AUTOTUNE", "1")
    monkeypatch.setattr(launch, "TUNED", {})
    seen = []
    for kernel in ("up_projection", "qkv_gradient"):
        for width in (100, 120, 200):
            launch.launch(kernel, torch.float16, width, seen.append, torch.device("cpu"))
    tried = {kernel: 1 + len(launch.candidates(kernel)) for kernel in ("up_projection", "qkv_gradient")}
    assert tried["up_projection"] == tried["qkv_gradient"] + 3  # the only ones that may be persistent
    assert set(launch.TUNED) == {
        "sm90 up_projection 16/128", "sm90 up_projection 16/256", "sm90 qkv_gradient 16/128", "sm90 qkv_gradient 16/256",
    }  # fmt: skip
    assert len(seen) == 2 * sum(tried.values()) + 6


def test_every_kernel_of_a_block_is_tuned_by_its_own_name(monkeypatch):
    used = set()
    original = launch.default_config
    monkeypatch.setattr(
        launch, "default_config", lambda arch, kernel, *rest: used.add(kernel) or original(arch, kernel, *rest)
    )
    block = VariableDepthBlock(16, 2, 5)
    block(torch.randn(1, 8, 16), torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 8)).sum().backward()
    attention = {"attention_forward", "attention_backward_queries", "attention_backward_keys"}
    around = {"lateral", "offsets"}
    assert used == set(launch.FAMILIES) - around | attention | {"weight_gradient"}
    used.clear()
    with torch.no_grad():
        build().points(torch.randn(1, 12, 7), torch.ones(1, 12, dtype=torch.bool)).offsets()
    assert used > around | {"conv_norm", "head"}


def test_less_shared_memory_than_expected_takes_smaller_tiles_and_remembers_them(monkeypatch):
    monkeypatch.setattr(launch, "FITTING", {})
    seen = []

    def run(config):
        seen.append((config["num_stages"], config["BLOCK_M"] * config["BLOCK_N"] * config["BLOCK_K"]))
        if config["num_stages"] > 1 or config["BLOCK_N"] > 64:
            raise launch.triton.runtime.errors.OutOfResources(200_000, 100_000, "shared memory")

    launch.launch("up_projection", torch.float16, 4096, run, torch.device("cpu"))
    shipped = launch.default_config("sm90", "up_projection", torch.float16, 4096)
    stages, size = shipped["num_stages"], 64 * 128 * 64
    assert seen == [*((n, size) for n in range(stages, 0, -1)), (1, size // 2)]
    launch.launch("up_projection", torch.float16, 4096, run, torch.device("cpu"))
    assert seen[stages + 1 :] == [(1, size // 2)]

    def hopeless(config):
        raise launch.triton.runtime.errors.OutOfResources(200_000, 100_000, "shared memory")

    with pytest.raises(launch.triton.runtime.errors.OutOfResources):
        launch.launch("up_projection", torch.float16, 4096, hopeless, torch.device("cpu"))


class Guard:
    """Stands in for the current device: what kernels are launched on."""

    def __init__(self):
        self.inside = []

    @contextlib.contextmanager
    def __call__(self, device):
        self.inside.append(device)
        yield
        self.inside.pop()


def test_every_launch_runs_on_the_device_of_its_tensors(monkeypatch):
    guard, launched = Guard(), set()
    monkeypatch.setattr(launch, "device_guard", guard)
    original = interpreter.GridExecutor.__call__

    def watched(self, *arguments, **keywords):
        flat = [x for given in arguments for x in (given if isinstance(given, tuple) else (given,))]
        devices = {x.device for x in flat if isinstance(x, torch.Tensor)}
        assert guard.inside and {guard.inside[-1]} == devices, f"{self.fn.__name__} is launched on another device"
        launched.add(self.fn.__name__)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 9, dtype=torch.bool)
    ops.local_attention(q, k, v, 5, mask=mask).sum().backward()
    VariableDepthBlock(16, 2, 5)(torch.randn(1, 9, 16), mask, torch.rand(1, 9)).sum().backward()
    ops.active_tokens(torch.ones(1, 9), 5)
    found = ops.boundary_crossings(*noisy_fields(1, 40))
    ops.pair_segments(found, found, torch.rand(40, 3, dtype=torch.float64))
    detect(build(), torch.randn(1, 12, 7), torch.ones(1, 12, dtype=torch.bool), InferenceConfig(pre_nms_topk=5))
    assert len(launched) > 15
    assert {"mark_kernel", "decode_kernel", "rank_kernel", "pair_kernel", "find_kernel"} < launched
    assert not guard.inside


def test_a_graph_is_captured_and_replayed_on_the_device_of_its_model(monkeypatch):
    """On a machine with several devices, whichever is the current one."""
    seen = []

    class Recorded(contextlib.AbstractContextManager):
        def __init__(self, name, *given):
            self.name, self.given = name, given

        def __enter__(self):
            seen.append((self.name, *self.given))

        def __exit__(self, *_):
            seen.append(f"end of {self.name}")

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            assert self.device == other.device == second

    class Graph:
        def replay(self):
            seen.append("replay")

    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: Recorded("device", device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Recorded("stream", stream.device))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream=None: Recorded("capture", stream and stream.device))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    made = {name: getattr(torch, name) for name in ("zeros", "ones")}
    for name, make in made.items():
        monkeypatch.setattr(torch, name, lambda *size, make=make, device=None, **kind: make(*size, **kind))
    monkeypatch.setattr("tzn.inference.fixed.detect", lambda *_: seen.append("detect"))
    model = build()
    monkeypatch.setattr(model, "parameters", lambda: iter([type("Weight", (), {"device": second})()]))
    graphed = GraphedDetector(model, 1, 12, InferenceConfig())
    assert seen[0] == ("device", second)
    assert seen[-1] == "end of device"
    assert seen[-4:-1] == [("capture", second), "detect", "end of capture"]
    seen.clear()
    graphed(torch.zeros(1, 12, 7))
    assert seen == [("device", second), "replay", "end of device"]


def test_pairs_are_not_limited_by_the_second_axis_of_a_grid(monkeypatch):
    """CUDA ends the second and third axis at 65,535; the first at 2^31 - 1."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **keywords: None

    monkeypatch.setattr(pair_segments, "pair_kernel", Recorder())
    starts = torch.zeros(2, 70_000), torch.zeros(2, dtype=torch.int64)
    pair_segments.pair_scores(starts, starts, torch.zeros(2, 4, 3), 1)
    assert grids == [(140_000, 1)]

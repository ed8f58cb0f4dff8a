"""How many kernels an inference launches on a GPU: every node of its CUDA graph costs about as much as a small kernel."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from benchmarks.lib.launches import recorded, whole_inference
from tzn import kernels
from tzn.kernels._launch import programmatic
from tzn.kernels.active_tokens import compact
from tzn.ops._backend import missing_native


@pytest.fixture(autouse=True)
def _native():
    if (reason := missing_native()) is not None:
        (pytest.fail if os.environ.get("TZN_REQUIRE_NATIVE") == "1" else pytest.skip)(reason)


def test_what_counts():
    x = torch.zeros(2, 6, 4, device="meta")
    mask = torch.zeros(2, 6, dtype=torch.bool, device="meta")

    def names(run):
        with recorded() as found:
            run()
        return Counter(launch.name for launch in found)

    assert names(lambda: x.view(12, 4)[:, 1:].transpose(0, 1).expand(3, 3, 12)) == {}
    assert names(lambda: torch.empty_like(x)) == {}
    assert names(lambda: x[:0] + 1) == {}
    assert names(lambda: F.pad(x, (0, 0, 1, 1))) == {"fill_": 1, "copy_": 1}
    assert names(lambda: x.masked_fill(mask.unsqueeze(-1), 1.0)) == {"copy_": 1, "masked_fill_": 1}
    assert names(lambda: torch.where(mask, 1.0, -torch.inf)) == {"where": 1, "fill_": 2}  # PyTorch puts scalars there
    assert names(lambda: x.sort(dim=1)) == {"sort": 3}
    assert names(lambda: F.linear(x, x[0, :3], x[0, 0, :3])) == {"addmm": 1}
    assert names(lambda: compact(None, mask, 2, 6, 3, mask.device)) == {"mark_kernel": 1, "write_kernel": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("changes", [{}, {"budget": 0.5}, {"mode": "anchor", "nms": "hard"}], ids=str)
def test_an_inference_launches_at_most_200_kernels(dtype, changes):
    found = whole_inference(2304, dtype=dtype, **changes)
    assert 100 < len(found) <= 140  # 423 and with a budget 1132 before layers were fused; 200 is what was asked for
    names = Counter(launch.name for launch in found)
    assert names["suppress_groups"] == 1
    assert names["attention_forward_kernel"] == 9  # one of every block
    assert names["mark_kernel"] == names["write_kernel"] == 3  # where a gate says which tokens are active
    assert names["sort"] == names["arange"] == names["cat"] == 0  # constants are kept, places are counted


STREAM = {"refinement_layers": 0, "zoom_layers": 4, "embedding_stride": 2, "first_stride": 2}


def test_an_exit_of_a_boundary_stream_is_one_launch():
    names = Counter(launch.name for launch in whole_inference(2304, network=STREAM))
    assert sum(names.values()) <= 160  # 262 operator by operator
    assert names["exit_kernel"] == 5  # the first guess, then behind every block; the gates with them
    assert names["fields_kernel"] == 1
    assert names["mark_kernel"] == 4


def test_a_batch_launches_no_more():
    assert len(whole_inference(1000, 8)) <= len(whole_inference(2304)) + 8


def _source(name):
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        found = getattr(importlib.import_module(module.name), name, None)
        if found is not None:
            return inspect.getsource(found.fn)
    raise AssertionError(name)


def test_programmatic_launches_wait_for_the_kernel_before_in_their_first_line(monkeypatch):
    """Every one that an inference launches: one that did not could overwrite what an earlier one still reads."""
    monkeypatch.setenv("TZN_PDL", "1")
    found = [*whole_inference(2304), *whole_inference(2304, budget=0.5), *whole_inference(2304, network=STREAM)]
    triton = {launch.name: launch.numbers for launch in found if launch.kind == "triton"}
    assert len(triton) >= 24
    for name, given in triton.items():
        assert given["PDL"] is given["launch_pdl"] is True, name
        body = ast.parse(_source(name)).body[0].body
        first = body[1] if isinstance(body[0].value, ast.Constant) else body[0]
        assert ast.unparse(first) == "after_previous(PDL)", name
    for capability, wanted in (("sm80", False), ("sm100", True)):
        monkeypatch.setattr("tzn.kernels._launch.ASSUMED", capability)
        assert programmatic(torch.device("cpu"))["PDL"] is wanted
    monkeypatch.delenv("TZN_PDL")
    assert programmatic(torch.device("cpu")) == {"PDL": False}


def test_paper_knows_when_a_split_depth_pays():
    from benchmarks.gpu.paper import DEVICES, Cost, in_parts

    few = Cost(18, 1, 128, 98304, 0, 4_000_000, 4.8e9, 0.0, 0.0)  # tiles of 128 x 128: most multiprocessors idle
    device = DEVICES[0]
    now = few.expected(device)
    with_sum, free = in_parts(few, 2304 * 128, 4, device)
    assert free < with_sum < now
    full = few._replace(programs=132)
    with_sum, free = in_parts(full, 2304 * 1024, 4, device)
    assert with_sum > full.expected(device) and free >= full.expected(device)

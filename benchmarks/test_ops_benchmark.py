"""Timings of the ops on every back end that runs here, with pytest-benchmark.

usage: python -m pytest benchmarks/test_ops_benchmark.py --benchmark-group-by=group [--benchmark-json=FILE]
"""

from __future__ import annotations

import pytest
import torch
from contenders import clustered_depth

from tzn import ops
from tzn.nn import VariableDepthBlock

STEPS, HEADS, HEAD_WIDTH, WINDOW = 2304, 4, 128, 19
BACKENDS = [name for name, state in ops.backends().items() if state == "available" and name in ("reference", "cpp")]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request, monkeypatch):
    monkeypatch.setenv("TZN_BACKEND", request.param)
    torch.set_num_threads(2)
    torch.manual_seed(0)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_local_attention(benchmark, share):
    benchmark.group = f"local attention, T = {STEPS}, {share:.0%} active"
    q, k, v = (torch.randn(1, STEPS, HEADS, HEAD_WIDTH).transpose(1, 2) for _ in range(3))
    query_mask = None if share == 1.0 else clustered_depth(share, STEPS) > 0
    out = benchmark(lambda: ops.local_attention(q, k, v, WINDOW, query_mask=query_mask))
    assert out.isfinite().all()


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_variable_depth_block(benchmark, share):
    benchmark.group = f"variable-depth block, width 512, T = {STEPS}, {share:.0%} active"
    block = VariableDepthBlock(HEADS * HEAD_WIDTH, HEADS, WINDOW).eval()
    x, mask = torch.randn(1, STEPS, HEADS * HEAD_WIDTH), torch.ones(1, STEPS, dtype=torch.bool)
    with torch.no_grad():
        out = benchmark(lambda: block(x, mask, clustered_depth(share, STEPS)))
    assert out.isfinite().all()


@pytest.mark.parametrize("count", [2000, 12000])
@pytest.mark.parametrize("multiclass", [True, False], ids=["multi-class", "class-agnostic, voting"])
def test_soft_nms(benchmark, count, multiclass):
    benchmark.group = f"soft-NMS, {'20 classes' if multiclass else 'class-agnostic, voting'}, {count} candidates"
    start = torch.rand(count) * STEPS
    segments = torch.stack([start, start + torch.rand(count) * 100], dim=1)
    scores, labels = torch.rand(count), torch.randint(0, 20, (count,))
    kept, _, _ = benchmark(
        lambda: ops.batched_nms(
            segments, scores, labels, iou_threshold=0.1, min_score=0.001, max_seg_num=200, multiclass=multiclass,
            voting_thresh=0.0 if multiclass else 0.75,
        )
    )  # fmt: skip
    assert len(kept) == 200


@pytest.mark.parametrize("estimator", ["crossing", "vote_mean", "vote_median"])
def test_boundary_crossings(benchmark, estimator):
    benchmark.group = f"boundary crossings, {estimator}, 2 fields, T = {STEPS}"
    times = (torch.rand(2, 100) * STEPS).sort(dim=1).values
    distance = ops.signed_distance(times, STEPS, 16.0) + 0.1 * torch.randn(2, STEPS)
    found = benchmark(lambda: ops.boundary_crossings(distance, torch.ones(2, STEPS), estimator=estimator))
    assert int(found.count.min()) > 50

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_model import GRID, build, features

from tzn.config import InferenceConfig
from tzn.data.dataset import Example, collate
from tzn.inference import localize as module
from tzn.inference.localize import candidates, localize, localize_batch


def _compare(a, b, atol=1e-5):
    for x, y in zip(a[:4], b[:4], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("mode", ["refine", "anchor", "pair"])
def test_detections_are_sorted_clipped_and_carry_standard_errors(mode):
    found, trace = localize(build(), features(1500), GRID, 150.0, InferenceConfig(mode=mode))
    assert len(found.scores) > 5
    assert (np.diff(found.scores) <= 1e-7).all()
    assert found.segments.min() >= 0 and found.segments.max() <= 150.0
    assert (found.std > 0).all() and np.isfinite(found.std).all()
    assert trace.depth.shape == (1500,)
    assert (trace.distance is None) == (mode == "anchor")


def test_refining_where_candidates_need_it_equals_refining_with_dense_fields(monkeypatch):
    model, x = build(), features(300)
    config = InferenceConfig(pre_nms_topk=3)
    sparse = candidates(model, x, config)
    computed = ~sparse.trace.distance[0].isnan()
    assert 0.05 < computed.float().mean() < 0.95, "the test must leave steps out"
    monkeypatch.setattr(module, "_wanted_rows", lambda *a: None)
    dense = candidates(model, x, config)
    assert not dense.trace.distance.isnan().any()
    _compare(sparse, dense)
    anchor = candidates(model, x, dataclasses.replace(config, mode="anchor"))
    assert (anchor.segments != dense.segments).any(), "the test must move some ends"


@pytest.mark.parametrize("mode", ["refine", "pair", "anchor"])
@pytest.mark.parametrize("budget", [None, 0.4])
def test_chunks_give_the_one_pass_result(mode, budget):
    model = build()
    x = features(1500)
    config = InferenceConfig(mode=mode, budget=budget, pre_nms_thresh=0.05, pre_nms_topk=60)
    whole, chunked = candidates(model, x, config), candidates(model, x, dataclasses.replace(config, chunk=256))
    assert len(whole.scores) == len(chunked.scores) > 20
    _compare(whole, chunked, atol=1e-3)
    torch.testing.assert_close(whole.trace.depth, chunked.trace.depth, rtol=1e-4, atol=1e-4)


def test_the_budget_sets_the_mean_depth_and_the_work():
    from tzn.profiling import count_multiply_adds

    model, x = build(), features(400)
    counts = []
    for budget in (0.2, 0.6, 1.0):
        config = InferenceConfig(budget=budget, mode="anchor")
        raw, count = count_multiply_adds(lambda c=config: candidates(model, x, c))
        assert float(raw.trace.depth.mean()) == pytest.approx(budget, abs=1e-4)
        counts.append(count)
    assert counts[0] < counts[1] < counts[2]


def test_recordings_of_a_batch_give_the_same_as_one_at_a_time():
    model, config = build(), InferenceConfig()
    none = torch.zeros(0, dtype=torch.long)
    examples = [Example(str(n), features(n, n), torch.zeros(0, 2), none, GRID, n / 10) for n in (90, 41)]
    together = localize_batch(model, collate(examples), config)
    for e in examples:
        alone, _ = localize(model, e.features, e.grid, e.duration, config)
        np.testing.assert_allclose(together[e.id].segments, alone.segments, atol=1e-4)
        np.testing.assert_allclose(together[e.id].scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize("changes", [{"boundary_fields": "region"}, {"boundary_fields": "none"}], ids=str)
def test_other_boundary_fields_run(changes):
    found, _ = localize(build(**changes), features(120), GRID, 12.0, InferenceConfig())
    assert len(found.scores)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_tiny_recordings(steps):
    for mode in ("refine", "pair", "anchor"):
        found, _ = localize(build(), features(steps), GRID, steps / 10, InferenceConfig(mode=mode))
        assert found.segments.shape == (len(found.scores), 2)


@pytest.mark.parametrize("nms", ["soft", "linear", "hard", "none"])
def test_every_kind_of_suppression(nms):
    found, _ = localize(build(), features(150), GRID, 15.0, InferenceConfig(nms=nms, max_segments=17))
    assert 0 < len(found.scores) <= 17


def test_limits_grow_with_hours_of_recording(monkeypatch):
    monkeypatch.setattr(module, "LIMIT_STEPS", 500)
    config = InferenceConfig(max_segments=7, pre_nms_topk=40, pre_nms_thresh=0.05)
    short, _ = localize(build(), features(500), GRID, 50.0, config)
    long, _ = localize(build(), features(1500), GRID, 150.0, config)
    assert (len(short.scores), len(long.scores)) == (7, 21)

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from small_model import GRID, build, features

from tzn.config import InferenceConfig
from tzn.data.dataset import Example, collate
from tzn.data.grid import TimeGrid
from tzn.errors import ConfigError, LimitWarning
from tzn.inference import decode
from tzn.inference import localize as module
from tzn.inference.localize import candidates, localize, localize_batch
from tzn.inference.localize_many import localize_many


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


ZOOMED = {"zoom_layers": 2, "zoom_window": 5, "embedding_stride": 2, "refinement_layers": 0, "zoom_threshold": 2.0}


def test_the_threshold_is_the_dial_of_a_boundary_stream():
    model, x = build(**ZOOMED), features(300)
    depths = [
        float(candidates(model, x, InferenceConfig(threshold=t)).trace.depth.mean())
        for t in (None, 0.01, 2.0, 6.0, 99.0)
    ]
    as_trained, everything, own, less, nothing = depths
    assert as_trained == own and everything > own > less > nothing == 0
    with pytest.raises(ConfigError, match=r"inference.budget = 0.5: .* turn inference.threshold instead"):
        candidates(model, x, InferenceConfig(budget=0.5))
    with pytest.raises(ConfigError, match=r"inference.threshold = 0.5: this model has no model.zoom_layers"):
        candidates(build(), x, InferenceConfig(threshold=0.5))


def test_recordings_side_by_side_turn_the_same_dial():
    model, lengths = build(**ZOOMED), (60, 97, 41)
    xs, config = [features(n, n) for n in lengths], InferenceConfig(threshold=4.0)
    together = localize_many(model, xs, [GRID] * 3, [60.0] * 3, config)
    for x, (found, _) in zip(xs, together, strict=True):
        alone, _ = localize(model, x, GRID, 60.0, config)
        np.testing.assert_allclose(found.segments, alone.segments, atol=1e-4)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


def test_refining_where_candidates_need_it_equals_refining_with_dense_fields(monkeypatch):
    model, x = build(), features(300)
    config = InferenceConfig(pre_nms_topk=3)
    sparse = candidates(model, x, config)
    computed = ~sparse.trace.distance[0].isnan()
    assert 0.05 < computed.float().mean() < 0.95, "the test must leave steps out"
    monkeypatch.setattr(module, "wanted_steps", lambda *a: None)
    dense = candidates(model, x, config)
    assert not dense.trace.distance.isnan().any()
    _compare(sparse, dense)
    anchor = candidates(model, x, dataclasses.replace(config, mode="anchor"))
    assert (anchor.segments != dense.segments).any(), "the test must move some ends"


@pytest.mark.parametrize("mode", ["refine", "pair", "anchor"])
@pytest.mark.parametrize(("budget", "changes"), [(None, {}), (0.4, {}), (None, ZOOMED)], ids=str)
def test_chunks_give_the_one_pass_result(mode, budget, changes):
    model = build(**changes)
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
    monkeypatch.setattr(decode, "LIMIT_STEPS", 500)
    config = InferenceConfig(max_segments=7, pre_nms_topk=40, pre_nms_thresh=0.05)
    short, _ = localize(build(), features(500), GRID, 50.0, config)
    long, _ = localize(build(), features(1500), GRID, 150.0, config)
    assert (len(short.scores), len(long.scores)) == (7, 21)


@pytest.mark.parametrize("changes", [{}, {"nms": "hard"}, {"nms": "none"}, {"multiclass": False}], ids=str)
def test_standard_errors_are_those_of_the_candidates_picked(changes):
    config = InferenceConfig(pre_nms_topk=50, max_segments=40, **changes)
    raw = candidates(build(), features(300), config)
    marked = torch.arange(2 * len(raw.scores), dtype=torch.float32).reshape(-1, 2)  # says which candidate it is
    found = module.suppress(raw._replace(std=marked), TimeGrid(1.0, 0.0), 300.0, config)
    index = torch.from_numpy(found.std[:, 0] / 2).long()
    assert len(set(index.tolist())) == len(index) > 5
    assert (raw.labels[index].numpy() == found.labels).all()
    wanted = raw.segments[index].clamp(0, 300).numpy()
    moved = np.abs(found.segments - wanted).max()
    assert moved < 1e-5 if config.multiclass else 0 < moved < 30  # voting moves the ends a little


@pytest.mark.parametrize("nms", ["soft", "linear", "hard", "none"])
def test_a_limit_that_cuts_detections_is_said_once_with_the_remedy(nms):
    config = InferenceConfig(nms=nms, max_segments=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every, _ = localize(build(), features(300), GRID, 30.0, config)
        exact = dataclasses.replace(config, max_segments=len(every.scores))
        assert len(localize(build(), features(300), GRID, 30.0, exact)[0].scores) == len(every.scores)
    most = int((every.scores > 0.5 * every.scores[0]).sum()) - 1
    short = dataclasses.replace(config, max_segments=most)
    with pytest.warns(LimitWarning, match=r"max_segments = .*to keep them, raise it") as caught:
        found, _ = localize(build(), features(300), GRID, 30.0, short)
    assert len(caught) == 1 and f"{every.scores[most]:.3g}" in str(caught[0].message)
    np.testing.assert_array_equal(found.scores, every.scores[:most])


def test_a_limit_that_cuts_the_tail_of_soft_suppression_is_not_worth_a_warning():
    segments = torch.arange(20.0)[:, None] * 2 + torch.tensor([0.0, 1.0])
    trace = module.Trace(torch.ones(40), None, None, None, None)
    labels = torch.zeros(20, dtype=torch.long)
    for score, count in ((0.05, 0), (0.2, 1)):
        scores = torch.full((20,), score).index_fill(0, torch.arange(5), 0.9)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = module.suppress(
                module.Candidates(segments, None, scores, labels, trace), GRID, 4.0, InferenceConfig(max_segments=10)
            )
        assert len(found.scores) == 10 and len(caught) == count


@pytest.mark.parametrize(("budget", "passes"), [(None, 1), (0.4, 2)])
def test_progress_is_told_after_every_chunk(budget, passes):
    calls = []
    config = InferenceConfig(chunk=256, budget=budget, mode="anchor")
    localize(build(), features(1500), GRID, 150.0, config, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {passes * 1500} and done[-1] == passes * 1500
    assert len(done) >= 5 * passes and done == sorted(set(done))
    calls.clear()
    localize(build(), features(200), GRID, 20.0, config, progress=lambda *call: calls.append(call))
    assert calls == [(200, 200)]


def test_a_stream_keeps_no_more_candidates_than_the_limits_allow(monkeypatch):
    held = []
    add = module._BestOfLevels.add

    def watched(self, part):
        add(self, part)
        held.append(sum(p.score.numel() for p in self.parts) / self.capacity)

    monkeypatch.setattr(module._BestOfLevels, "add", watched)
    candidates(build(), features(4000), InferenceConfig(chunk=256, pre_nms_topk=50, pre_nms_thresh=0.0, mode="anchor"))
    assert len(held) > 10 and max(held) <= 2

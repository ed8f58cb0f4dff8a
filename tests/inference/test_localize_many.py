"""Recordings side by side give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import GRID, build, features

from tzn.config import InferenceConfig
from tzn.inference import localize_many as module
from tzn.inference.localize import localize
from tzn.inference.localize_many import localize_many
from tzn.models import ActionFormer, ActionFormerConfig

LENGTHS = (44, 29, 1, 60, 57, 2)


def _assert_same(model, config, lengths=LENGTHS, least=6):
    given = [features(steps, seed) for seed, steps in enumerate(lengths)]
    durations = [steps * GRID.step for steps in lengths]
    together = localize_many(model, given, [GRID] * len(given), durations, config)
    assert len(together) == len(given)
    some = 0
    for x, duration, (found, trace) in zip(given, durations, together, strict=True):
        wanted, alone = localize(model, x, GRID, duration, config)
        some += len(wanted.scores)
        assert found.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.segments, wanted.segments, atol=1e-4)
        assert (found.std is None) == (wanted.std is None)
        if wanted.std is not None:
            np.testing.assert_allclose(found.std, wanted.std, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(trace.depth, alone.depth, rtol=1e-4, atol=1e-5)
        assert (trace.distance is None) == (alone.distance is None)
        if alone.distance is not None:  # NaN at the same steps
            torch.testing.assert_close(trace.distance, alone.distance, rtol=1e-3, atol=1e-4, equal_nan=True)
            torch.testing.assert_close(trace.scale, alone.scale, rtol=1e-3, atol=1e-4, equal_nan=True)
            for mine, theirs in ((trace.starts, alone.starts), (trace.ends, alone.ends)):
                assert mine.count.tolist() == theirs.count.tolist() and mine.position.shape == theirs.position.shape
                torch.testing.assert_close(mine.position, theirs.position, rtol=1e-3, atol=1e-3)
    assert some >= least


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "pair"}, {"mode": "anchor", "nms": "hard"}, {"budget": 0.4}, {"estimator": "crossing"}],
    ids=["refine", "pair", "anchor", "budget", "crossing"],
)
def test_a_padded_pass_equals_one_by_one(changes):
    lengths = (600, 800, 1, 500) if "mode" in changes else LENGTHS  # pairs are rare in this network
    _assert_same(build(), InferenceConfig(pre_nms_thresh=0.001, **changes), lengths)


@pytest.mark.parametrize("fields", ["region", "none"])
def test_other_boundary_fields(fields):
    _assert_same(build(boundary_fields=fields), InferenceConfig(pre_nms_thresh=0.05))


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["every step", "chosen steps"])
@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1), (37, 1), (64, 64, 64), (31, 200, 3, 127)], ids=str)
def test_ragged_lengths_with_heads_everywhere_or_where_they_are_wanted(monkeypatch, share, lengths):
    monkeypatch.setattr("tzn.models.temporal_zoom_net.DENSE_SHARE", share)
    _assert_same(build(), InferenceConfig(pre_nms_thresh=0.02, pre_nms_topk=5), lengths, least=1)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("mode", ["refine", "anchor"])
def test_models_with_a_boundary_stream(mode, threshold):
    model = build(refinement_layers=0, embedding_stride=2, first_stride=4, zoom_layers=2, zoom_window=5)
    _assert_same(model, InferenceConfig(pre_nms_thresh=0.02, mode=mode, threshold=threshold))


def test_some_or_all_recordings_without_candidates():
    model = build()
    best = [
        float(model.points(x[None], torch.ones(1, len(x), dtype=torch.bool)).scores.max())
        for x in map(features, LENGTHS)
    ]
    between = (min(best) + max(best)) / 2
    _assert_same(model, InferenceConfig(pre_nms_thresh=between), least=1)
    _assert_same(model, InferenceConfig(pre_nms_thresh=0.999999), least=0)
    _assert_same(model, InferenceConfig(pre_nms_thresh=0.999999, nms="none"), least=0)


def test_limits_are_those_of_each_recording():
    _assert_same(build(), InferenceConfig(pre_nms_thresh=0.001, pre_nms_topk=2, max_segments=3), (300, 260, 280))


def test_no_recording():
    assert localize_many(build(), [], [], [], InferenceConfig()) == []


@pytest.mark.parametrize("positions", [False, True])
def test_actionformer(positions):
    torch.manual_seed(0)
    config = ActionFormerConfig(
        input_dim=7, num_classes=3, embd_dim=16, backbone_arch=(1, 1, 2), n_head=2, n_mha_win_size=5, max_seq_len=48,
        fpn_dim=16, head_dim=16, head_num_layers=2, regression_range=((0, 4), (4, 8), (8, 10000)), cls_prior_prob=0.2,
        use_abs_pe=positions,
    )  # fmt: skip
    model = ActionFormer(config).eval()
    with torch.no_grad():  # padding is not neutral where norms have biases
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("bias"):
                parameter.normal_(std=0.5)
    _assert_same(model, InferenceConfig())


def test_one_pass_serves_all(monkeypatch):
    model, calls = build(), []
    trunk = model.trunk
    monkeypatch.setattr(model, "trunk", lambda x, *a, **k: calls.append(x.shape[0]) or trunk(x, *a, **k))
    given = [features(steps) for steps in (30, 31, 32)]
    module.localize_many(model, given, [GRID] * 3, [3.0] * 3, InferenceConfig())
    assert calls == [3]

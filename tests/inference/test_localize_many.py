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


def _assert_same(model, config, lengths=LENGTHS):
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
    assert some > 5


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

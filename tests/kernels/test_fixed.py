"""Inference with fixed capacities gives what inference recording by recording gives."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from small_model import GRID, build, features
from torch.utils._python_dispatch import TorchDispatchMode

from tzn.config import InferenceConfig
from tzn.inference.fixed import GraphedDetector, detect
from tzn.inference.localize import localize
from tzn.models import ActionFormer, ActionFormerConfig

LENGTHS = (44, 29)
FEW = {"pre_nms_topk": 15, "max_segments": 12}


def _batch(width=7):
    given = torch.zeros(len(LENGTHS), max(LENGTHS), width)
    for row, steps in enumerate(LENGTHS):
        given[row, :steps] = torch.randn(steps, width, generator=torch.Generator().manual_seed(row))
    return given, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def _assert_same(model, config, with_std=True, given=None):
    given, mask = _batch() if given is None else given
    found = detect(model, given, mask, config)
    assert (found.scores[torch.arange(found.scores.shape[1]) >= found.count[:, None]] == -torch.inf).all()
    for row, steps in enumerate(LENGTHS):
        duration = GRID.step * steps
        wanted, _ = localize(model, given[row, :steps], GRID, duration, config)
        ours = found.recording(row, GRID, duration)
        assert len(wanted.scores) > 3
        np.testing.assert_allclose(ours.scores, wanted.scores, rtol=1e-4, atol=1e-6)
        assert ours.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(ours.segments, wanted.segments, rtol=1e-4, atol=1e-4)
        if with_std:
            np.testing.assert_allclose(ours.std, wanted.std, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "anchor", "nms": "hard"},
        {"estimator": "crossing", "nms": "linear", "quality": 1.0, "iou_threshold": 0.3},
        {"estimator": "vote_mean", "budget": 0.5, "duration_thresh": 3.0},
        {"nms": "none"},
    ],
    ids=["default", "anchor-hard", "linear-quality", "budget-duration", "no-suppression"],
)
def test_a_padded_batch_equals_its_recordings(changes):
    _assert_same(build(), InferenceConfig(**FEW, **changes))


def test_voting_over_all_classes():
    _assert_same(build(), InferenceConfig(**FEW, multiclass=False, voting_thresh=0.5), with_std=False)


def test_the_region_field():
    _assert_same(build(boundary_fields="region"), InferenceConfig(**FEW))


def test_actionformer():
    torch.manual_seed(0)
    config = ActionFormerConfig(
        input_dim=7, num_classes=3, embd_dim=16, backbone_arch=(1, 1, 2), n_head=2, n_mha_win_size=5, max_seq_len=64,
        fpn_dim=16, head_dim=16, head_num_layers=2, regression_range=((0, 4), (4, 8), (8, 10000)), cls_prior_prob=0.2,
    )  # fmt: skip
    # Padding is not neutral in ActionFormer, its length is: one recording that fills the batch.
    given = features(LENGTHS[0]).unsqueeze(0)
    model = ActionFormer(config).eval()
    found = detect(model, given, torch.ones(1, LENGTHS[0], dtype=torch.bool), InferenceConfig(**FEW))
    wanted, _ = localize(model, given[0], GRID, 6.0, InferenceConfig(**FEW))
    ours = found.recording(0, GRID, 6.0)
    np.testing.assert_allclose(ours.scores, wanted.scores, rtol=1e-4)
    np.testing.assert_allclose(ours.segments, wanted.segments, atol=1e-4)
    assert ours.std is None


def test_what_it_does_not_do_is_said():
    given, mask = _batch()
    with pytest.raises(ValueError, match="'pair'"):
        detect(build(), given, mask, InferenceConfig(mode="pair"))
    with pytest.raises(ValueError, match="CUDA"):
        GraphedDetector(build(), 1, 44, InferenceConfig())


class NoValues(TorchDispatchMode):
    """Refuses what would make the host wait for the device, and so could not be captured in a CUDA graph either."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        asks = ("_local_scalar_dense", "nonzero", "unique", "aten.equal.")
        assert not any(name in str(function) for name in asks), f"{function} asks the device for a value"
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("budget", [None, 0.5])
def test_nothing_asks_the_device_for_a_value(monkeypatch, budget):
    for name, module in list(sys.modules.items()):  # values are checked on the CPU only
        if name.startswith("tzn.ops.") and hasattr(module, "checks_values"):
            monkeypatch.setattr(module, "checks_values", lambda tensor: False)
    model, (given, mask) = build(), _batch()
    with NoValues():
        detect(model, given, mask, InferenceConfig(**FEW, budget=budget))

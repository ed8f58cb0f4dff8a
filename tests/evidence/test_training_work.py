"""Counting a training must not change it, and counts what it says."""

from __future__ import annotations

import numpy as np
import pytest
import small_run
import torch

from benchmarks.evidence.distillation import training_work
from benchmarks.evidence.distillation.picture import smooth
from tzn.models import build_model
from tzn.models.checkpoint import load_checkpoint
from tzn.profiling import count_flops
from tzn.training import train
from tzn.training.distillation import Teacher
from tzn.training.module import LocalizerModule

SETTINGS = ("training.epochs=2", "model.drop_path=0.4", "training.ema_decay=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.small_data(tmp_path_factory.mktemp("data"))


def test_a_counted_training_gives_the_same_weights(data, tmp_path):
    config = small_run.small_config(*SETTINGS)
    plain, counted = tmp_path / "plain", tmp_path / "counted"
    beside = {"uniform": build_model(small_run.small_config("model.refinement_layers=0").model).train()}
    train(config, data, plain, accelerator="cpu", progress=False)
    original = LocalizerModule.training_step
    with training_work.counted(counted, beside, 2):
        train(config, data, counted, accelerator="cpu", progress=False)
    assert LocalizerModule.training_step is original
    weights = [load_checkpoint(run / "checkpoints" / "last.ckpt").model.state_dict() for run in (plain, counted)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    notes = training_work.course(counted)
    assert [n["step"] for n in notes] == [0, 2]
    assert all(0 < n["uniform"] < n["self"] and 0.9 < n["depth"] <= 1 for n in notes)
    with pytest.raises(SystemExit, match=r"trained without counting"):
        training_work.course(plain)


def test_a_step_with_a_teacher_counts_both_networks_and_leaves_the_random_numbers_alone(data):
    config = small_run.small_config("model.width=8")
    teacher = build_model(small_run.small_config().model)
    module = LocalizerModule(config, ("a", "b", "c"), teacher=Teacher(teacher)).eval()
    features, mask = torch.randn(2, 64, 6), torch.arange(64)[None] < torch.tensor([[64], [50]])
    batch = type("Batch", (), {"features": features, "mask": mask})()
    state = torch.get_rng_state()
    found = training_work.note(module, batch, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert found["self"] == sum(count_flops(module.model, (features, mask)).parts.values())
    assert found["teacher"] == sum(count_flops(teacher, (features, mask)).parts.values()) > found["self"]


def test_running_means_keep_a_constant():
    np.testing.assert_allclose(smooth(np.full(9, 2.0)), 2.0)
    np.testing.assert_allclose(smooth(np.array([0.0, 0, 60, 0, 0])), [20, 15, 12, 15, 20])
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0])), [1, 3])

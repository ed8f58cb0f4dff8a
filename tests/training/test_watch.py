"""Trainings that go wrong, or would: new beginnings, early ends, advice, one epoch."""

from __future__ import annotations

import dataclasses
import json
import warnings
from types import SimpleNamespace

import pytest
import small_run
import torch

import tzn.training.fit as fit
import tzn.training.module as module
from tzn.config import TrainingConfig
from tzn.errors import TrainingError
from tzn.evaluation.detection_map import Score
from tzn.evaluation.report import evaluate
from tzn.models.checkpoint import load_checkpoint
from tzn.models.checkpoint_file import read_checkpoint
from tzn.training import train
from tzn.training.module import warmup_cosine
from tzn.training.watch import BestCheckpoint, LossWatch, advice, some_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.small_data(tmp_path_factory.mktemp("data"))


def _train(data, out, *overrides: str, resume: bool = False):
    best = train(small_run.small_config(*overrides), data, out, accelerator="cpu", progress=False, resume=resume)
    return best, json.loads((out / "run.json").read_text())


def test_a_diverged_training_begins_anew_with_a_smaller_rate(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SLOWER", 1e33)
    overrides = ["training.learning_rate=1e30", "training.warmup_epochs=0", "training.epochs=2"]
    with pytest.warns(UserWarning, match="begins anew with training.learning_rate = 0.001"):
        best, run = _train(data, tmp_path / "run", *overrides, "training.retries=1")
    assert run["epochs"] == 2
    assert load_checkpoint(best).config["training"]["learning_rate"] == 1e-3
    # Resuming with the configuration of the first beginning goes on with the rate that was found.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*begins anew")
        best, _ = _train(data, tmp_path / "run", *overrides, "training.retries=1", resume=True)
    with pytest.raises(TrainingError, match="learning_rate"):
        _train(data, tmp_path / "none", *overrides)


class _Trainer:
    estimated_stepping_batches = 200

    def __init__(self) -> None:
        self.callback_metrics: dict[str, float] = {}


def _watch(losses, positives=100, state=None) -> None:
    """A training whose class and offset losses a positive point are these together, with so many positives a step."""
    trainer, watch, norm = _Trainer(), LossWatch(), 100.0
    if state is not None:
        watch.load_state_dict(state)
    for loss in losses:
        norm = 0.9 * norm + 0.1 * positives
        shown = loss * positives / norm / 2
        trainer.callback_metrics = {"train/class": shown, "train/offset": shown}
        objective = SimpleNamespace(point_norm=torch.tensor(norm))
        config = SimpleNamespace(training=TrainingConfig(loss_norm=100))
        watch.on_train_batch_end(trainer, SimpleNamespace(objective=objective, config=config))


def test_a_loss_that_does_not_fall_ends_the_training():
    _watch([2 - i / 100 for i in range(200)])
    _watch([2 - i / 100 for i in range(40)] + [5.0] * 160)  # only the beginning is watched
    with pytest.raises(TrainingError, match="does not fall"):
        _watch([2.0] * 40)
    with pytest.raises(TrainingError, match="does not fall"):
        _watch([float(i) for i in range(40)])


def test_few_positives_do_not_look_like_a_loss_that_rises():
    _watch([2 - i / 100 for i in range(200)], positives=10)  # as trained it goes from 0.2 up to 1.6
    with pytest.raises(TrainingError, match="does not fall"):
        _watch([2.0] * 40, positives=10)


def test_a_run_of_an_earlier_version_goes_on():
    _watch([2.0] * 40, state={"seen": [1.0, 2.0]})
    with pytest.raises(TrainingError, match="does not fall"):
        _watch([2.0] * 40, state=LossWatch().state_dict())


def test_a_difference_within_the_noise_of_steps_is_none():
    noisy = [2.0 + (0.5 if i % 3 else -0.5) for i in range(40)]
    _watch(noisy)
    with pytest.raises(TrainingError, match="does not fall"):
        _watch([x + i / 10 for i, x in enumerate(noisy)])


def test_one_epoch_trains_and_validates(data, tmp_path):
    best, run = _train(data, tmp_path / "run", "training.epochs=1", 'data.validation=["*3"]')
    assert (run["epochs"], best.name) == (1, "best.ckpt")
    assert run["validation_mAP"] is not None


def test_a_warm_up_longer_than_training_takes_a_fifth():
    config = TrainingConfig(epochs=1, warmup_epochs=5)
    factors = [warmup_cosine(step, 50, config) for step in range(50)]
    assert factors.index(max(factors)) == 9
    assert factors[-1] < 0.01


class _Validated:
    """What a checkpoint callback asks of a trainer, with the error of every validation."""

    def __init__(self, error: float) -> None:
        self.should_stop = False
        self.callback_metrics = {"val/mAP_error": torch.tensor(error)}


def _kept(scores, error, patience=0):
    """Indices of the validations whose weights are kept, and the one that ends the training."""
    watch, trainer, kept = BestCheckpoint(patience), _Validated(error), []
    for i, score in enumerate(scores):
        if watch.check_monitor_top_k(trainer, torch.tensor(score)):
            kept.append(i)
        if trainer.should_stop:
            return kept, i
    return kept, None


def test_a_later_epoch_is_taken_unless_the_segments_can_tell_that_it_is_worse():
    scores = [0.2, 0.5, 0.47, 0.44, 0.46, 0.3]
    assert _kept(scores, 0.0) == ([0, 1], None)
    assert _kept(scores, 0.05) == ([0, 1, 2, 4], None)
    assert _kept(scores, 0.05, patience=1) == ([0, 1, 2], 3)
    assert _kept([0.5, 0.1, 0.1, 0.48, 0.1, 0.1], 0.05, patience=3) == ([0, 3], None)
    # Within the error of the best one so far, not of the one kept: no drift downwards.
    assert _kept([0.5, 0.46, 0.42, 0.38], 0.05) == ([0, 1], None)
    assert _kept([float("nan"), 0.0, float("nan")], 0.0) == ([0, 1], None)


def test_a_resumed_run_remembers_the_best_score():
    before, trainer = BestCheckpoint(2), _Validated(0.01)
    assert before.check_monitor_top_k(trainer, torch.tensor(0.5))
    assert not before.check_monitor_top_k(trainer, torch.tensor(0.4))
    after = BestCheckpoint(2)
    after.load_state_dict(before.state_dict())
    assert not after.check_monitor_top_k(trainer, torch.tensor(0.4))
    assert trainer.should_stop


def test_worse_validations_end_the_training_and_the_weights_before_are_kept(data, tmp_path, monkeypatch):
    scores = iter([0.9, 0.1, 0.1, 0.1, 0.1])

    def decreasing(*args):
        report = evaluate(*args)
        return dataclasses.replace(report, score=dataclasses.replace(report.score, average_mAP=next(scores, 0.1)))

    monkeypatch.setattr(module, "evaluate", decreasing)
    monkeypatch.setattr(Score, "standard_error", 0.05)
    settings = ["training.epochs=12", "training.validate_every=1", "training.patience=2", 'data.validation=["*3"]']
    best, run = _train(data, tmp_path / "run", *settings)
    assert run["epochs"] == 3
    assert read_checkpoint(best)["epoch"] == 0


def test_the_same_score_over_and_over_is_no_reason_to_stop(data, tmp_path):
    settings = ["training.learning_rate=1e-12", "training.epochs=4", "training.validate_every=1", "training.patience=1"]
    best, run = _train(data, tmp_path / "run", *settings, 'data.validation=["*3"]')
    assert run["epochs"] == 4
    assert read_checkpoint(best)["epoch"] == 3


def test_advice_names_what_is_wrong_and_what_helps():
    assert advice(0.9, 0.8) == advice(0.9, None) == []
    (under,), (over,) = advice(0.3, 0.25), advice(0.95, 0.4)
    assert under.startswith("underfit") and "--minutes" in under
    assert over.startswith("overfit") and "data.noise" in over
    assert len(advice(0.45, 0.1)) == 2


def test_training_recordings_are_scored_from_all_over_the_list():
    class Few:
        recordings = [type("R", (), {"labels": [0] if i != 4 else []})() for i in range(9)]

        def raw(self, index):
            return [type("T", (), {"shape": (100, 1)})()]

    assert some_of(Few(), 250) != [0, 1, 2]
    assert 4 not in some_of(Few(), 10**9)
    assert len(some_of(Few(), 10**9)) == 8

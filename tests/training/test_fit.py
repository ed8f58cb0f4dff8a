from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch

from tzn.errors import ConfigError, TrainingError
from tzn.models.checkpoint import load_checkpoint
from tzn.training import train
from tzn.training.objective import Objective

SCRIPT = str(Path(small_run.__file__))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.small_data(tmp_path_factory.mktemp("data"))


def _run(*command: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run from start to end in one process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    _finish(_run(sys.executable, SCRIPT, str(data), str(out)))
    return out


def test_a_run_learns_and_leaves_config_checkpoints_and_logs(finished):
    curve = small_run.losses(finished)
    first, last = [sum(curve[s] for s in steps) for steps in (sorted(curve)[:2], sorted(curve)[-2:])]
    assert last < 0.8 * first
    assert (finished / "config.yaml").is_file()
    assert list(finished.glob("logs/tensorboard/version_0/events*"))
    assert not list(finished.rglob("*.tmp"))
    loaded = load_checkpoint(finished / "checkpoints" / "last.ckpt")
    assert loaded.classes == ("class_0", "class_1", "class_2")
    assert loaded.model.feature_std.std() > 0  # standardisation travels with the checkpoint


def test_two_gloo_processes_follow_the_same_loss_curve_as_one(data, finished, tmp_path):
    out = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT]
    _finish(_run(*torchrun, str(data), str(out)))
    one, two = small_run.losses(finished), small_run.losses(out)
    assert one.keys() == two.keys() and len(one) >= 8
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-4), step


def test_gradient_accumulation_takes_as_many_steps_and_stays_close(data, finished, tmp_path):
    out = tmp_path / "accumulated"
    train(small_run.small_config("training.accumulate=2"), data, out, accelerator="cpu", progress=False)
    assert len(_weights(out)) == len(_weights(finished))
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    whole = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == whole["global_step"]


ZOOMED = ["model.refinement_layers=0", "model.embedding_stride=2", "model.zoom_layers=2"]


@pytest.mark.parametrize(
    "changes",
    [ZOOMED, [*ZOOMED, "training.depth=random"], ["training.depth=random"],
     ["training.depth=random", "model.refinement_layers=0"]],
    ids=str,
)  # fmt: skip
def test_a_boundary_stream_and_random_depths_learn(data, tmp_path, changes):
    config = small_run.small_config(*changes)
    train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    values = [value for _, value in sorted(small_run.losses(tmp_path / "run").items())]
    third = len(values) // 3
    assert np.isfinite(values).all() and np.mean(values[-third:]) < 0.9 * np.mean(values[:third])
    loaded = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert loaded.model.config == config.model


def test_a_killed_run_resumes_to_the_same_weights(data, finished, tmp_path):
    out = tmp_path / "killed"
    process = _run(sys.executable, SCRIPT, str(data), str(out))
    last = out / "checkpoints" / "last.ckpt"
    deadline = time.time() + 120
    while not last.is_file() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = torch.load(last, weights_only=True)["epoch"]
    assert done < 3, "the run was over before it could be killed"
    _finish(_run(sys.executable, SCRIPT, str(data), str(out), "--resume"))
    expected, resumed = _weights(finished), _weights(out)
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], rtol=0, atol=0, msg=name)
    curve, whole = small_run.losses(out), small_run.losses(finished)
    later = [step for step in whole if step in curve]
    assert max(later) == max(whole)
    assert all(curve[step] == whole[step] for step in later)


def test_a_nan_loss_ends_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    calls = {"count": 0}
    original = Objective.forward

    def broken(self, *arguments):
        calls["count"] += 1
        result = original(self, *arguments)
        if calls["count"] == 4:
            result["loss"] = result["loss"] * float("nan")
        return result

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(TrainingError, match=r"loss became NaN.*last good checkpoint is kept"):
        train(small_run.small_config(), data, tmp_path / "run", accelerator="cpu", progress=False)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").model is not None


def test_running_out_of_memory_says_what_to_change(data, tmp_path, monkeypatch):
    def exhausted(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Objective, "forward", exhausted)
    with pytest.raises(TrainingError, match=r"out of memory; lower data.max_length.*No checkpoint had been written"):
        train(small_run.small_config(), data, tmp_path / "run", accelerator="cpu", progress=False)


def test_validation_recordings_choose_the_best_checkpoint(data, tmp_path):
    config = small_run.small_config(
        'data.validation=["synthetic_00[01]"]',
        "training.validate_every=1",
        "training.epochs=2",
        "training.batch_size=2",
    )
    best = train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    assert best.name == "best.ckpt" and best.is_file()
    text = next((tmp_path / "run").glob("logs/csv/version_0/metrics.csv")).read_text()
    assert "val/mAP" in text.splitlines()[0]


def test_mixed_precision_runs(data, tmp_path):
    config = small_run.small_config("training.precision=bf16-mixed", "training.epochs=2")
    train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    assert all(value == value for value in small_run.losses(tmp_path / "run").values())


def test_nothing_is_overwritten_and_nothing_resumed_by_accident(data, finished, tmp_path):
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        train(small_run.small_config(), data, finished, accelerator="cpu", progress=False)
    with pytest.raises(ConfigError, match=r"--resume: .*last.ckpt does not exist"):
        train(small_run.small_config(), data, tmp_path / "new", resume=True, accelerator="cpu", progress=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_classes=4", "model.num_classes = 4, but .* has 3"),
        ("model.input_dim=7", "6 wide|expected 7|input_dim"),
        ("data.train_subset=train", "subset 'train'"),
        ("training.batch_size=3", "divisible|accumulate"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_anything_is_written(data, tmp_path, override, message):
    extra = ("training.accumulate=2",) if "batch_size" in override else ()
    with pytest.raises(ValueError, match=message):
        train(small_run.small_config(*extra, override), data, tmp_path / "run", accelerator="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_actionformer_trains_evaluates_and_predicts_through_the_same_commands(data, tmp_path):
    from tzn.config_loading import config_from_dict, config_to_dict
    from tzn.inference.evaluate_checkpoint import evaluate_checkpoint

    content = config_to_dict(small_run.small_config("training.epochs=12", "training.loss_norm=20"))
    del content["model"]
    content["actionformer"] = {
        "input_dim": 6, "num_classes": 3, "embd_dim": 16, "fpn_dim": 16, "head_dim": 16, "n_head": 2,
        "n_mha_win_size": 5, "backbone_arch": [1, 1, 2], "regression_range": [[0, 8], [8, 32], [32, 10000]],
        "max_seq_len": 128,
    }  # fmt: skip
    config = config_from_dict(content)
    last = train(config, data, tmp_path / "run", accelerator="cpu", progress=False)
    curve = small_run.losses(tmp_path / "run")
    steps = sorted(curve)
    assert sum(curve[s] for s in steps[-4:]) < 0.9 * sum(curve[s] for s in steps[:4])
    loaded = load_checkpoint(last)
    assert type(loaded.model).__name__ == "ActionFormer"
    stored = config_from_dict(loaded.config)
    assert stored.inference.max_segments >= 200  # from the density of the annotations
    assert dataclasses.replace(stored, inference=config.inference) == config
    assert loaded.model.feature_std.std() > 0
    result = evaluate_checkpoint(loaded, data, progress=False)
    assert result.gmac > 0 and set(result.detections)

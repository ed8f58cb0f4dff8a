"""Training that starts from a trained model: what is taken over, what begins anew, and that it helps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_run import losses, small_config, small_data

from tzn.cli import main
from tzn.config_loading import config_from_dict, dump_config
from tzn.errors import CheckpointError, ConfigError
from tzn.models import build_model
from tzn.models.checkpoint import load_checkpoint, run_checkpoint
from tzn.models.pretrained import load_pretrained
from tzn.training import train
from tzn.training.start import sized_like, start_from


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("start")
    small_data(place / "data")
    longer = small_config("training.epochs=40", "training.batch_size=2", "training.learning_rate=4e-3")
    train(longer, place / "data", place / "run", accelerator="cpu", progress=False)
    return place


def _weights(run):
    return load_checkpoint(run_checkpoint(run)).model.state_dict()


def test_the_same_classes_and_input_take_everything(place):
    config = sized_like(small_config("model.width=32"), str(place / "run"))
    assert config.model.width == 16 and config.training.start == str(place / "run")
    model = build_model(config.model)
    classes = load_checkpoint(run_checkpoint(place / "run")).classes
    started = start_from(str(place / "run"), model, classes)
    assert started.share == 1 and not started.anew and started.classes == classes and not started.new_classes
    source = _weights(place / "run")
    for name, value in model.state_dict().items():
        assert name.startswith("feature_") or torch.equal(value, source[name]), name
    assert model.feature_mean.abs().sum() == 0  # the statistics are those of the new data


def test_other_classes_keep_what_has_their_name_and_another_input_begins_anew(place):
    source = str(place / "run")
    config = sized_like(small_config("model.input_dim=9", "model.num_classes=4"), source)
    assert (config.model.input_dim, config.model.num_classes, config.model.width) == (9, 4, 16)
    torch.manual_seed(5)
    model = build_model(config.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = start_from(source, model, ("new", "class_2", "other", "class_0"))
    assert started.classes == ("class_2", "class_0") and started.new_classes == ("new", "other")
    assert started.anew == ("embedding.project.weight",)
    assert 0.9 < started.share < 1 and "2 classes keep their weights, 2 begin anew: new, other" in started.text()
    after, there = model.state_dict(), _weights(place / "run")
    for part in ("weight", "bias"):
        name = f"class_head.output.{part}"
        assert torch.equal(after[name][[1, 3]], there[name][[2, 0]])
        assert torch.equal(after[name][[0, 2]], before[name][[0, 2]])
    assert torch.equal(after["embedding.project.weight"], before["embedding.project.weight"])
    assert torch.equal(after["embedding.project.bias"], there["embedding.project.bias"])


def test_a_start_is_worth_epochs(place, tmp_path):
    """Three epochs from the trained run, and from nothing."""
    (tmp_path / "c.yaml").write_text(dump_config(small_config("training.epochs=3")))
    command = ["train", str(tmp_path / "c.yaml"), "--data", str(place / "data"), "--no-progress", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "new")]) == 0
    assert main([*command, "--out", str(tmp_path / "tuned"), "--from", str(place / "run")]) == 0
    first, second = losses(tmp_path / "new"), losses(tmp_path / "tuned")
    assert sum(second.values()) < 0.9 * sum(first.values())
    config = config_from_dict(load_checkpoint(run_checkpoint(tmp_path / "tuned")).config)
    assert config.training.start == str(place / "run")


def test_resuming_goes_on_where_the_run_was(place, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(dump_config(small_config("training.epochs=2")))
    command = ["train", str(tmp_path / "c.yaml"), "--data", str(place / "data"), "--out", str(tmp_path / "run"),
               "--no-progress", "--device", "cpu", "--from", str(place / "run")]  # fmt: skip
    assert main(command) == 0 and "100.0 % of the weights start from" in capsys.readouterr().err
    before = _weights(tmp_path / "run")
    assert main([*command, "--resume"]) == 0  # finished: nothing left to do, and nothing is set back to the start
    assert "start from" not in capsys.readouterr().err
    assert all(torch.equal(v, before[n]) for n, v in _weights(tmp_path / "run").items())


def test_a_model_that_comes_with_tzn(place):
    hapt = load_pretrained("hapt").checkpoint
    config = sized_like(small_config(), "hapt")
    assert config.model == dataclasses.replace(hapt.model.config, input_dim=6, num_classes=3)
    started = start_from("hapt", build_model(config.model), ("SITTING", "x", "y"))
    assert started.classes == ("SITTING",) and started.share > 0.95


def test_what_is_refused(place, tmp_path, capsys):
    with pytest.raises(ConfigError, match="only .* % of the weights fit"):
        start_from(str(place / "run"), build_model(small_config("model.width=32").model), ("a", "b", "c"))
    with pytest.raises(CheckpointError, match="--from nothing: 'nothing': no such file or folder"):
        sized_like(small_config(), "nothing")
    (tmp_path / "c.yaml").write_text(dump_config(small_config()))
    command = ["train", str(tmp_path / "c.yaml"), "--data", str(place / "data"), "--out", str(tmp_path / "out")]
    assert main([*command, "--from", "thumos"]) == 2
    assert "model that comes with tzn: 'hapt'" in capsys.readouterr().err and not (tmp_path / "out").exists()

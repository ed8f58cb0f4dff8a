from __future__ import annotations

import pytest
import small_run
import torch

from tzn.config_loading import config_from_dict, config_to_dict
from tzn.errors import CheckpointError
from tzn.models import TemporalZoomNet
from tzn.models.checkpoint import checkpoint_header, load_checkpoint, run_checkpoint

CLASSES = ("a", "b", "c")


def _content(config=None):
    config = config or small_run.small_config()
    model = TemporalZoomNet(config.model)
    weights = {f"model.{k}": v for k, v in model.state_dict().items()}
    return model, {"state_dict": weights, "tzn": checkpoint_header(model, config_to_dict(config), CLASSES)}


def test_round_trip(tmp_path):
    model, content = _content()
    torch.save(content, tmp_path / "x.ckpt")
    loaded = load_checkpoint(tmp_path / "x.ckpt")
    assert loaded.classes == CLASSES and config_from_dict(loaded.config) == small_run.small_config()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert not loaded.model.training


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "other", "newer", "misfit", "pickle"])
def test_damaged_checkpoints_give_one_clear_line(tmp_path, damage):
    path = tmp_path / "x.ckpt"
    _, content = _content()
    if damage == "newer":
        content["tzn"]["format"] = 99
    if damage == "misfit":
        content["tzn"]["config"]["model"]["width"] = 32
    if damage == "other":
        content = {"weights": torch.zeros(3)}
    if damage == "pickle":
        content["state_dict"] = Exception("arbitrary object")
    if damage != "missing":
        torch.save(content, path)
    if damage in ("empty", "truncated", "text"):
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello world"}[damage])
    with pytest.raises(CheckpointError, match="x.ckpt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_run_folder_stands_for_its_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no checkpoints/last.ckpt"):
        run_checkpoint(tmp_path)
    folder.mkdir()
    _, content = _content()
    for name in ("best", "last"):
        torch.save(content, folder / f"{name}.ckpt")
    assert run_checkpoint(tmp_path).name == "last.ckpt"  # without validation "best" says little
    _, content = _content(small_run.small_config('data.validation=["a*"]'))
    torch.save(content, folder / "best.ckpt")
    assert run_checkpoint(tmp_path).name == "best.ckpt"
    assert run_checkpoint(folder / "last.ckpt") == folder / "last.ckpt"

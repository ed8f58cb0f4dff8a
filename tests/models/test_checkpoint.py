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


class Boom:
    """What a hostile checkpoint holds: unpickled freely, it would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("echo owned > owned",)


def _damaged(content: dict, damage: str) -> dict:
    header, weights = content["tzn"], content["state_dict"]
    first = next(iter(weights))
    changes = {
        "state dict is a list": lambda: content.update(state_dict=[1, 2]),
        "a weight is a text": lambda: weights.update({first: "heavy"}),
        "a weight is missing": lambda: weights.pop(first),
        "a weight is unknown": lambda: weights.update({"model.extra": torch.zeros(2)}),
        "a shape": lambda: weights.update({first: torch.zeros(2, 3, 5)}),
        "a class too many": lambda: header["classes"].append("d"),
        "classes are numbers": lambda: header.update(classes=[1, 2, 3]),
        "classes are a text": lambda: header.update(classes="abc"),
        "config is a list": lambda: header.update(config=[]),
        "config has no model": lambda: header["config"].pop("model"),
        "config is unknown": lambda: header["config"]["model"].update(widht=3),
        "config is huge": lambda: header["config"]["model"].update(width=1 << 30),
        "config is negative": lambda: header["config"]["model"].update(num_levels=-1),
        "mean has another width": lambda: header.update(feature_mean=torch.zeros(3)),
        "mean is a text": lambda: header.update(feature_mean="zero"),
        "format is a text": lambda: header.update(format="1"),
        "code": lambda: content.update(extra=Boom()),
    }
    changes[damage]()
    return content


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("state dict is a list", "its state_dict is a list, expected weights by name"),
        ("a weight is a text", "1 no tensors: "),
        ("a weight is missing", "1 missing: feature_mean"),
        ("a weight is unknown", "1 unknown: extra"),
        ("a shape", r"1 of another shape: feature_mean is \(2, 3, 5\), expected \(6,\)"),
        ("a class too many", "names 4 classes, expected the 3 texts of model.num_classes"),
        ("classes are numbers", "expected the 3 texts"),
        ("classes are a text", "classes is a str, expected a list"),
        ("config is a list", "config is a list, expected a dict"),
        ("config has no model", "model.input_dim and model.num_classes must be set"),
        ("config is unknown", r"unknown name model.widht; did you mean 'width'\?"),
        ("config is huge", "configuration of an impossible network"),
        ("config is negative", "model.num_levels = -1: expected an integer >= 1"),
        ("mean has another width", "standardisation does not fit"),
        ("mean is a text", "feature_mean is a str, expected a Tensor"),
        ("format is a text", "format is a str, expected a int"),
        ("code", "contains code, refused"),
    ],
)
def test_every_kind_of_misfit_is_named(tmp_path, monkeypatch, damage, words):
    monkeypatch.chdir(tmp_path)
    _, content = _content()
    torch.save(_damaged(content, damage), "x.ckpt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint("x.ckpt")
    assert str(caught.value).startswith("x.ckpt: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_flipped_bytes_are_damage_not_a_traceback(tmp_path):
    _, content = _content()
    torch.save(content, tmp_path / "good.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "x.ckpt"
    for _ in range(20):
        bad = bytearray(good)
        for at in torch.randint(len(bad), (20,), generator=generator).tolist():
            bad[at] ^= 0xFF
        path.write_bytes(bad)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)

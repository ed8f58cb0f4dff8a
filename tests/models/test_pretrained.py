"""The model that comes with the package, on raw signals of people it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tzn
from tzn.cli import main
from tzn.config_loading import config_from_dict
from tzn.data.dataset import load_split_annotations, select_recordings
from tzn.detections import read_predictions
from tzn.errors import CheckpointError
from tzn.evaluation.boundary_error import boundary_errors
from tzn.evaluation.detection_map import score_detections
from tzn.evaluation.flat import GroundTruth
from tzn.models.pretrained import FOLDER, load_pretrained, pretrained_names, save_pretrained

TEST = ("exp04_user02", "exp18_user09")


def _signal(shared: Path, name: str) -> np.ndarray:
    """Raw samples ``[T * 5, 6]`` at 50 Hz."""
    return np.load(shared / f"data/hapt/features/{name}.npy").astype(np.float32).reshape(-1, 6)


def test_raw_signals_in_detections_out(shared, tmp_path, capsys):
    first, second = (tmp_path / f"{TEST[0]}.csv", tmp_path / f"{TEST[1]}.npy")
    np.savetxt(first, _signal(shared, TEST[0]), delimiter=",", fmt="%.6f", header="ax,ay,az,gx,gy,gz", comments="")
    np.save(second, _signal(shared, TEST[1]))
    out = tmp_path / "predictions.json"
    assert main(["predict", "--pretrained", "hapt", str(first), str(second), "--out", str(out)]) == 0
    model = load_pretrained("hapt").checkpoint
    config = config_from_dict(model.config)
    annotations = load_split_annotations(shared / "data/hapt", config.data, model.classes)
    test = {r.id: r for r in select_recordings(annotations, config.data, "test")}
    truth = {name: GroundTruth(test[name].segments, test[name].labels) for name in TEST}
    found, _ = read_predictions(out, list(model.classes))
    score = score_detections(truth, found, list(model.classes), (0.5, 0.7))
    assert score.mAP[0] > 0.9 and score.mAP[1] > 0.75


def test_it_is_small_and_has_a_card():
    for weights in FOLDER.glob("*.safetensors"):
        assert weights.stat().st_size < 10e6
        card = weights.with_suffix(".md").read_text()
        for section in ("## Data", "## Licence", "## Metrics", "## Limits", "## Input"):
            assert section in card


def test_another_number_of_columns_is_named(tmp_path, capsys):
    path = tmp_path / "phone.csv"
    np.savetxt(path, np.zeros((600, 5)), delimiter=",")
    assert main(["predict", "--pretrained", "hapt", str(path), "--out", str(tmp_path / "p.json")]) == 2
    assert "5 columns, expected 6" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(CheckpointError, match="expected one of hapt"):
        load_pretrained("thumos")


def test_a_saved_model_comes_back(tmp_path, monkeypatch):
    model = load_pretrained("hapt")
    save_pretrained(tmp_path / "copy.safetensors", model.checkpoint, model.signal)
    monkeypatch.setattr("tzn.models.pretrained.FOLDER", tmp_path)
    again = load_pretrained("copy")
    assert again.signal == model.signal and again.checkpoint.classes == model.checkpoint.classes
    for name, tensor in again.checkpoint.model.state_dict().items():
        assert tensor.equal(model.checkpoint.model.state_dict()[name])
    assert json.dumps(again.checkpoint.config) == json.dumps(model.checkpoint.config)


def test_every_model_is_listed_with_what_one_chooses_by(capsys):
    assert main(["pretrained", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sorted(listed) == pretrained_names() and "hapt" in listed
    for name, facts in listed.items():
        assert {"license", "data", "input", "metrics", "seconds", "classes", "size"} <= set(facts), name
        model = load_pretrained(name)
        assert facts["parameters"] == sum(p.numel() for p in model.checkpoint.model.parameters())
        assert facts["classes"].split(", ") == list(model.checkpoint.classes)
        assert (FOLDER / f"{name}.safetensors").stat().st_size <= 3e6
        assert main(["pretrained", "show", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"# {name}") and f"--pretrained {name}" in shown
    assert main(["pretrained", "list"]) == 0 and "hapt: " in capsys.readouterr().out
    assert main(["pretrained", "show", "thumos"]) == 2 and "expected one of hapt" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "least"), [("sp_sw_har", 0.9), ("ludb", 0.9), ("hapt", 0.9)])
def test_raw_signals_of_people_not_seen(name, least, shared):
    model = tzn.load(name)
    annotations = load_split_annotations(shared / "data" / name, model.config.data, model.classes)
    test = select_recordings(annotations, model.config.data, "test")[:6]
    found = {}
    for recording in test:
        features = np.load(shared / f"data/{name}/features/{recording.id}.npy").astype(np.float32)
        found[recording.id] = model(features.reshape(-1, model.channels))
    truth = {r.id: GroundTruth(r.segments, r.labels) for r in test}
    assert score_detections(truth, found, list(model.classes), (0.5,)).mAP[0] > least
    # What is said of the errors is there, and far from nothing.
    errors = boundary_errors(truth, found, len(model.classes))
    assert all(d.calibrated for d in found.values())
    covered = np.abs(errors.error) <= model(features.reshape(-1, model.channels)).intervals.factor(0.9) * errors.std
    assert 0.75 < covered.mean() < 0.99

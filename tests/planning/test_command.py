"""``tzn init`` and ``tzn train DATA`` from the command line to a checkpoint that predicts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_sets import many, write_set

from tzn.cli import main
from tzn.config_loading import load_config

SMALL = ["model.width=32", "model.head_width=16", "model.boundary_width=16", "training.epochs=2", "training.patience=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """100 samples a second for actions of seconds: the plan pools them."""
    return many(tmp_path_factory.mktemp("sets") / "phone", 5, 100.0, 60.0, (2.0, 8.0), 2, names="s{:02d}_x")


def test_init_writes_a_configuration_once(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(data), "--minutes", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "5 training recordings" in said and "next: tzn train phone.yaml" in said
    config = load_config("phone.yaml")
    assert config.data.pool > 1 and config.model.num_classes == 2
    text = (tmp_path / "phone.yaml").read_text()
    assert "CPU minutes" in text and text.count("# ") > 50
    assert main(["init", str(data)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["init", str(data), "--minutes", "-1", "--out", "other.yaml"]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_train_plans_itself_resumes_and_predicts(data, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", str(data), "--out", str(out), "--minutes", "0.2", "--no-progress", "--device", "cpu", *SMALL]
    assert main([*command, "data.crops_per_epoch=8"]) == 0
    capsys.readouterr()
    assert load_config(out / "plan.yaml").data.pool == load_config(out / "config.yaml").data.pool > 1
    assert json.loads((out / "run.json").read_text())["epochs"] == 2
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", str(data), "--out", str(out), "--no-progress", "--device", "cpu", "--resume"]) == 0
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(data), "--out", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr().out
    assert "what goes wrong" in said and "localization" in said
    assert (tmp_path / "scores" / "errors.png").is_file()
    costs = json.loads((tmp_path / "scores" / "report.json").read_text())["trained"]["error_costs"]
    assert {"name", "gain", "number"} == set(costs[0])
    predictions = tmp_path / "found.json"
    assert main(["predict", str(out), str(data / "features" / "s05_x.npy"), "--out", str(predictions), "--quiet"]) == 0
    found = json.loads(predictions.read_text())["results"]["s05_x"]
    assert found and max(d["segment"][1] for d in found) <= 60.0


def test_actionformer_is_planned_alike(tmp_path, capsys):
    data = many(tmp_path / "data", 4, 20.0, 30.0, (1.0, 4.0), 1)
    assert (
        main(["init", str(data), "--model", "actionformer", "--out", str(tmp_path / "a.yaml"), "--minutes", "0.1"]) == 0
    )
    config = load_config(tmp_path / "a.yaml")
    assert config.inference.mode == "anchor" and config.data.crops_per_epoch


def test_a_configuration_and_a_folder_are_told_apart(data, tmp_path, capsys):
    assert main(["train", str(data), "--data", str(data)]) == 2
    assert "no --data" in capsys.readouterr().err
    assert main(["train", "configs/hapt.yaml"]) == 2
    assert "expected --data FOLDER" in capsys.readouterr().err


def test_pooled_models_answer_alike_from_files_arrays_and_streams(data, tmp_path, capsys):
    import tzn

    out = tmp_path / "run"
    command = ["train", str(data), "--out", str(out), "--minutes", "0.2", "--no-progress", "--device", "cpu", *SMALL]
    assert main([*command, "data.crops_per_epoch=8", "inference.voting_thresh=0"]) == 0
    capsys.readouterr()
    model, path = tzn.load(out), data / "features" / "s05_x.npy"
    rows = np.load(path)
    one, two = model(path), model(rows)
    assert np.array_equal(one.segments, two.segments) and len(one)
    live = model.stream()
    parts = [live.push(rows[i : i + 333]) for i in range(0, len(rows), 333)] + [live.close()]
    streamed = max(float(p.scores.max()) for p in parts if len(p))
    assert streamed == pytest.approx(float(one.scores.max()), rel=1e-3)


def test_constant_and_unlabelled_recordings_train(tmp_path, capsys):
    rng = np.random.default_rng(0)
    made = {}
    for i in range(4):
        x = np.concatenate([rng.standard_normal((300, 1)), np.full((300, 2), 3.0)], 1).astype(np.float32)
        x[100:150, 0] += 3
        made[f"r{i}"] = (x, [(10.0, 15.0, "up")] if i else [], {"fps": 10})
    data = write_set(tmp_path / "data", made)
    command = [
        "train",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--minutes",
        "0.1",
        "--no-progress",
        "--device",
        "cpu",
    ]
    assert main([*command, *SMALL, "data.crops_per_epoch=8"]) == 0

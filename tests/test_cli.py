from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run

from tzn.cli import build_parser, main
from tzn.training import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_run.small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    train(small_run.small_config("training.epochs=6"), data, out, accelerator="cpu", progress=False)
    return out


def _fails(capsys, *arguments: object) -> str:
    """The one line that a failing command prints; exit code 2."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("tzn ")]
    assert len(lines) == 1 and "Traceback" not in printed.err, printed.err
    return lines[0]


def test_every_command_explains_itself_with_an_example(capsys):
    parser = build_parser()
    assert "tzn demo" in parser.format_help()
    for command in (
        ["demo"],
        ["features"],
        ["train"],
        ["eval"],
        ["predict"],
        ["corpus"],
        ["merge"],
        ["compare"],
        ["serve"],
        ["score"],
        ["convert"],
        ["data", "check"],
        ["plot"],
        ["view"],
        ["info"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--help"])
        assert stopped.value.code == 0
        assert "example: tzn" in capsys.readouterr().out


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["backends"]["reference"] == "available"
    assert info["versions"]["torch"] and "cpu" in info["devices"]
    assert main(["info"]) == 0
    assert "versions" in capsys.readouterr().out


def test_train_from_yaml_with_overrides_anywhere(data, tmp_path, capsys):
    from tzn.config_loading import dump_config

    (tmp_path / "small.yaml").write_text(dump_config(small_run.small_config()))
    command = ["train", tmp_path / "small.yaml", "--data", data, "training.epochs=2", "--out", tmp_path / "run"]
    command += ["--device", "cpu", "--no-progress", "training.warmup_epochs=0"]
    assert main([str(c) for c in command]) == 0
    assert "next: tzn eval" in capsys.readouterr().out
    assert "epochs: 2" in (tmp_path / "run" / "config.yaml").read_text()


def test_eval_compares_depths_and_writes_predictions(run, data, tmp_path, capsys):
    budgets = [word for b in ("trained", "0.1", "1") for word in ("--budget", b)]
    assert main(["eval", str(run), "--data", str(data), *budgets, "--json", "--out", str(tmp_path)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["0.1"]["mean_depth"] == pytest.approx(0.1, abs=0.01)
    assert results["1"]["mean_depth"] == 1
    assert results["0.1"]["gmac_per_recording"] < 0.95 * results["1"]["gmac_per_recording"]
    written = json.loads((tmp_path / "predictions.json").read_text())["results"]
    database = json.loads((data / "annotations.json").read_text())["database"]
    assert set(written) == {name for name, entry in database.items() if entry["subset"] == "test"}
    assert main(["eval", str(run), "--data", str(data)]) == 0
    assert "mean depth" in capsys.readouterr().out
    # What eval wrote scores the same from its file.
    assert main(["score", str(tmp_path / "predictions.json"), str(data / "annotations.json"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert list(scored) == ["tiou", "mAP", "average_mAP", "ap", "classes", "recall"]
    assert scored["average_mAP"] == pytest.approx(results["trained"]["average_mAP"], abs=1e-3)


@pytest.mark.parametrize("fmt", ["json", "csv", "srt"])
def test_predict_writes_every_format_and_plot_draws_it(run, data, tmp_path, fmt, capsys):
    files = sorted((data / "features").glob("*.npy"))[:2]
    out = tmp_path / ("subtitles" if fmt == "srt" else f"predictions.{fmt}")
    command = ["predict", run, *files, "--out", out, "--format", fmt, "--traces", tmp_path / "traces"]
    assert main([str(c) for c in command]) == 0
    if fmt == "srt":
        assert {p.name for p in out.iterdir()} == {f"{f.stem}.srt" for f in files}
    if fmt == "csv":
        assert out.read_text().startswith("video,start,end,label,score")
    if fmt == "json":
        results = json.loads(out.read_text())["results"]
        assert set(results) == {f.stem for f in files}
        first = results[files[0].stem][0]
        assert set(first) == {"segment", "label", "score", "segment_std"}
        command = ["plot", data / "annotations.json", "--predictions", out, "--traces", tmp_path / "traces"]
        assert main([str(c) for c in [*command, "--recording", files[0].stem, "--out", tmp_path / "plots"]]) == 0
        assert (tmp_path / "plots" / f"{files[0].stem}.png").read_bytes()[:4] == b"\x89PNG"


def _bad_file(kind: str, folder: Path) -> Path:
    path = folder / "recording.npy"
    good = np.zeros((50, 6), np.float32)
    if kind == "nan":
        good[7, 2] = np.nan
    np.save(path, np.zeros((50, 5), np.float32) if kind == "width" else good)
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    if kind == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "empty"),
        ("width", "5"),
        ("nan", "step 7, channel 2"),
        ("truncated", "truncated"),
        ("missing", "no such"),
    ],
)
def test_predict_on_a_bad_file_is_one_clear_line_and_writes_nothing(run, tmp_path, capsys, kind, words):
    line = _fails(
        capsys,
        "predict",
        run,
        _bad_file(kind, tmp_path),
        "--out",
        tmp_path / "out" / "p.json",
        "--traces",
        tmp_path / "t",
    )
    assert "recording.npy" in line and words in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "t").exists()


def test_a_good_file_beside_a_bad_one_is_not_written_either(run, data, tmp_path, capsys):
    good = next((data / "features").glob("*.npy"))
    _fails(capsys, "predict", run, good, _bad_file("nan", tmp_path), "--out", tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def test_missing_checkpoints_configs_and_options(run, data, tmp_path, capsys):
    assert "no such file or folder" in _fails(
        capsys, "predict", tmp_path / "no.ckpt", data, "--out", tmp_path / "p.json"
    )
    assert "no such configuration" in _fails(capsys, "train", tmp_path / "no.yaml", "--data", data)
    assert "did you mean" in _fails(capsys, "eval", run, "--data", data, "inference.modee=pair")
    assert "--budget 1.5" in _fails(capsys, "eval", run, "--data", data, "--budget", "1.5")
    assert "no such" in _fails(capsys, "score", tmp_path / "p.json", data / "annotations.json")
    assert "'tests'" in _fails(capsys, "plot", data / "annotations.json", "--split", "tests", "--out", tmp_path / "x")
    assert "tiou 'half'" in _fails(capsys, "score", "p.json", "a.json", "--tiou", "half")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x.yaml", "--data", "d", "--epochs", "3"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("override", ["model.width=64", "training.epochs=3", "data.noise=0.5", "data.max_length=64"])
def test_overrides_that_cannot_change_a_trained_network_are_refused(run, data, tmp_path, capsys, override):
    line = _fails(capsys, "eval", run, "--data", data, override)
    assert override in line and "has no effect on a trained network" in line
    features = next((data / "features").glob("*.npy"))
    assert override in _fails(capsys, "predict", run, features, "--out", tmp_path / "p.json", override)


def test_machines_that_are_not_there_are_named_before_anything_is_done(run, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "--device cuda:7: not on this machine" in _fails(
        capsys, "eval", run, "--data", data, "--device", "cuda:7", "--out", out
    )
    assert "--device banana" in _fails(capsys, "train", "configs/hapt.yaml", "--data", data, "--device", "banana")
    monkeypatch.setenv("TZN_BACKEND", "banana")
    assert "TZN_BACKEND = 'banana': expected one of auto" in _fails(capsys, "eval", run, "--data", data, "--out", out)
    assert not out.exists()


def test_memory_that_is_not_there_is_one_line(run, data, capsys, monkeypatch):
    from tzn.inference import evaluate_checkpoint

    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):

        def exhausted(*_, error=error, **__):
            raise error

        monkeypatch.setattr(evaluate_checkpoint, "evaluate_checkpoint", exhausted)
        assert "out of memory" in _fails(capsys, "eval", run, "--data", data)


def test_a_closed_pipe_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-m", "tzn", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 2 and errors.splitlines()[-1].startswith("tzn info: the output was closed")
    assert "Traceback" not in errors and "Exception ignored" not in errors


def test_data_check_prints_and_suggests(data, capsys):
    assert main(["data", "check", str(data)]) == 0
    assert "regression_ranges" in capsys.readouterr().out
    assert main(["data", "check", str(data), "--json", "data.fps=10"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert "data.fps" in _fails(capsys, "data", "check", data, "data.fps=-1")


def test_import_needs_no_extras_and_no_compiled_parts():
    """In a fresh process: neither lightning nor matplotlib nor triton is imported by ``import tzn.ops, tzn.models``."""
    code = (
        "import sys, tzn, tzn.ops, tzn.models, tzn.cli; "
        "print([m for m in ('lightning', 'matplotlib', 'triton') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def _peak_memory(run: Path, path: Path, out: Path) -> int:
    """Peak resident kilobytes of a process that predicts."""
    code = (
        "import sys, resource; from tzn.cli import main; "
        f"code = main(['predict', {str(run)!r}, {str(path)!r}, '--out', {str(out)!r}, 'inference.pre_nms_thresh=0']); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def test_a_recording_of_200000_steps_takes_bounded_memory(run, tmp_path):
    peaks = []
    for steps in (20_000, 200_000):
        path = tmp_path / f"long_{steps}.npy"
        np.save(path, np.random.default_rng(0).standard_normal((steps, 6)).astype(np.float32))
        peaks.append(_peak_memory(run, path, tmp_path / f"{steps}.json"))
        assert json.loads((tmp_path / f"{steps}.json").read_text())["results"]
    assert peaks[1] - peaks[0] < 150_000, f"{peaks} KB: ten times the steps took {peaks[1] - peaks[0]} KB more"


def test_convert_reads_results_of_actionformer_by_their_label_ids(tmp_path, capsys):
    import pickle

    rows = [{"segment": [0, 1], "label": "open", "label_id": 299}, {"segment": [2, 4], "label": "close", "label_id": 7}]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "duration": 9.0, "annotations": rows}}}))
    result = {"video-id": ["a"] * 3, "t-start": [2.0, 0.0, 5.0], "t-end": [4.0, 1.0, 6.0], "label": [7, 299, 8]}
    (tmp_path / "result.pkl").write_bytes(pickle.dumps({**result, "score": [0.9, 0.8, 0.1]}))
    out = tmp_path / "predictions.json"
    assert main(["convert", str(tmp_path / "result.pkl"), str(out), "--annotations", str(truth)]) == 0
    assert "1 detections of unknown classes" in capsys.readouterr().err
    assert [(r["label"], r["segment"]) for r in json.loads(out.read_text())["results"]["a"]] == [
        ("close", [2.0, 4.0]), ("open", [0.0, 1.0]),
    ]  # fmt: skip
    assert main(["score", str(out), str(truth), "--tiou", "0.9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["average_mAP"] == 1.0
    assert main(["convert", str(truth), str(tmp_path / "detad.json"), "--to", "detad"]) == 0
    detad = json.loads((tmp_path / "detad.json").read_text())["database"]["a"]["annotations"]
    assert [row["length"] for row in detad] == [1.0, 2.0]
    assert "--annotations FILE is needed" in _fails(capsys, "convert", tmp_path / "result.pkl", out)


def test_one_class_models_take_their_classes_from_video_scores(data, tmp_path, capsys):
    config = small_run.small_config("training.epochs=4", "data.single_class=true", "model.num_classes=1")
    out = tmp_path / "one"
    train(config, data, out, accelerator="cpu", progress=False)
    capsys.readouterr()
    database = json.loads((data / "annotations.json").read_text())["database"]
    names = sorted({a["label"] for entry in database.values() for a in entry["annotations"]})
    # A classifier that knows the truth: 1 for every class that occurs in the recording.
    truth = {v: [float(any(a["label"] == n for a in e["annotations"])) for n in names] for v, e in database.items()}
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"results": truth, "class": names}))
    command = ["eval", str(out), "--data", str(data), "--json"]
    assert main([*command, "--video-scores", str(scores), "--out", str(tmp_path / "with")]) == 0
    report = json.loads(capsys.readouterr().out)["trained"]
    assert report["classes"] == names
    files = sorted((data / "features").glob("*.npy"))[:1]
    predicted = tmp_path / "p.json"
    assert main(["predict", str(out), str(files[0]), "--out", str(predicted), "--video-scores", str(scores)]) == 0
    found = json.loads(predicted.read_text())["results"][files[0].stem]
    assert found and {row["label"] for row in found if row["score"] > 0} <= set(names)
    scores.write_text(json.dumps({"results": truth}))
    assert 'has no "class" list' in _fails(
        capsys, "predict", out, files[0], "--out", predicted, "--video-scores", scores
    )


def test_a_released_actionformer_checkpoint_converts_and_predicts(tmp_path, capsys):
    import torch

    from tzn.config_loading import load_config
    from tzn.models import build_model

    config = "configs/actionformer_hapt.yaml"
    settings = [
        f"actionformer.{k}" for k in ("num_classes=3", "input_dim=4", "embd_dim=16", "fpn_dim=16", "head_dim=16")
    ]
    torch.manual_seed(3)
    weights = build_model(load_config(Path(config), settings).model).state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    released = tmp_path / "epoch_034.pth.tar"
    torch.save(
        {"epoch": 35, "state_dict": {k: 0 * v for k, v in prefixed.items()}, "state_dict_ema": prefixed}, released
    )
    truth = tmp_path / "truth.json"
    rows = [{"segment": [0, 1], "label": "sit", "label_id": 2}, {"segment": [2, 3], "label": "walk", "label_id": 0}]
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "duration": 9.0, "annotations": rows}}}))
    out, features = tmp_path / "ours.ckpt", tmp_path / "rec.npy"
    command = [
        *["convert", str(released), str(out), "--to", "checkpoint"],
        "--annotations",
        str(truth),
        "--config",
        config,
    ]
    assert main([*command, *settings]) == 0
    from tzn.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(out)
    assert loaded.classes == ("walk", "unused 1", "sit")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    np.save(features, np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32))
    predictions = tmp_path / "predictions.json"
    assert main(["predict", str(out), str(features), "--out", str(predictions), "inference.pre_nms_thresh=0"]) == 0
    assert json.loads(predictions.read_text())["results"]["rec"]
    theirs = tmp_path / "theirs.yaml"  # the same network in ActionFormer's own words
    theirs.write_text(
        "dataset: {num_classes: 3, input_dim: 4, feat_stride: 5, num_frames: 5, default_fps: 50}\n"
        "model: {embd_dim: 16, fpn_dim: 16, head_dim: 16, n_mha_win_size: 19}\ntest_cfg: {max_seg_num: 7}\n"
    )
    again = [*command[:2], str(tmp_path / "again.ckpt"), *command[3:-1], str(theirs)]
    assert main(again) == 0
    translated = load_checkpoint(tmp_path / "again.ckpt")
    assert translated.config["inference"]["max_segments"] == 7
    assert translated.classes == loaded.classes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in translated.model.state_dict().items())
    assert "no actionformer section" in _fails(capsys, *command[:-1], "configs/hapt.yaml")
    rows[0]["label_id"] = 5
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "duration": 9.0, "annotations": rows}}}))
    assert "label ids up to 5" in _fails(capsys, *command, *settings)


def test_score_orders_ties_as_asked(tmp_path, capsys):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    annotation = {"segment": [0, 10], "label": "walk"}
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "duration": 50, "annotations": [annotation]}}}))
    rows = [{"segment": segment, "label": "walk", "score": 0.5} for segment in ([0, 10], [30, 40])]
    found.write_text(json.dumps({"results": {"a": rows}}))
    averages = {}
    for ties in ("first", "numpy"):  # the right detection comes first in the file, last in NumPy's reversed sort
        assert main(["score", str(found), str(truth), "--tiou", "0.5", "--ties", ties, "--json"]) == 0
        averages[ties] = json.loads(capsys.readouterr().out)["average_mAP"]
    assert averages == {"first": 1.0, "numpy": 0.5}


def test_what_conversion_leaves_out_is_said(tmp_path, capsys):
    truth = tmp_path / "truth.json"
    rows = [{"segment": s, "label": "walk", "label_id": 0} for s in ([0, 1], [3, 2], [5, 5], [9, 8])]
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "duration": 9.0, "annotations": rows}}}))
    assert main(["convert", str(truth), str(tmp_path / "detad.json"), "--to", "detad"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 segments: ")
    assert said.err.splitlines() == [
        f"tzn convert: warning: {truth}: 2 segments left out: end before start",
        f"tzn convert: warning: {truth}: 1 segments left out: zero length",
    ]  # fmt: skip
    found = tmp_path / "found.json"
    good = {"segment": [0, 1], "label": "walk", "score": 0.5}
    found.write_text(json.dumps({"results": {"a": [good, good | {"segment": [2, 1]}], "z": [good]}}))
    convert = ["convert", str(found), str(tmp_path / "out.csv"), "--annotations", str(truth)]
    assert "ends before it starts" in _fails(capsys, *convert)
    assert main([*convert, "--lenient"]) == 0
    assert (
        capsys.readouterr().err
        == f"tzn convert: warning: {found}: 1 detections left out: segment ends before it starts\n"
    )
    blocked = tmp_path / "blocked.json"
    blocked.write_text('["q"]')
    score = ["score", str(found), str(truth), "--tiou", "0.5", "--json"]
    assert "ends before it starts" in _fails(capsys, *score)
    assert main([*score, "--lenient", "--split-only", "--blocked", str(blocked)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["average_mAP"] == 1.0
    assert "1 detections left out: their recordings are outside subset 'test'" in said.err


def test_predictions_are_written_in_every_format(run, data, tmp_path, capsys):
    from tzn.formats import FORMATS

    features = [str(p) for p in sorted((data / "features").glob("*.npy"))[:2]]
    for name, known in FORMATS.items():
        out = tmp_path / (name if known.single else f"p{known.suffix}")
        assert main(["predict", str(run), *features, "--out", str(out), "--format", name]) == 0
        assert len(list(out.iterdir())) == 2 if known.single else out.is_file()


def test_the_demo_ends_with_a_page_and_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tzn.demo.NUM_RECORDINGS", 9)
    out = tmp_path / "demo"
    small = ["training.epochs=2", "training.warmup_epochs=1", "model.width=16", "model.head_width=16"]
    assert main(["demo", "--out", str(out), *small, "model.boundary_width=16"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"\d+ of [1-9]\d* actions found", printed.out)
    assert f"{out}/page.html" in printed.out.split("what next:")[1]
    for name in ("page.html", "timeline.png", "predictions.json", "report.json"):
        assert (out / name).stat().st_size
    assert len(printed.err.splitlines()) < 5, "no bars where nobody sees them"

"""ONNX files of whole localizers: the same detections as PyTorch's, for every length and depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_model
import torch
from exported import NAMES, actionformer_checkpoint, features, moved, same, small_checkpoint, written

import tzn
from tzn.detections import read_predictions
from tzn.errors import CheckpointError, ConfigError, DataError
from tzn.export import export_localizer
from tzn.models.checkpoint import load_checkpoint
from tzn.models.exported import ExportedNetwork
from tzn.models.exported_file import read_description

pytest.importorskip("onnxruntime", reason="pip install 'tzn[onnx]'")
onnx = pytest.importorskip("onnx", reason="pip install 'tzn[onnx]'")

LENGTHS = (1, 2, 3, 5, 8, 13, 31, 64, 97, 211, 1009)  # 1, primes, multiples of strides and of attention's tiles


def test_network_outputs_at_every_length_and_depth(exports):
    network = load_checkpoint(exports.checkpoint("small")).model
    program = tzn.load(exports.file("small", "onnx")).network
    assert isinstance(program, ExportedNetwork)
    shares = []
    for steps in LENGTHS:
        x, mask = torch.from_numpy(features(steps, steps))[None], torch.ones(1, steps, dtype=torch.bool)
        for shift in (0.0, -1.0, -40.0, 40.0):  # as trained, shallower, nothing refined, everything
            dial = torch.full((1, 1), shift)
            with torch.no_grad():
                wanted = network.points(x, mask, depth_shift=dial)
                found = program.points(x, mask, depth_shift=dial)
            shares.append(float((wanted.depth > 0).float().mean()))
            for name in ("position", "stride", "level"):
                assert torch.equal(getattr(found.grid, name), getattr(wanted.grid, name))
            assert torch.equal(found.mask, wanted.mask)
            close = {"atol": 1e-4, "rtol": 1e-4}
            torch.testing.assert_close(found.scores, wanted.scores, **close)
            torch.testing.assert_close(found.depth, wanted.depth, **close)
            rows = torch.arange(0, wanted.mask.shape[1], 3)
            for a, b in zip(found.offsets(rows), wanted.offsets(rows), strict=True):
                torch.testing.assert_close(a, b, **close)
            rows = torch.arange(0, steps, 2)
            for a, b in zip(found.fields(rows), wanted.fields(rows), strict=True):
                torch.testing.assert_close(a, b, equal_nan=True, **close)
    assert {0.0, 1.0} <= set(shares) and any(0.2 < share < 0.8 for share in shares)


@pytest.mark.parametrize(
    "front_end",
    [
        {"front_end": "conv", "front_end_samples": 5, "front_end_squeeze": 3},
        {"front_end": "spectrogram", "front_end_samples": 4, "front_end_window": 8},
    ],
    ids=lambda settings: settings["front_end"],
)
def test_a_front_end_is_exported_with_the_network(tmp_path, front_end):
    model = small_model.build(input_dim=2 * front_end["front_end_samples"], **front_end)
    moved(model)
    file = tmp_path / "raw.onnx"
    export_localizer(written(tmp_path / "raw.ckpt", model), file)
    program = tzn.load(file).network
    for steps in (1, 7, 64, 211):
        x = torch.randn(1, steps, model.config.input_dim, generator=torch.Generator().manual_seed(steps))
        mask = torch.ones(1, steps, dtype=torch.bool)
        with torch.no_grad():
            wanted, found = model.points(x, mask), program.points(x, mask)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=1e-4)


def test_a_boundary_stream_is_exported_with_its_dial(tmp_path):
    zoomed = {"zoom_layers": 2, "zoom_window": 5, "embedding_stride": 2, "refinement_layers": 0, "zoom_threshold": 2.0}
    model = small_model.build(**zoomed)
    moved(model)
    file = tmp_path / "zoomed.onnx"
    export_localizer(written(tmp_path / "zoomed.ckpt", model), file)
    program = tzn.load(file).network
    shares = []
    for steps in (1, 7, 64, 211):
        x = torch.randn(1, steps, model.config.input_dim, generator=torch.Generator().manual_seed(steps))
        mask = torch.ones(1, steps, dtype=torch.bool)
        for shift in (None, torch.full((1, 1), 1.0), torch.full((1, 1), -40.0)):
            with torch.no_grad():
                wanted, found = (m.points(x, mask, depth_shift=shift) for m in (model, program))
            torch.testing.assert_close(found.depth, wanted.depth, atol=1e-4, rtol=1e-4)
            for a, b in zip(found.fields(), wanted.fields(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
            shares.append(float((wanted.depth > 0).float().mean()))
    assert min(shares) == 0 and max(shares) > 0.3
    x = features(211)
    turned = [tzn.load(p, ["inference.threshold=4"])(x) for p in (tmp_path / "zoomed.ckpt", file)]
    same(turned[1], turned[0], at_least=5)


@pytest.mark.parametrize("name", ["small", "actionformer"])
def test_detections_at_every_length(exports, name):
    source, program = tzn.load(exports.checkpoint(name)), tzn.load(exports.file(name, "onnx"))
    found = 0
    for steps in LENGTHS:
        x = features(steps, steps)
        wanted = source(x)
        same(program(x), wanted)
        found += len(wanted)
    assert found > 200


def test_long_recordings_run_in_chunks(exports):
    settings = ["inference.chunk=256"]
    program = tzn.load(exports.file("small", "onnx"), settings)
    assert 0 < program.network.receptive_radius < 256
    x = features(1511)
    same(program(x), tzn.load(exports.checkpoint("small"), settings)(x), at_least=50)
    same(program(x), tzn.load(exports.checkpoint("small"))(x), at_least=50)


@pytest.mark.parametrize("chunk", [16384, 256])
def test_a_budget_turns_the_dial(exports, chunk):
    source = tzn.load(exports.checkpoint("small"), [f"inference.chunk={chunk}"])
    program = tzn.load(exports.file("small", "onnx"), [f"inference.chunk={chunk}"])
    x = features(701)
    same(program(x, budget=0.3), source(x, budget=0.3), at_least=20)
    same(program(x, budget=1.0), source(x, budget=1.0), at_least=20)
    assert not np.allclose(program(x, budget=0.3).scores[:20], program(x, budget=1.0).scores[:20], atol=1e-4)


def test_a_stream_of_an_exported_model(exports):
    program, source = (tzn.load(exports.file("small", "onnx")), tzn.load(exports.checkpoint("small")))
    x, parts = features(900), []
    for model in (program, source):
        live = model.stream(min_score=0.2)
        parts.append([live.push(x[:500]), live.push(x[500:]), live.close()])
    assert sum(len(part) for part in parts[0]) > 20
    for a, b in zip(*parts, strict=True):
        same(a, b)


def test_the_model_that_comes_along_on_a_real_recording(exports, shared):
    program, source = tzn.load(exports.file("hapt", "onnx")), tzn.load("hapt")
    samples = np.load(shared / "data/hapt/features/exp04_user02.npy").astype(np.float32).reshape(-1, 6)
    same(program(samples), source(samples), at_least=100)
    same(program(samples[:40], fps=100), source(samples[:40], fps=100))  # resampled, a few steps
    assert source(samples).intervals is not None and program(samples).intervals == source(samples).intervals
    assert program.signal == source.signal and program.score_threshold == source.score_threshold
    assert program.classes == source.classes and program.config == source.config


def test_predict_takes_the_file_and_raw_signals(exports, tmp_path, capsys):
    samples = np.random.default_rng(0).normal(size=(1500, 6)).astype(np.float32)
    np.savetxt(tmp_path / "phone.csv", samples, delimiter=",", fmt="%.9g")
    from tzn.cli import main

    for name, model in (("a", [str(exports.file("hapt", "onnx"))]), ("b", ["--pretrained", "hapt"])):
        assert main(["predict", *model, str(tmp_path / "phone.csv"), "--out", str(tmp_path / f"{name}.json")]) == 0
    classes = list(tzn.load("hapt").classes)
    a, b = (read_predictions(tmp_path / f"{name}.json", classes)[0]["phone"] for name in "ab")
    same(a, b, at_least=1)


def test_stock_operators_and_nothing_of_this_machine(exports):
    model = onnx.load(str(exports.file("small", "onnx")))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert {"NonZero", "ScatterND", "CumSum", "MaxPool"} <= {node.op_type for node in model.graph.node}
    assert [x.name for x in model.graph.input] == ["features", "depth_shift"]
    content = exports.file("small", "onnx").read_bytes()
    folder = str(Path(tzn.__file__).parent).encode()
    assert (
        folder not in content
        and b"site-packages" not in content
        and not any(n.metadata_props for n in model.graph.node)
    )


def test_the_file_says_what_running_it_takes(exports):
    facts = read_description(exports.file("small", "onnx"))
    assert facts["classes"] == list(NAMES)
    assert facts["time_grid"] == {"step_seconds": 0.2, "first_centre_seconds": 0.1}
    assert facts["config"]["inference"]["quality"] == 0.5 and facts["config"]["front_end"]["extractor"] is None
    assert facts["strides"] == [2, 4, 8] and facts["receptive_radius"] % 8 == 0 and len(facts["mean"]) == 7
    signal = read_description(exports.file("hapt", "onnx"))["signal"]
    assert signal["rate"] == 50 and len(signal["channels"]) == 6 and signal["samples_per_step"] == 5


def test_overrides_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tzn.export.write.onnx_bytes", lambda program, description: description.encode())
    path = export_localizer(
        small_checkpoint(tmp_path / "m.ckpt"), tmp_path / "m.onnx", overrides=("inference.nms=hard",)
    )
    assert json.loads(path.read_text())["config"]["inference"]["nms"] == "hard"


def test_what_is_not_exported(tmp_path, exports, monkeypatch):
    absolute = actionformer_checkpoint(tmp_path / "absolute.ckpt", use_abs_pe=True)
    with pytest.raises(ConfigError, match="use_abs_pe"):
        export_localizer(absolute, tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="exported program already"):
        export_localizer(exports.file("small", "onnx"), tmp_path / "b.onnx")
    with pytest.raises(DataError, match="expected a name that ends in .onnx"):
        export_localizer(exports.checkpoint("small"), tmp_path / "b.pt2", to="onnx")
    with pytest.raises(DataError, match="--to"):
        export_localizer(exports.checkpoint("small"), tmp_path / "b.bin")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(DataError, match=r"onnxscript.*pip install 'tzn\[onnx\]'"):
        export_localizer(exports.checkpoint("small"), tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == [absolute]


def test_files_that_are_no_models_of_ours(tmp_path, exports, capsys):
    from tzn.cli import main

    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])], "g",
            [onnx.helper.make_tensor_value_info("x", 1, [1])], [onnx.helper.make_tensor_value_info("y", 1, [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    (tmp_path / "damaged.onnx").write_bytes(exports.file("small", "onnx").read_bytes()[:5000])
    np.save(tmp_path / "x.npy", features(20))
    for name, words in (("foreign", "says nothing of classes"), ("damaged", "cannot load"), ("gone", "no such file")):
        with pytest.raises(CheckpointError, match=words):
            tzn.load(tmp_path / f"{name}.onnx")
        code = main(
            ["predict", str(tmp_path / f"{name}.onnx"), str(tmp_path / "x.npy"), "--out", str(tmp_path / "p.json")]
        )
        assert code == 2 and words in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="exported program"):
        load_checkpoint(exports.file("small", "onnx"))
    with pytest.raises(ConfigError, match="CPU"):
        tzn.load(exports.file("small", "onnx")).network.to("meta")


def test_a_program_takes_one_recording_without_padding(exports):
    network = tzn.load(exports.file("small", "onnx")).network
    x = torch.zeros(2, 9, 7)
    with pytest.raises(ValueError, match="one recording"):
        network.points(x, torch.ones(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="not padded"):
        network.points(x[:1], torch.arange(9)[None] < 5)

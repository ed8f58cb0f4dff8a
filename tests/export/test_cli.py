"""``tzn export`` and ``tzn app`` as commands."""

from __future__ import annotations

import numpy as np
import pytest
from exported import features, small_checkpoint

from tzn.cli import main

pytest.importorskip("onnxruntime", reason="pip install 'tzn[onnx]'")


def test_export_then_predict(exports, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", features(120))
    assert main(["export", str(exports.checkpoint("small")), "--to", "onnx"]) == 0
    said = capsys.readouterr().out
    assert "small.onnx" in said and "next: tzn predict" in said
    assert main(["predict", "small.onnx", "x.npy", "--out", "a.json", "inference.nms=hard"]) == 0
    assert main(["predict", str(exports.checkpoint("small")), "x.npy", "--out", "b.json", "inference.nms=hard"]) == 0
    a, b = ((tmp_path / name).read_text().count('"segment"') for name in ("a.json", "b.json"))
    assert a == b > 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "gone.ckpt", "--to", "onnx"], "no such file or folder"),
        (["export", "m.ckpt"], "--to: expected one of onnx, pt2, aoti"),
        (["export", "m.ckpt", "--to", "onnx", "--out", "m.bin"], "expected a name that ends in .onnx"),
        (["export", "m.ckpt", "--to", "onnx", "inference.nms=often"], "inference.nms"),
        (["app", "gone.onnx", "--out", "app"], "no such file"),
        (["app", "m.ckpt", "--out", "app"], "not an ONNX model"),
        (["eval", "m.onnx", "--data", "."], "exported program"),
    ],
)
def test_one_clear_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    small_checkpoint(tmp_path / "m.ckpt")
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"tzn {arguments[0]}: ") and words in lines[0]
    assert not (tmp_path / "app").exists()

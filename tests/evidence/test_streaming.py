"""benchmarks.streaming on few steps; it is no program of benchmarks/evidence, hence not in test_smoke."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import small_model
from small_run import small_config

from benchmarks import streaming
from benchmarks.lib.parity import NoParity
from tzn.config_loading import config_to_dict
from tzn.detections import Detections
from tzn.models.checkpoint import save_checkpoint


def test_the_program(monkeypatch, tmp_path, shared):
    data = shared / "data" / "hapt"
    config = small_config("data.fps=50", "data.feat_stride=5", "data.num_frames=5")
    config = dataclasses.replace(config, model=small_model.CONFIG.replace(input_dim=30))
    save_checkpoint(tmp_path / "s.ckpt", small_model.build(input_dim=30), config_to_dict(config), ("a", "b", "c", "d"))
    arguments = ["--data", str(data), "--run", str(tmp_path / "s.ckpt"), "--out", str(tmp_path), "--smoke"]
    monkeypatch.setattr(sys, "argv", ["streaming", *arguments])
    streaming.main()
    content = json.loads((tmp_path / "streaming.json").read_text())
    assert content["models"]["student"]["same"]["detections"] > 100
    assert all(s["ms_per_second"] > 0 and s["detections"] > 0 for s in content["streams"] if s["model"] == "student")
    first = content["streams"][0]
    assert first["late_s"]["least"] > content["models"]["student"]["radius_s"]
    assert len(first["memory_mb"]) > 10 and sum(first["parts"].values()) <= 1.05 * first["ms_per_second"]
    assert "| student |" in (tmp_path / "streaming.md").read_text()


def test_other_detections_are_noticed():
    wanted = Detections(np.array([[1.0, 2.0], [5.0, 9.0]]), np.array([0.9, 0.5]), np.array([0, 1]))
    assert streaming.compared(wanted, wanted) == {"seconds": 0.0, "score": 0.0, "missing": 0}
    moved = dataclasses.replace(wanted, segments=wanted.segments + [[0.0, 0.0], [0.0, 1.0]])
    assert streaming.compared(moved, wanted)["missing"] == 2  # one that is not there, one too many
    fewer = wanted[np.array([0])]
    assert streaming.compared(fewer, wanted)["missing"] == streaming.compared(wanted, fewer)["missing"] == 1


def test_a_stream_that_differs_ends_the_program(monkeypatch):
    class Live:
        def push(self, rows):
            return Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))

        close = lambda self: self.push(None)  # noqa: E731

    class Model:
        fps, signal = 10, None

        def __call__(self, rows, fps):
            return Detections(np.array([[1.0, 2.0]] * 9), np.full(9, 0.9), np.zeros(9, np.int64))

        def stream(self, min_score):
            return Live()

    with pytest.raises(NoParity, match="the stream and one pass"):
        streaming.check(Model(), np.zeros((50, 3), np.float32), 100)

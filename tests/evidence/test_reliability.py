"""The program behind docs/reliability.md on tiny sizes; it has no ``--smoke`` of its own kind, hence not in test_smoke."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.reliability.__main__ import main
from benchmarks.reliability.stopped import short_recordings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="wait4, /proc and tmpfs are Linux's")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("reliability")


def _run(monkeypatch, work, out, part, *more):
    monkeypatch.setattr(sys, "argv", ["reliability", part, "--quick", "--work", str(work), "--out", str(out), *more])
    code = main()
    content = json.loads((out / "reliability.json").read_text())
    assert (out / "reliability.md").read_text().startswith("# Reliability")
    return code, content["parts"]


def test_parts_are_kept_side_by_side(monkeypatch, work, tmp_path):
    code, parts = _run(monkeypatch, work, tmp_path, "many")
    assert code == 0 and [row["size"] for row in parts["many"]["results"]["rows"]] == [5, 20]
    assert all(row["peak_mb"] > 50 for row in parts["many"]["results"]["rows"])
    code, parts = _run(monkeypatch, work, tmp_path, "fuzz")
    assert code == 0 and list(parts) == ["many", "fuzz"]
    found = parts["fuzz"]["results"]
    assert found["calls"] == found["answers"] + found["errors"] == 2 * sum(map(len, found["by_op"].values()))


def test_what_a_signal_and_a_full_disk_leave(monkeypatch, work, tmp_path):
    code, parts = _run(monkeypatch, work, tmp_path, "stop", "--what", "predict")
    points = parts["stop"]["results"]["predict"]["points"]
    assert code == 0, points
    assert [p["signal"] for p in points] == ["SIGKILL", "SIGTERM"]
    code, parts = _run(monkeypatch, work, tmp_path, "disk", "--what", "predict", "--sizes", "4096")
    (case,) = parts["disk"]["results"]["predict"]["cases"]
    assert code == 0 and case["code"] == 2, case


def test_something_wrong_is_found(monkeypatch, work, tmp_path):
    """A result that differs is reported, and the exit status says so."""
    monkeypatch.setattr("benchmarks.reliability.stopped._same_detections", lambda whole, out: "differs")
    code, parts = _run(monkeypatch, work, tmp_path, "stop", "--what", "predict", "--points", "1")
    (point,) = parts["stop"]["results"]["predict"]["points"]
    assert code == 1 and point["wrong"] == ["differs"]


def test_recordings_do_not_depend_on_how_many_are_asked_for(tmp_path):
    few, more = short_recordings(tmp_path / "few", 2), short_recordings(tmp_path / "more", 3)
    for path in few.iterdir():
        assert path.read_bytes() == (more / path.name).read_bytes()

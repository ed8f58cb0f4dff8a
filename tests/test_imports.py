"""The house is one-way: what a part imports lies below it. No part's own tests are the place for what holds between all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tzn

ROOT = Path(tzn.__file__).parent
# From the top; parts in one layer may know each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"distributed", "serve"},
    {"corpus"},
    {"localizer"},
    {"planning"},  # trains a few steps to time them
    {"compat", "export", "info", "training", "view"},
    {"inference"},
    {"visualization"},
    {"evaluation"},
    {"detections", "formats"},
    {"readers"},
    {"data", "profiling"},
    {"config", "config_loading", "models"},  # a configuration holds the model's, a checkpoint a configuration
    {"nn"},
    {"ops"},
    {"kernels"},
    {"reference"},
    {"calibration"},
    {"checked", "optional", "plain_pickle"},
    {"console", "errors", "files"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
UPWARDS = {("detections", "visualization")}  # Detections.plot, at its call


def _imports() -> Iterator[tuple[str, str, str]]:
    """(file, part, imported part); "" is the package itself."""
    for file in sorted(ROOT.rglob("*.py")):
        part = file.relative_to(ROOT).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                module = node.module or ""
                names = [f"tzn.{a.name}" for a in node.names] if module == "tzn" else [module]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] == "tzn":
                    yield str(file), part, (name.split(".") + [""])[1]


def test_every_import_points_down():
    seen = set()
    for file, part, imported in _imports():
        if part == "__init__" or imported in ("", "__version__", part):
            continue
        assert part in LEVEL and imported in LEVEL, f"{file}: {part} or {imported} is in no layer"
        seen.add((part, imported))
        down = LEVEL[part] < LEVEL[imported] or imported in LAYERS[LEVEL[part]]
        assert down or (part, imported) in UPWARDS, f"{file}: {part} imports {imported}, which lies above it"
    assert {("cli", "inference"), ("inference", "models"), ("models", "nn"), ("nn", "ops"), ("ops", "kernels")} <= seen


@pytest.mark.parametrize(("part", "allowed"), [("reference", {"reference"}), ("kernels", {"kernels", "reference"})])
def test_what_the_lowest_parts_know(part, allowed):
    assert {imported for _, of, imported in _imports() if of == part} <= allowed

"""Fixtures shared by all tests: where the golden files and the real recordings lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests share oracle.py
sys.path.append(str(ROOT))  # benchmarks; last, so that an installed tzn stays the one that is tested
torch.set_num_threads(2)


def _shared_folder() -> Path | None:
    candidates = [os.environ.get("TZN_SHARED"), ROOT.parent / "shared"]
    return next((Path(c) for c in candidates if c and (Path(c) / "goldens").is_dir()), None)


@pytest.fixture(scope="module")
def shared() -> Path:
    """Folder with ``goldens/`` and ``data/``; its absence fails the test when ``TZN_REQUIRE_GOLDENS=1``."""
    folder = _shared_folder()
    if folder is None:
        reason = "golden files not found: set TZN_SHARED to the folder that holds goldens/ and data/"
        if os.environ.get("TZN_REQUIRE_GOLDENS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="module")
def goldens(shared: Path) -> Path:
    return shared / "goldens"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory):
    """Exported models by name and format, made when first asked for."""
    from exported import Exports

    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(autouse=True)
def _poisoned_empty() -> Iterator[None]:
    """Memory that nobody has written reads as NaN, so an unwritten output cannot pass by luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

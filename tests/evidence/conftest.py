"""Programs of benchmarks/evidence for the tests: runnable, and tiny trained runs to work on."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config

from tzn.config_loading import config_from_dict, config_to_dict
from tzn.data.synthetic import generate_synthetic


@dataclasses.dataclass(frozen=True)
class Trained:
    """Synthetic recordings and a run of each network on them, trained for seconds."""

    data: Path
    ours: Path
    base: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tzn.training import train

    folder = tmp_path_factory.mktemp("evidence")
    data = folder / "data"
    generate_synthetic(data, num_recordings=15, length=(200, 300), num_classes=3, channels=6, seed=1)
    training = ("epochs=6", "batch_size=2", "learning_rate=5e-3", "ema_decay=0.8", "loss_norm=20")
    config = small_config(*(f"training.{setting}" for setting in training), "evaluation.short_classes=[class_0]")
    plain = config_to_dict(config)
    plain.pop("model")
    plain["actionformer"] = {
        "input_dim": 6, "num_classes": 3, "embd_dim": 16, "fpn_dim": 16, "head_dim": 16, "n_head": 2,
        "n_mha_win_size": 5, "backbone_arch": [1, 1, 2], "regression_range": [[0, 8], [8, 32], [32, 10000]],
    }  # fmt: skip
    for settings, name in ((config, "ours"), (config_from_dict(plain), "base")):
        train(settings, data, folder / name, accelerator="cpu", progress=False)
    return Trained(data, folder / "ours", folder / "base")


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a program with ``--smoke`` as from the command line and returns its JSON."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(tmp_path), *map(str, arguments)])
        runpy.run_module(f"benchmarks.evidence.{name}", run_name="__main__")
        name = name.replace(".", "_")
        assert (tmp_path / f"{name}.md").read_text().startswith("# ")
        assert not list(tmp_path.glob("*.parts.json")), "pieces are removed once the results are written"
        for picture in tmp_path.glob("*.png"):
            assert 1000 < picture.stat().st_size < 100_000
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run

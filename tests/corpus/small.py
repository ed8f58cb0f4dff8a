"""A small checkpoint and recordings for it, shared by the tests of corpora."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import small_model
import small_run

from tzn.config_loading import config_to_dict
from tzn.models.checkpoint import save_checkpoint

NAMES = ("a", "b", "c", "d")


def checkpoint(path: Path, **changes) -> Path:
    config = dataclasses.replace(small_run.small_config("data.fps=10", "data.validation=[]"), model=small_model.CONFIG)
    model = small_model.build()
    for name, bias in changes.items():
        getattr(model, name).output.bias.data.add_(bias)
    save_checkpoint(path, model, config_to_dict(config), NAMES)
    return path


def recordings(folder: Path, count: int, longest: int = 400) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        np.save(folder / f"r{i:03d}.npy", small_model.features(int(rng.integers(20, longest)), i).numpy())
    return folder


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def assert_same(found: Path, wanted: Path) -> None:
    """Row by row: texts equal, numbers but for the rounding of other batches."""
    left, right = rows(found), rows(wanted)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert [a[k] for k in ("recording", "label", "model", "configuration")] == [
            b[k] for k in ("recording", "label", "model", "configuration")
        ]
        numbers = ("start", "end", "score", "start_std", "end_std")
        np.testing.assert_allclose([a[k] for k in numbers], [b[k] for k in numbers], rtol=1e-3, atol=1e-4)

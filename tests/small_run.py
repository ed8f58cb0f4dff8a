"""A tiny experiment on synthetic recordings that trains in seconds; shared by tests, and runnable by torchrun.

usage: python small_run.py DATA OUT [--resume] [SECTION.KEY=VALUE …]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, override_config
from tzn.data.synthetic import generate_synthetic

CONFIG = {
    "model": {
        "input_dim": 6, "num_classes": 3, "width": 16, "num_heads": 2, "window": 5, "first_stride": 2, "num_levels": 3,
        "regression_ranges": [[0, 8], [8, 32], [32, 10000]], "head_width": 16, "boundary_width": 16, "head_layers": 1,
        "boundary_layers": 1, "refinement_layers": 2, "drop_path": 0.0,
    },
    "data": {"feat_stride": 1, "num_frames": 1, "fps": 10, "max_length": 128, "noise": 0.1},
    "training": {"epochs": 4, "warmup_epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "ema_decay": 0.9},
}  # fmt: skip


def small_config(*overrides: str) -> ExperimentConfig:
    return override_config(config_from_dict(CONFIG), overrides)


def small_data(folder: Path) -> Path:
    generate_synthetic(folder, num_recordings=12, length=(100, 180), num_classes=3, channels=6, seed=1)
    return folder


def losses(run: Path) -> dict[int, float]:
    """Training loss by step, over all log files of a run."""
    found: dict[int, float] = {}
    for path in sorted(run.glob("logs/csv/version_*/metrics.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    found[int(row["step"])] = float(row["train/loss"])
    return found


def main() -> None:
    from tzn.training import train

    data, out, *rest = sys.argv[1:]
    overrides = [text for text in rest if "=" in text]
    train(small_config(*overrides), Path(data), Path(out), resume="--resume" in rest, accelerator="cpu", progress=False)


if __name__ == "__main__":
    main()

"""Commands that get a data folder ready: features, data check."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tzn.cli._shared import OVERRIDES, Commands, add_device, command, done


def add_features(commands: Commands) -> None:
    p = command(
        commands, "features", _features, "make feature files from recordings: video, sound, signals",
        "tzn features clip.mp4 --extractor efficientnet-lite0 --out mydata/features\n"
        "tzn features phone/ --rate 50 --samples-per-step 5 --out mydata/features",
    )  # fmt: skip
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="recordings, or folders of them")
    p.add_argument("--out", type=Path, required=True, help="folder for RECORDING.npy and features.json")
    p.add_argument(
        "--extractor",
        help="efficientnet-lite0 (default for video), torchvision:NAME, timm:NAME, log-mel (default for sound), samples",
    )
    p.add_argument(
        "--rate", type=float,
        help="pictures a second (5), log-mel steps a second (100), or samples a second that signals are resampled to",
    )  # fmt: skip
    p.add_argument(
        "--fit", choices=("stretch", "crop"), default="stretch", help="whole picture squeezed, or its centre"
    )
    p.add_argument("--weights", help="state dict for torchvision:NAME or timm:NAME (default: the library's own)")
    p.add_argument(
        "--channels", default="", help="signals: names of the columns, between commas (default: all numbers)"
    )
    p.add_argument("--samples-per-step", type=int, default=1, help="signals: samples that make one feature step")
    p.add_argument("--time", help="signals: name of the column with the times")
    p.add_argument("--time-unit", choices=("s", "ms", "us", "ns"), help="signals: of that column")
    p.add_argument("--sample-rate", type=float, help="signals: samples a second, for tables without times")
    p.add_argument("--max-gap", type=float, default=1.0, help="signals: longest hole to bridge, in seconds")
    p.add_argument("--no-cache", action="store_true", help="extract again what the cache holds")
    add_device(p, "cpu")


def _features(o: argparse.Namespace) -> None:
    from tzn.config import FrontEndConfig
    from tzn.errors import ConfigError
    from tzn.readers.front_end import extract_files

    try:
        config = FrontEndConfig(
            extractor=o.extractor, rate=o.rate, fit=o.fit, weights_file=o.weights, samples_per_step=o.samples_per_step,
            channels=tuple(name.strip() for name in o.channels.split(",") if name.strip()), time=o.time,
            time_unit=o.time_unit, sample_rate=o.sample_rate, max_gap=o.max_gap,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from None
    entries = extract_files(
        o.inputs, o.out, config, cache=not o.no_cache, device=o.device, progress=not o.quiet
    ).recordings
    steps = sum(entry["steps"] for entry in entries.values())
    done(o, f"{steps} steps in {len(entries)} recordings: {o.out}")


def add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="look at a data folder", description="Look at a data folder.")
    inner = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    p = command(
        inner, "check", _data_check, "count, validate, and suggest strides, levels and regression ranges",
        "tzn data check hapt --config configs/hapt.yaml",
    )  # fmt: skip
    p.add_argument("folder", type=Path, help="folder with annotations.json and features/, or an annotation file")
    p.add_argument("--config", type=Path, help="configuration whose data section describes the folder")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _data_check(o: argparse.Namespace) -> None:
    from tzn.config_loading import load_config
    from tzn.data.check import check_dataset

    # Without a configuration only the data section matters; the model's required keys stand in.
    stand_in = [] if o.config else ["model.input_dim=1", "model.num_classes=1"]
    config = load_config(o.config, [*stand_in, *o.overrides])
    report = check_dataset(o.folder, config.data, input_dim=config.model.feature_dim if o.config else None)
    print(json.dumps(report.to_dict()) if o.json else report.text())

"""tzn export and tzn app: a trained localizer for other runtimes, and for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from tzn.cli._shared import OVERRIDES, Commands, command, done


def add_export(commands: Commands) -> None:
    p = command(
        commands, "export", _export, "write a localizer for other runtimes: ONNX, torch.export, AOTInductor",
        "tzn export runs/my --to onnx --out my.onnx\ntzn predict my.onnx features/ --out predictions.json",
    )  # fmt: skip
    p.add_argument("source", help="checkpoint, folder of a run, or the name of a model that comes with tzn (hapt)")
    p.add_argument(
        "--to", choices=("onnx", "pt2", "aoti"),
        help="onnxruntime and browsers; torch and tzn; machine code for C++ (default: by the suffix of --out)",
    )  # fmt: skip
    p.add_argument("--out", type=Path, help="the file (default: the source's name in this folder)")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _export(o: argparse.Namespace) -> None:
    from tzn.export import export_localizer

    path = export_localizer(o.source, o.out, to=o.to, overrides=tuple(o.overrides))
    done(o, f"{path.stat().st_size / 1e6:.1f} MB: {path}\nnext: tzn predict {path} INPUT --out predictions.json")


def add_app(commands: Commands) -> None:
    p = command(
        commands, "app", _app, "make a folder with a page that localizes recordings in the browser",
        "tzn export hapt --to onnx && tzn app hapt.onnx --out app    # then open app/index.html",
    )  # fmt: skip
    p.add_argument("model", type=Path, help=".onnx of 'tzn export'")
    p.add_argument("--out", type=Path, required=True, help="folder to make")
    p.add_argument("--runtime", type=Path, help="onnxruntime-web: its folder or .tgz (default: fetched with npm)")


def _app(o: argparse.Namespace) -> None:
    from tzn.view.app import write_app

    files = write_app(o.model, o.out, runtime=o.runtime)
    size = sum(path.stat().st_size for path in files) / 1e6
    done(o, f"{len(files)} files, {size:.1f} MB: open {files[0]} in a browser")

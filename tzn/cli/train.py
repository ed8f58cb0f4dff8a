"""Commands that make a model and say how good it is: demo, train, eval."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from tzn.cli._shared import OVERRIDES, VIDEO_SCORES, Commands, add_device, command, done, load_trained, warn, write_json
from tzn.cli.plan import add_plan, planned


def add_demo(commands: Commands) -> None:
    p = command(
        commands, "demo", _demo, "train, evaluate and run a small model on synthetic recordings", "tzn demo --out demo"
    )
    p.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, model, predictions and pictures")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _demo(o: argparse.Namespace) -> None:
    from tzn.demo import run_demo

    run_demo(o.out, o.overrides, say=lambda line: done(o, line), progress=not o.quiet)


def add_train(commands: Commands) -> None:
    p = command(
        commands, "train", _train, "train a localizer",
        "tzn train mydata --out runs/my --minutes 20\n"
        "tzn train configs/hapt.yaml --data hapt --out runs/hapt training.epochs=10\n"
        "tzn train my.yaml --data mydata --out runs/my --from hapt\n"
        "several processes: torchrun --nproc-per-node=2 -m tzn train …",
    )  # fmt: skip
    p.add_argument("config", type=Path, help="YAML configuration (see configs/), or a data folder to plan one for")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--data", type=Path, help="folder with annotations.json and features/ (with a configuration)")
    p.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME of the configuration or data)")
    add_plan(p)
    p.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    p.add_argument(
        "--from", dest="start", metavar="NAME|RUN",
        help="start from the weights of a model that comes with tzn ('tzn pretrained list'), a run or a checkpoint: the "
        "network gets its sizes, with this data's input and classes",
    )  # fmt: skip
    add_device(p, "auto")
    p.add_argument("--devices", type=int, help="devices per machine (default: all that torchrun started, else one)")
    p.add_argument("--num-nodes", type=int, default=1, help="machines")
    p.add_argument("--no-progress", action="store_true", help="no progress bar")


def _train(o: argparse.Namespace) -> None:
    from tzn.config_loading import load_config
    from tzn.errors import ConfigError
    from tzn.training import train

    folder = o.config.is_dir()
    if folder and o.data is not None:
        raise ConfigError(f"{o.config} is a data folder: expected no --data with it")
    if not folder and o.data is None:
        raise ConfigError(f"{o.config}: no data folder, so a configuration; expected --data FOLDER with it")
    out = o.out or Path("runs") / o.config.resolve().stem
    config, data = (planned(o, out), o.config) if folder else (load_config(o.config, o.overrides), o.data)
    if o.start is not None:
        from tzn.training.start import sized_like

        config = sized_like(config, o.start)
    best = train(
        config, data, out, resume=o.resume, accelerator=o.device, devices=o.devices, num_nodes=o.num_nodes,
        progress=not (o.no_progress or o.quiet), say=lambda line: warn([line]),
    )  # fmt: skip
    warn(json.loads((out / "run.json").read_text())["advice"])
    done(o, f"checkpoint: {best}\nnext: tzn eval {best} --data {data}")


def add_eval(commands: Commands) -> None:
    p = command(
        commands, "eval", _eval, "score a trained localizer on a split of a data folder",
        "tzn eval runs/hapt --data hapt --budget trained --budget 1",
    )  # fmt: skip
    p.add_argument("checkpoint", type=Path, help="checkpoint, or the folder of a run")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    p.add_argument("--data", type=Path, required=True, help="folder with annotations.json and features/")
    p.add_argument("--split", choices=("test", "validation", "train"), default="test")
    p.add_argument(
        "--budget", action="append", default=None, metavar="DEPTH",
        help="mean depth in (0, 1] to run at, or 'trained' (default); repeat to compare",
    )  # fmt: skip
    p.add_argument("--video-scores", type=Path, help=VIDEO_SCORES)
    p.add_argument(
        "--out", type=Path, help="folder for predictions.json, report.json and errors.png of the first budget"
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_device(p, "cpu")


def _eval(o: argparse.Namespace) -> None:
    from tzn.detections import write_predictions
    from tzn.evaluation.comparison import comparison_table
    from tzn.inference.evaluate_checkpoint import evaluate_checkpoint
    from tzn.visualization.dataset_plots import plot_error_costs

    checkpoint, config = load_trained(o.checkpoint, o.overrides)
    results = {}
    for budget in o.budget or ["trained"]:
        results[budget] = evaluate_checkpoint(
            checkpoint, o.data, split=o.split, config=config, budget=_budget(budget), video_scores=o.video_scores,
            device=o.device, progress=not o.quiet,
        )  # fmt: skip
    first = next(iter(results.values()))
    if o.out:
        write_predictions(o.out / "predictions.json", first.detections, first.classes)
        write_json(o.out / "report.json", {name: r.to_dict() for name, r in results.items()})
        if importlib.util.find_spec("matplotlib"):  # tables need no pictures
            plot_error_costs(o.out / "errors.png", first.report.costs, first.report.score.average_mAP)
    if o.json:
        print(json.dumps({name: r.to_dict() for name, r in results.items()}))
        return
    print(first.report.table())
    print(comparison_table({f"depth {name}": r.to_dict() for name, r in results.items()}))


def _budget(text: str) -> float | None:
    from tzn.errors import ConfigError

    if text == "trained":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ConfigError(f"--budget {text}: expected 'trained' or a mean depth in (0, 1]")
    return value

"""Commands that look at data and choose the settings themselves: init, and train without a configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tzn.cli._shared import Commands, add_device, command, done

if TYPE_CHECKING:
    from tzn.config import ExperimentConfig


def add_init(commands: Commands) -> None:
    p = command(
        commands, "init", _init, "write a configuration that fits a data folder, with every choice's reason",
        "tzn init mydata --out my.yaml --minutes 20\ntzn train my.yaml --data mydata",
    )  # fmt: skip
    p.add_argument("data", type=Path, help="folder with annotations.json and features/, or recordings that tzn reads")
    p.add_argument("--out", type=Path, help="the configuration (default: NAME.yaml after the folder)")
    add_plan(p)
    add_device(p, "cpu")


def add_plan(p: argparse.ArgumentParser) -> None:
    """Options of whatever makes a plan."""
    p.add_argument("--model", choices=("tzn", "actionformer"), default="tzn", help="network to plan for")
    p.add_argument(
        "--minutes", type=float, default=20.0,
        help="CPU minutes that training may take, of all threads together (on a GPU: minutes; default: 20)",
    )  # fmt: skip


def _init(o: argparse.Namespace) -> None:
    from tzn.planning.run import plan_folder, summary, write_plan

    out = o.out or Path(f"{o.data.resolve().name}.yaml")
    plan = plan_folder(o.data, model=o.model, minutes=o.minutes, device=o.device, progress=not o.quiet)
    write_plan(plan, out, f"tzn init {o.data} --model {o.model} --minutes {o.minutes:g}", o.data)
    done(o, f"{summary(plan)}\nconfiguration: {out}\nnext: tzn train {out} --data {o.data}")


def planned(o: argparse.Namespace, out: Path) -> ExperimentConfig:
    """The configuration of ``tzn train DATA``: a new plan, kept as ``plan.yaml`` in the run, or that of a run to resume."""
    from tzn.config_loading import load_config, override_config
    from tzn.errors import ConfigError
    from tzn.planning.run import plan_folder, summary, write_plan

    if o.resume:
        return load_config(out / "config.yaml", o.overrides)
    if (out / "checkpoints" / "last.ckpt").exists():
        raise ConfigError(f"{out} already holds a run; add --resume to continue it or choose another --out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{o.config}: every process would time and plan for itself; make one plan first with 'tzn init'"
        )
    progress = not (o.no_progress or o.quiet)
    plan = plan_folder(o.config, model=o.model, minutes=o.minutes, device=o.device, progress=progress)
    config = override_config(plan.config(), o.overrides)
    done(o, summary(plan))
    (out / "plan.yaml").unlink(missing_ok=True)
    write_plan(plan, out / "plan.yaml", f"tzn train {o.config} --model {o.model} --minutes {o.minutes:g}", o.config)
    return config

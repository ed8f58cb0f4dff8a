"""What several commands share: how a command is declared, its common arguments, and how files come in and go out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tzn.console import LOG, STANDARD

if TYPE_CHECKING:
    from tzn.config import ExperimentConfig
    from tzn.models.checkpoint import LoadedCheckpoint

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OVERRIDES = "settings that replace those of the configuration, e.g. training.epochs=10 inference.nms=hard"

VIDEO_SCORES = "scores of a whole-video classifier (.json[.gz], .pkl), for models of one class as usual on ActivityNet"


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str, example: str
) -> argparse.ArgumentParser:
    """Declares a command, which ``run`` runs; ``help`` is its line in the list, ``example`` stands below its own help."""
    parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    much = parser.add_mutually_exclusive_group()
    much.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing but errors; only results on standard output"
    )
    much.add_argument(
        "-v", "--verbose", action="store_true", help="say on stderr what is done, and where errors come from"
    )
    return parser


def add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--device", default=default, help=f"cpu, cuda, … (default: {default})")


def load_trained(path: Path, overrides: Sequence[str]) -> tuple[LoadedCheckpoint, ExperimentConfig]:
    """Checkpoint and its configuration with overrides; a run folder stands for its best, else last, checkpoint."""
    from tzn.config_loading import config_from_dict, override_trained
    from tzn.models.checkpoint import load_checkpoint, run_checkpoint

    checkpoint = load_checkpoint(run_checkpoint(path))
    return checkpoint, override_trained(config_from_dict(checkpoint.config), overrides)


def write_json(path: Path, content: object) -> None:
    from tzn.files import atomic_write

    with atomic_write(path) as file:
        json.dump(content, file, indent=1)


def warn(lines: Sequence[str], path: Path | None = None) -> None:
    """Lines on stderr, of a file where one is given; none with ``--quiet``."""
    for line in lines:
        LOG.warning("warning: %s", line if path is None else f"{path}: {line}")


def done(o: argparse.Namespace, line: str) -> None:
    """What a command made, at its end: on standard output, or on stderr where the output itself went there."""
    if not o.quiet:
        to_stdout = str(getattr(o, "out", None) or getattr(o, "output", None)) != STANDARD
        print(line, file=sys.stdout if to_stdout else sys.stderr)

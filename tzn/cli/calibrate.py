"""tzn calibrate: a run's errors on groups that it has not seen, stored in its checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tzn.cli._shared import Commands, add_device, command
from tzn.console import LOG


def add_calibrate(commands: Commands) -> None:
    p = command(
        commands, "calibrate", _calibrate,
        "measure a run's errors on unseen groups and store intervals and probabilities in its checkpoint",
        "tzn calibrate runs/hapt --data hapt --group 'user[0-9]+'\n"
        "tzn calibrate runs/hapt --data hapt --group 'user[0-9]+' --held-out\n"
        "tzn calibrate runs/zoom --data hapt --group 'user[0-9]+' --risk 0.2",
    )  # fmt: skip
    p.add_argument("checkpoint", type=Path, metavar="RUN", help="folder of a run, or a checkpoint; stored in it")
    p.add_argument("--data", type=Path, required=True, help="folder with annotations.json and features/")
    p.add_argument("--folds", type=int, default=5, help="models to train, each without one part of the groups (5)")
    p.add_argument(
        "--group", metavar="REGEX",
        help="finds the group (person, place) in a recording's id (default: \"group\" or \"subject\" of the annotations, "
        "else every recording is its own)",
    )  # fmt: skip
    p.add_argument(
        "--fold-run", action="append", type=Path, default=[], metavar="RUN",
        help="finished run that held groups out (data.validation), in place of training folds; repeat",
    )  # fmt: skip
    p.add_argument(
        "--held-out", action="store_true",
        help="cheap: no fold models, the run's own validation recordings, which chose its best epoch",
    )  # fmt: skip
    p.add_argument(
        "--risk", type=float, metavar="SHARE",
        help="networks with model.zoom_layers: also choose and store the largest inference.threshold at which at most this "
        "share of new groups loses more than --allowed points of mAP against full depth",
    )  # fmt: skip
    p.add_argument("--allowed", type=float, default=1.0, metavar="POINTS", help="points of mAP, see --risk (1)")
    p.add_argument(
        "--allowed-error", type=float, metavar="SECONDS",
        help="with --risk: a group is also harmed where its boundary error (mean of median start and end) grows by more",
    )  # fmt: skip
    p.add_argument("--out", type=Path, help="folder for the fold models (default: RUN/calibration)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_device(p, "cpu")


def _calibrate(o: argparse.Namespace) -> None:
    from tzn.training.calibrate import calibrate

    report = calibrate(
        o.checkpoint, o.data, folds=o.folds, group=o.group, fold_runs=o.fold_run, held_out=o.held_out,
        risk=o.risk, allowed=o.allowed, allowed_error=o.allowed_error, out=o.out, device=o.device,
        progress=not (o.no_progress or o.quiet), say=LOG.warning,
    )  # fmt: skip
    print(json.dumps(report.to_dict()) if o.json else report.text())

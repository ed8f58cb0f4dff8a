"""tzn info: what there is on this machine."""

from __future__ import annotations

import argparse
import json

from tzn.cli._shared import Commands, command


def add_info(commands: Commands) -> None:
    p = command(commands, "info", _info, "versions, back ends and devices", "tzn info --json")
    p.add_argument("--json", action="store_true", help="print one JSON object")


def _info(o: argparse.Namespace) -> None:
    from tzn.info import collect_info

    info = collect_info()
    if o.json:
        print(json.dumps(info))
        return
    for section, values in info.items():
        print(section)
        for name, value in values.items():
            print(f"  {name}: {value}")

"""tzn pretrained: the models that come with tzn."""

from __future__ import annotations

import argparse
import json

from tzn.cli._shared import Commands, command


def add_pretrained(commands: Commands) -> None:
    pretrained = commands.add_parser(
        "pretrained", help="models that come with tzn", description="Models that come with tzn."
    )
    inner = pretrained.add_subparsers(dest="pretrained_command", required=True, metavar="COMMAND")
    p = command(inner, "list", _list, "names, classes, input, licence and scores", "tzn pretrained list")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p = command(inner, "show", _show, "the card of a model", "tzn pretrained show hapt")
    p.add_argument("name", help="as 'tzn pretrained list' has it")


def _list(o: argparse.Namespace) -> None:
    from tzn.models.pretrained import describe_pretrained

    every = describe_pretrained()
    if o.json:
        print(json.dumps(every))
        return
    for name, facts in every.items():
        print(f"{name}: {facts['data']}")
        for key in ("input", "classes", "metrics", "license", "size"):
            print(f"  {key}: {facts[key]}")


def _show(o: argparse.Namespace) -> None:
    from tzn.models.pretrained import read_card

    print(read_card(o.name)[1], end="")

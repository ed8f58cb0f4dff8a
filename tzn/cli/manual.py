"""tzn config, tzn completion: what can be said to tzn, told by tzn itself."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tzn.cli._shared import Commands, command

SHELLS = ("bash", "zsh", "fish", "tcsh")
# Where the script goes so that it is read by every new shell.
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/tzn", "zsh": "a folder of $fpath, as _tzn",
    "fish": "~/.config/fish/completions/tzn.fish", "tcsh": "~/.tzn.tcsh, with 'source ~/.tzn.tcsh' in ~/.tcshrc",
}  # fmt: skip
WIDTH = 110
KEY_COMPLETION = "key"  # attribute of an argument that takes names of keys
ENV = "_ARGCOMPLETE"  # set by the shell that asks for completions


def add_config(commands: Commands) -> None:
    p = command(
        commands, "config", _config, "list the keys of a configuration: type, default, allowed values, meaning",
        "tzn config training\ntzn config inference.nms\ntzn config nms --model runs/my",
    )  # fmt: skip
    p.add_argument(
        "key", nargs="?", help="section.name, a section, or a name in any section (default: all)"
    ).completer = complete_key  # type: ignore[attr-defined]
    p.add_argument(
        "--model", help="with the values of a trained model: the folder of a run, a checkpoint, or one that comes along"
    ).completer = complete_model  # type: ignore[attr-defined]
    p.add_argument("--json", action="store_true", help="print one JSON list")


def _config(o: argparse.Namespace) -> None:
    from dataclasses import asdict

    from tzn.config_loading import config_keys

    values: dict[str, Any] | None = None if o.model is None else _values(o.model)
    keys = [key for key in config_keys(o.key) if values is None or key.name in values]
    if o.json:
        print(json.dumps([asdict(key) | ({} if values is None else {"value": values[key.name]}) for key in keys]))
        return
    section = ""
    for key in keys:
        if section != (section := key.name.split(".")[0]):
            print(f"{section}:")
        given = "must be set" if key.required else f"default {_shown(key.default)}"
        if values is not None:
            given = f"{_shown(values[key.name])} ({given})"
        print(f"  {key.name} = {given}")
        for text in (key.meaning, f"expected {key.allowed}"):
            print(textwrap.fill(text, WIDTH, initial_indent="      ", subsequent_indent="      "))


def _values(model: str) -> dict[str, Any]:
    """Value by key of a trained model."""
    from tzn.config_loading import config_to_dict
    from tzn.localizer import load

    content = config_to_dict(load(model).config)
    return {f"{section}.{name}": value for section, entries in content.items() for name, value in entries.items()}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) and value else text


def add_completion(commands: Commands) -> None:
    p = command(
        commands, "completion", _completion, "print a script that completes tzn's commands, options and keys in a shell",
        'eval "$(tzn completion bash)"\n' + "\n".join(f"{shell}: save it as {place}" for shell, place in PLACES.items()),
    )  # fmt: skip
    p.add_argument("shell", choices=SHELLS)


def _completion(o: argparse.Namespace) -> None:
    from tzn.optional import require

    argcomplete = require("argcomplete", "completion in shells", "completion")
    print(argcomplete.shellcode(["tzn"], shell=o.shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the program, where one asks for completions."""
    if ENV not in os.environ:
        return
    from tzn.optional import require

    argcomplete = require("argcomplete", "completion in shells", "completion")
    for action in _actions(parser):
        if action.dest == "overrides":
            action.completer = complete_override  # type: ignore[attr-defined]
        elif action.dest == "pretrained":
            action.completer = _pretrained  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long")


def complete_override(prefix: str, **_: Any) -> Iterable[str]:
    """``section.name=`` and, behind it, the values of a key that has a list of them."""
    from tzn.config_loading import config_keys

    keys = config_keys()
    name, equals, _value = prefix.partition("=")
    if not equals:
        return [f"{key.name}=" for key in keys]
    chosen = [key for key in keys if key.name == name]
    texts = [text for key in chosen for text in (*key.choices, *(("true", "false") if "boolean" in key.types else ()))]
    return [f"{name}={text}" for text in texts]


def complete_key(prefix: str, **_: Any) -> Iterable[str]:
    """Sections; with a dot, the keys of one."""
    from tzn.config_loading import SECTIONS, config_keys

    return [key.name for key in config_keys()] if "." in prefix else [*SECTIONS, *(f"{s}." for s in SECTIONS)]


def complete_model(prefix: str, **_: Any) -> Iterable[str]:
    """Models that come along, and paths."""
    folder = Path(prefix).parent if prefix else Path()
    inside = [str(p) + "/" * p.is_dir() for p in folder.iterdir()] if folder.is_dir() else []
    return [*_pretrained(), *inside]


def _pretrained(**_: Any) -> list[str]:
    """Without PyTorch, which a shell would wait for."""
    return sorted(path.stem for path in (Path(__file__).resolve().parent.parent / "pretrained").glob("*.safetensors"))


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)

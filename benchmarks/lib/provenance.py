"""How a result was made: options that all programs share, facts of a run, and writing JSON and Markdown with them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tzn.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EVIDENCE = RESULTS / "evidence"
CONFIGS = ROOT / "configs"


def parser(doc: str | None, out: Path = RESULTS) -> argparse.ArgumentParser:
    """A parser with the program's docstring as its help, and ``--out``: the folder for the results."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=out, help="folder for the results")
    return found


def evidence_parser(
    doc: str | None, out: Path = EVIDENCE, *, seeds: Sequence[int] | None = None
) -> argparse.ArgumentParser:
    """Options of every program of ``evidence/``: ``--out``, ``--seed`` and ``--smoke`` (tiny settings, for tests).

    ``seeds``: of a program that trains by default; adds ``--data``, ``--runs`` and ``--seeds``.
    """
    found = parser(doc, out)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--smoke", action="store_true", help="tiny settings that run in seconds")
    if seeds is not None:
        found.add_argument("--data", type=Path, required=True, help="folder of annotations and features")
        found.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the trained runs")
        found.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    return found


def command() -> str:
    """The running program as one calls it; of absolute paths the last name only."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    program = f"-m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    return shlex.join(["python", *program.split(), *words])


@cache
def commit() -> str:
    """Short name of the checked-out commit, "+" where files differ from it; "unknown" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "tzn", "csrc", "benchmarks"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changed.returncode else "")


def machine(device: str = "cpu") -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {name}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's own name; :func:`machine` names its instruction set only."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.is_file() else None
    return found[1] if found else "unknown"


def facts(device: str = "cpu", packages: Sequence[str] = ("tzn", "torch")) -> dict[str, Any]:
    """Command, commit, date, machine and versions: what every result file starts with."""
    return {
        "command": command(), "commit": commit(), "date": date.today().isoformat(), "machine": machine(device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }  # fmt: skip


def version(package: str) -> str:
    """Of an installed package; tzn may also run from its sources, installed nowhere."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def line(content: Mapping[str, Any]) -> str:
    """:func:`facts` as the first line of a page."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"`{content['command']}`, {content['date']}, commit {content['commit']}; {content['machine']}; {versions}."


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)


def write(out: Path, name: str, content: Mapping[str, Any], text: str) -> None:
    """``name.json`` and ``name.md``; the text is printed too. :func:`facts` are added where ``content`` has none."""
    write_json(out / f"{name}.json", content if "command" in content else {**facts(), **content})
    with atomic_write(out / f"{name}.md") as file:
        file.write(text)
    print(text)

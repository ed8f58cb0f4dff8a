"""What the evidence programs share: options, and writing JSON and Markdown with how they were made."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tzn.files import atomic_write

RESULTS = Path(__file__).resolve().parent.parent / "results" / "evidence"


def parser(doc: str) -> argparse.ArgumentParser:
    """Options of every program: ``--out``, ``--seed`` and ``--smoke`` (tiny settings, for tests)."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--smoke", action="store_true", help="tiny settings that run in seconds")
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)) + "\n"


def write(out: Path, name: str, content: dict[str, Any], text: str) -> None:
    """``name.json`` with the facts of the run added, and ``name.md``."""
    facts = {
        "program": f"benchmarks/evidence/{name}.py", "date": date.today().isoformat(), "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    with atomic_write(out / f"{name}.json") as file:
        json.dump(facts | content, file, indent=1)
    with atomic_write(out / f"{name}.md") as file:
        file.write(text)
    print(text)

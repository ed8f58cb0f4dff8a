"""Loads the compiled CPU kernels (``torch.ops.tzn_native.*``), if they were built."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent.parent


def build_facts() -> dict[str, Any]:
    """What the build recorded: compiler, torch, kernels, or the reason why there are none."""
    try:
        return dict(json.loads((PACKAGE / "_build.json").read_text()))
    except (OSError, ValueError):
        return {}


def _library() -> Path | None:
    """The package's own library, or the file named by ``TZN_NATIVE_LIBRARY``: another build of the same sources."""
    chosen = os.environ.get("TZN_NATIVE_LIBRARY")
    return Path(chosen) if chosen else next(iter(sorted(PACKAGE.glob("_native.*so"))), None)


@cache
def missing_reason() -> str | None:
    """Loads the library on the first call; None when its ops can be used, otherwise why not."""
    library = _library()
    if library is None:
        reason = build_facts().get("reason", "this installation was made without them")
        return f"compiled CPU kernels are not built ({reason}); see 'Install' in the README"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load with torch {torch.__version__}: {error}"
    try:  # shapes for tracing: they need the ops to exist
        from tzn.ops import native_attention_fakes, native_fakes  # noqa: F401
    except RuntimeError as error:
        return f"{library.name} is of another version of tzn, build it again: {error}"
    return None

"""Reading files written by ``torch.save`` without running anything from them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from tzn.errors import CheckpointError


def read_checkpoint(path: Path) -> Any:
    """Content of a file written by ``torch.save``, with ``weights_only=True``.

    Raises:
        CheckpointError: missing or damaged file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; 'tzn train' writes checkpoints/best.ckpt and last.ckpt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from None

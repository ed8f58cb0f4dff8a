"""Reading and writing files of ``torch.save`` without running anything from them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from tzn.errors import CheckpointError
from tzn.files import atomic_write

# What PyTorch's restricted unpickler says of a file that names a function or class to call.
CODE = ("not an allowed global", "unsupported GLOBAL", "Unsupported global", "Unsupported class")


def read_checkpoint(path: Path) -> Any:
    """Content of a file written by ``torch.save``, with ``weights_only=True``.

    Raises:
        CheckpointError: missing or damaged file, or one that wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; 'tzn train' writes checkpoints/best.ckpt and last.ckpt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        text = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path) and any(c in text for c in CODE):
            raise CheckpointError(
                f"{path}: contains code, refused: a checkpoint holds tensors and plain data only"
            ) from None
        reason = text if not isinstance(error, pickle.UnpicklingError) else "its content is not a pickle of plain data"
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason[:120] or type(error).__name__})") from None


def write_checkpoint(path: str | Path, content: Any) -> None:
    """``torch.save`` to a temporary name, then renamed.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()  # writing straight to the file, PyTorch turns a full disk into a message about its archive
    torch.save(content, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())

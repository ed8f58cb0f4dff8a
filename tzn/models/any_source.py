"""Whatever can be named where a trained localizer is wanted."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

from tzn.errors import CheckpointError
from tzn.models.checkpoint import LoadedCheckpoint, load_checkpoint, run_checkpoint
from tzn.models.exported_file import is_exported, load_exported
from tzn.models.pretrained import RawSignal, load_pretrained, pretrained_names


class Source(NamedTuple):
    """A trained localizer; ``signal``: it reads raw signals of this kind, None: features."""

    checkpoint: LoadedCheckpoint
    signal: RawSignal | None
    name: str


def load_model(source: str | PathLike[str]) -> Source:
    """A model that comes along by its name, the folder of a run, a checkpoint, or a file of ``tzn export``.

    Raises:
        CheckpointError: there is no such thing, or it is damaged.
    """
    if isinstance(source, str) and source in pretrained_names():
        known = load_pretrained(source)
        return Source(known.checkpoint, known.signal, source)
    path = Path(source)
    if not path.exists():
        names = ", ".join(repr(known) for known in pretrained_names())
        raise CheckpointError(
            f"{str(source)!r}: no such file or folder; expected a checkpoint, the folder of a run, an exported "
            f"model, or a model that comes with tzn: {names}"
        )
    if is_exported(path):
        program = load_exported(path)
        return Source(program.checkpoint, program.signal, path.name)
    return Source(load_checkpoint(run_checkpoint(path)), None, path.name)

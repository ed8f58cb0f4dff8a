"""Released ActionFormer checkpoints (``.pth.tar``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tzn.errors import CheckpointError
from tzn.models.actionformer import ActionFormer
from tzn.models.checkpoint_file import read_checkpoint
from tzn.models.config import ActionFormerConfig

MAX_LISTED = 4


def load_actionformer_checkpoint(path: str | Path, config: ActionFormerConfig, *, ema: bool = True) -> ActionFormer:
    """An ActionFormer with the weights of a released ``.pth.tar``, in evaluation mode on the CPU.

    Args:
        path: a dict with ``state_dict`` and ``state_dict_ema``, keys with or without the prefix ``module.``; or a bare
            state dict. Read with ``weights_only=True``.
        config: must describe the checkpoint's network.
        ema: the averaged weights, which the original evaluates; False: the raw ones.

    Raises:
        CheckpointError: missing or damaged file, or weights that do not fit; the message lists the keys that are missing,
            left over, or of another shape.
    """
    weights = _weights(read_checkpoint(Path(path)), path, ema)
    model = ActionFormer(config)
    problems = _misfits(weights, model.state_dict())
    if problems:
        raise CheckpointError(f"{path}: does not fit this configuration: {'; '.join(problems)}")
    model.load_state_dict(weights)
    return model.eval()


def _weights(content: Any, path: str | Path, ema: bool) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dict with state_dict_ema")
    key = "state_dict_ema" if ema else "state_dict"
    if key in content:
        content = content[key]
    elif "state_dict" in content or "state_dict_ema" in content:
        raise CheckpointError(f"{path}: has no {key!r}; it has {', '.join(map(str, content))}")
    found = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not found:
        raise CheckpointError(f"{path}: holds no tensors; it has {', '.join(map(str, list(content)[:MAX_LISTED]))}")
    return found


def _misfits(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    shapes = [
        f"{k} is {tuple(given[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in given and given[k].shape != v.shape
    ]
    named = (("missing", missing), ("not in this network", extra), ("other shapes", shapes))
    return [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in named if keys]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")

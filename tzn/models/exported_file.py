"""Files written by ``tzn export``: ``.onnx`` for onnxruntime, ``.pt2`` for torch (a program, or an AOTInductor package)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tzn.config_loading import config_from_dict
from tzn.errors import CheckpointError, ConfigError
from tzn.models.checkpoint import LoadedCheckpoint, with_calibration
from tzn.models.exported import ExportedNetwork, Run
from tzn.models.pretrained import RawSignal
from tzn.optional import require

FORMAT = 1
KEY = "tzn"  # of the description among an ONNX file's or AOTInductor package's properties
EXTRA = "tzn.json"  # of the description in an archive of torch.export.save
SUFFIXES = (".onnx", ".pt2")
REQUIRED = {"format": int, "config": dict, "classes": list, "mean": list, "std": list, "outputs": list}


@dataclasses.dataclass(frozen=True)
class LoadedProgram:
    """An exported localizer, ready to run on the CPU."""

    checkpoint: LoadedCheckpoint
    signal: RawSignal | None  # it reads raw signals of this kind; None: features
    description: dict[str, Any]


def is_exported(path: str | Path) -> bool:
    """Whether a file is one of ``tzn export``'s, by its name."""
    return Path(path).suffix in SUFFIXES and not Path(path).is_dir()


def load_exported(path: str | Path) -> LoadedProgram:
    """Read a file of ``tzn export``.

    An AOTInductor package is machine code and a ``.pt2`` program is not checked as a checkpoint is: run only those that
    you or somebody whom you trust has written.

    Raises:
        CheckpointError: missing or damaged file, one that another program wrote, another version's.
        DataError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; 'tzn export' writes .onnx and .pt2 files")
    text, run = onnx_session(path) if path.suffix == ".onnx" else _torch(path)
    description = _checked(text, path)
    try:
        config = config_from_dict(description["config"])
        mean, std = (torch.tensor(description[name], dtype=torch.float32) for name in ("mean", "std"))
        if mean.shape != (config.model.feature_dim,) or std.shape != mean.shape:
            raise CheckpointError(
                f"standardisation of {tuple(mean.shape)} channels, expected {config.model.feature_dim}"
            )
        network = ExportedNetwork(
            run, config.model, receptive_radius=description.get("receptive_radius"), mean=mean, std=std,
            digest=hashlib.sha256(path.read_bytes()).digest(),
        )  # fmt: skip
        signal = description.get("signal")
        raw = None if signal is None else RawSignal(**{**signal, "channels": tuple(signal["channels"])})
    except (CheckpointError, ConfigError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    threshold = description.get("score_threshold"), description.get("score_threshold_split")
    try:
        described, calibration = with_calibration(description["config"], description.get("calibration"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    loaded = LoadedCheckpoint(network.eval(), tuple(description["classes"]), described, *threshold, calibration)
    return LoadedProgram(loaded, raw, description)


def read_description(path: str | Path) -> dict[str, Any]:
    """What an ``.onnx`` file says of itself, without a session to run it.

    Raises:
        CheckpointError: missing or damaged file, one that another program wrote.
    """
    onnx = require("onnx", "reading an .onnx model", "onnx")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; 'tzn export' writes .onnx files")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # a damaged protocol buffer can raise anything
        raise CheckpointError(f"{path}: damaged, or not an ONNX model ({_short(error)})") from None
    return _checked({p.key: p.value for p in model.metadata_props}.get(KEY), path)


def _checked(text: str | None, path: Path) -> dict[str, Any]:
    if not text:
        raise CheckpointError(f"{path}: says nothing of classes and settings; expected a file of 'tzn export'")
    try:
        description = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged description ({_short(error)})") from None
    wrong = [
        k
        for k, kind in REQUIRED.items()
        if not isinstance(description, dict) or not isinstance(description.get(k), kind)
    ]
    if wrong:
        raise CheckpointError(f"{path}: damaged description: {', '.join(wrong)}")
    if description["format"] > FORMAT:
        raise CheckpointError(f"{path}: format {description['format']} is newer than this tzn reads ({FORMAT})")
    return description


def onnx_session(path: Path) -> tuple[str | None, Run]:
    """The description of an ``.onnx`` file, and the program, run by onnxruntime with as many threads as torch has."""
    ort = require("onnxruntime", "running an .onnx model", "onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait by spinning would take the cores from torch's, which decode between the runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are classes of its own without a common base
        raise CheckpointError(f"{path}: onnxruntime {ort.__version__} cannot load it ({_short(error)})") from None
    inputs = {x.name for x in session.get_inputs()}
    names = [x.name for x in session.get_outputs()]

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(names, {name: value.numpy() for name, value in given.items() if name in inputs})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, found, strict=True)}

    return session.get_modelmeta().custom_metadata_map.get(KEY), run


def _torch(path: Path) -> tuple[str | None, Run]:
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        return _package(path) if compiled else _program(path)
    except Exception as error:  # torch's reader of archives raises whatever its parts do
        raise CheckpointError(f"{path}: torch {torch.__version__} cannot load it ({_short(error)})") from None


def _program(path: Path) -> tuple[str | None, Run]:
    import tzn.ops  # noqa: F401  (the program calls torch.ops.tzn)

    extra = {EXTRA: ""}
    program = torch.export.load(str(path), extra_files=extra).module()
    return extra[EXTRA], _named(program, extra[EXTRA])


def _package(path: Path) -> tuple[str | None, Run]:
    from tzn.ops._backend import missing_native

    if reason := missing_native():
        raise CheckpointError(f"a compiled package calls the compiled CPU kernels: {reason}")
    program = torch._inductor.aoti_load_package(str(path))
    text = program.loader.get_metadata().get(KEY)
    return text, _named(program, text)


def _named(program: Any, text: str | None) -> Run:
    """A program of torch as one of arrays by name."""
    described = json.loads(text) if text else {}
    inputs, outputs = described.get("inputs", []), described.get("outputs", [])

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(outputs, program(*(given[name] for name in inputs)), strict=True))

    return run


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

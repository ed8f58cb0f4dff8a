"""Writing a localizer as ``.onnx``, as a program of torch, or as an AOTInductor package."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from tzn.config_loading import config_from_dict, config_to_dict, override_trained
from tzn.errors import ConfigError, DataError
from tzn.export.program import Program, describe, program_of, trace
from tzn.files import atomic_write
from tzn.models.any_source import load_model
from tzn.models.exported_file import EXTRA, KEY
from tzn.optional import require

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
PRODUCER = "tzn"
LARGEST_ONNX = 2_000_000_000  # bytes of one protocol buffer


def export_localizer(
    source: str | Path, out: Path | None = None, *, to: str | None = None, overrides: tuple[str, ...] = ()
) -> Path:
    """Write a localizer for another runtime; features in, scores, offsets and distances out (docs/export.md).

    Args:
        source: as of :func:`tzn.load`, but no exported file.
        out: the file; None: the source's name and the suffix of the format, in the working directory.
        to: "onnx", "pt2" (``torch.export``, runs where tzn is installed) or "aoti" (an AOTInductor package, machine code for
            processors like this one, that C++ loads together with tzn's compiled library); None: by the suffix of ``out``.
        overrides: settings to write in place of those of training, such as ``inference.nms=hard``.

    Returns:
        Where it was written.

    Raises:
        CheckpointError, ConfigError: a source or a network that is not exported. DataError: a missing package, another suffix.
    """
    if to is None:
        known = {suffix: name for name, suffix in reversed(FORMATS.items())}
        if out is None or out.suffix not in known:
            raise DataError(
                f"--to: expected one of {', '.join(FORMATS)}, or --out with a suffix that says so (.onnx, .pt2)"
            )
        to = known[out.suffix]
    if to not in FORMATS:
        raise DataError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    if out is not None and out.suffix != FORMATS[to]:
        raise DataError(f"--out {out}: expected a name that ends in {FORMATS[to]}")
    if to == "onnx":
        for module in ("onnx", "onnxscript"):
            require(module, "exporting to ONNX", "onnx")
    checkpoint, signal, name = load_model(source)
    path = out or Path(f"{Path(name).stem}{'.aoti' if to == 'aoti' else ''}{FORMATS[to]}")
    config = config_to_dict(override_trained(config_from_dict(checkpoint.config), list(overrides)))
    program = program_of(checkpoint.model)
    description = json.dumps(describe(checkpoint, signal, config, program, to), allow_nan=False)
    content = {"onnx": onnx_bytes, "pt2": program_bytes, "aoti": package_bytes}[to](program, description)
    with atomic_write(path, "wb") as file:
        file.write(content)
    return path


def onnx_bytes(program: Program, description: str) -> bytes:
    import onnx

    from tzn.export.onnx_ops import OPSET, translations

    traced = trace(program)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            traced, input_names=list(program.inputs), output_names=list(program.outputs), opset_version=OPSET, dynamo=True,
            custom_translation_table=translations(), verbose=False,
        )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    for node in model.graph.node:  # lines of source and paths of this machine
        del node.metadata_props[:]
        node.ClearField("doc_string")
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for output in model.graph.output:  # sizes that follow from the input's are the program's business
        _loosen(output)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: description})
    model.producer_name, model.producer_version = PRODUCER, json.loads(description)["tzn"]
    if model.ByteSize() > LARGEST_ONNX:
        raise ConfigError(f"{model.ByteSize()} bytes: an .onnx file of one piece has at most {LARGEST_ONNX}")
    return model.SerializeToString()  # type: ignore[no-any-return]


def _loosen(value: Any) -> None:
    """Symbolic sizes under names that runtimes do not take for one another's."""
    for place, size in enumerate(value.type.tensor_type.shape.dim):
        if size.dim_param and not size.dim_param.isidentifier():
            size.dim_param = f"{value.name}_{place}"


def program_bytes(program: Program, description: str) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        torch.export.save(trace(program), buffer, extra_files={EXTRA: description})
    return buffer.getvalue()


def package_bytes(program: Program, description: str) -> bytes:
    from tzn.export.native import native_program
    from tzn.ops._backend import missing_native

    if reason := missing_native():
        raise ConfigError(f"an AOTInductor package calls the compiled CPU kernels: {reason}")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        path = Path(folder) / "package.pt2"
        settings = {"aot_inductor.metadata": {KEY: description}}
        traced = native_program(trace(program))
        torch._inductor.aoti_compile_and_package(traced, package_path=str(path), inductor_configs=settings)
        return path.read_bytes()


class _quiet:
    """The exporters' own reports are of no use to who exports."""

    def __enter__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)
        self.stdout = os.environ.get("TORCH_LOGS")

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)

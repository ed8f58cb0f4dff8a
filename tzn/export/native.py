"""A traced program whose ops are those of the compiled library, so that it runs where no Python is."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tzn.errors import ConfigError
from tzn.ops._backend import missing_native


def native_program(traced: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program; blocks call ``torch.ops.tzn_native.variable_depth_block`` of the compiled library.

    The ops ``torch.ops.tzn.*`` are Python's: a process without it cannot call them.

    Raises:
        ConfigError: no compiled library; an op that it has no counterpart of (the attention of ActionFormer).
    """
    if reason := missing_native():
        raise ConfigError(f"an AOTInductor package calls the compiled CPU kernels: {reason}")
    _declare()
    block = torch.ops.tzn.variable_depth_block.default
    for node in traced.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "tzn":
            continue
        if node.target is not block:
            raise ConfigError(
                f"{node.target}: AOTInductor packages are made of a TemporalZoomNet only; ONNX takes both"
            )
        node.target = torch.ops.tzn_native.variable_depth_block.default
    traced.graph_module.recompile()
    return traced


@cache
def _declare() -> torch.library.Library:
    """Tells the compiler what the op's result looks like; the library object must live as long as the process."""
    library = torch.library.Library("tzn_native", "FRAGMENT")
    torch.library.register_fake("tzn_native::variable_depth_block", _fake, lib=library)
    return library


def _fake(x: Tensor, gate: Tensor | None, weights: list[Tensor], mask: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)

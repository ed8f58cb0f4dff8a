"""``tzn_native::suppress_groups`` in three ways: the CUDA kernel emulated on the host, the CPU kernel, CUDA itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest
import torch
from cuda_emulation import COMPILER, compile_emulation, emulate
from torch import Tensor

from tzn.ops._backend import missing_cuda, missing_native

Suppress = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """Compiles the kernel's emulation, with more flags if given."""
    if COMPILER is None:
        pytest.skip("no C++ compiler found (CXX, g++, clang++): the CUDA kernel cannot be emulated")

    return lambda *flags: compile_emulation(tmp_path_factory.mktemp("emulation") / "nms_emulation.so", *flags)


@pytest.fixture(scope="session")
def emulated(emulation: Callable[..., ctypes.CDLL]) -> Suppress:
    library = emulation()

    def suppress(*arguments: object, **launch: int) -> tuple[Tensor, Tensor, Tensor]:
        return emulate(library, *arguments, **launch)  # type: ignore[arg-type]

    return suppress


@pytest.fixture(params=["emulated", "emulated-in-global-memory", "cpu", "cuda"])
def suppress(request: pytest.FixtureRequest) -> Suppress:
    if request.param.startswith("emulated"):
        run: Suppress = request.getfixturevalue("emulated")
        places = 5 if request.param.endswith("memory") else None
        return lambda *arguments: run(*arguments, places=places)
    reason = missing_native() if request.param == "cpu" else missing_cuda()
    if reason is not None:
        required = request.param == "cpu" and os.environ.get("TZN_REQUIRE_NATIVE") == "1"
        (pytest.fail if required else pytest.skip)(reason)

    def on_device(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
        moved = [x.to(request.param) if isinstance(x, Tensor) else x for x in arguments]
        return tuple(x.cpu() for x in torch.ops.tzn_native.suppress_groups(*moved))  # type: ignore[return-value]

    return on_device

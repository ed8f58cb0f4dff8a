"""Whether layers around the blocks run as fused kernels, in plain inference: on Triton (``tzn/kernels/fused.py``,
``zoom.py``), and on the CPU convolutions (``csrc/cpu/product.cpp``) and exits (``csrc/cpu/boundary_stream.cpp``).

They are no ops: nobody may want to see, differentiate or export them. Wherever somebody might, PyTorch's own operators run.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

from tzn.ops._backend import choose_backend, kernels
from tzn.ops._register import _watched

ON_CPU = ("zoom",)  # modules that the CPU has too
X86 = platform.machine().lower() in ("x86_64", "amd64")


def fused(x: Tensor, weight: Tensor, module: str = "fused") -> Any | None:
    """The kernels' module where they may take ``x`` and a layer's ``weight``, else None: it runs operator by operator then."""
    if _plain(x, weight, "triton"):
        return kernels("triton", module)
    if module in ON_CPU and x.device.type == "cpu" and _plain(x, weight, "cpp"):
        return kernels("cpp", module)
    return None


def fused_conv3(x: Tensor, weight: Tensor) -> Any | None:
    """Likewise the compiled CPU kernel ``conv3``, of float32 on x86; elsewhere nobody has timed it against PyTorch."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not X86 or not _plain(x, weight, "cpp"):
        return None
    return torch.ops.tzn_native.conv3


def _plain(x: Tensor, weight: Tensor, backend: str) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if type(x) is not Tensor or x.dtype != weight.dtype or not x.is_floating_point():
        return False
    if x.device != weight.device or choose_backend(x.device) != backend:
        return False
    return not _watched(x.device.type)

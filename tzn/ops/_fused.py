"""Whether layers around the blocks run as fused kernels (``tzn/kernels/fused.py``): in plain inference on Triton.

They are no ops: nobody may want to see, differentiate or export them. Wherever somebody might, PyTorch's own operators run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tzn.ops._backend import choose_backend, kernels
from tzn.ops._register import _watched


def fused(x: Tensor, weight: Tensor) -> Any | None:
    """The kernels' module where they may take ``x`` and a layer's ``weight``, else None: it runs operator by operator then."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if type(x) is not Tensor or x.dtype != weight.dtype or not x.is_floating_point():
        return None
    if x.device != weight.device or choose_backend(x.device) != "triton":
        return None
    return None if _watched(x.device.type) else kernels("triton", "fused")

"""Exits of a boundary stream in inference on the CPU (``csrc/cpu/boundary_stream.cpp``); ``tzn/kernels/zoom.py``: on Triton."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.kernels import Dial, accumulate_dtype


def read_exit(
    h: Tensor, norm: tuple[Tensor, Tensor, float], linear: tuple[Tensor, Tensor], raw: Tensor, mask: Tensor,
    gate: Tensor | None, following: Tensor | None, shift: Tensor | None, dial: Dial,
) -> int:  # fmt: skip
    """As ``read_exit`` of ``tzn/kernels/zoom.py``; returns how many steps go on."""
    dtype = accumulate_dtype(h.dtype)
    weights = (x.to(dtype).contiguous() for x in (*norm[:2], *linear))
    return torch.ops.tzn_native.read_exit(  # type: ignore[no-any-return]
        h.contiguous(), next(weights), next(weights), norm[2], next(weights), next(weights), raw, mask.contiguous(), gate,
        following, shift, dial.least, dial.settled, dial.ramp, *dial.reach, dial.full,
    )  # fmt: skip


def fields(raw: Tensor, shape: torch.Size, radius: float, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, scale and logit of reach, each ``[B, F, T]``, of ``raw`` ``[B * T, 3 F]``; ``shape``: B, T."""
    by_field = raw.view(*shape, raw.shape[1]).movedim(2, 0).contiguous()
    distance, spread, reach = by_field.unflatten(0, (3, raw.shape[1] // 3)).unbind()
    found = distance.div_(radius).tanh_().mul_(radius), F.softplus(spread).add_(least), reach
    return tuple(x.movedim(0, 1) for x in found)  # type: ignore[return-value]

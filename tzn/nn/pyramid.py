"""Feature pyramid: coarser and coarser levels over time, flattened to one sequence of points for shared heads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.nn.block import VariableDepthBlock
from tzn.ops._fused import fused

LAPLACE_STD = 2**0.5  # standard deviation of a Laplace variable of scale 1


class PointGrid(NamedTuple):
    """Points of all levels, fine to coarse, one separating pad after each level so that convolutions do not mix them."""

    position: Tensor  # [P] float32 grid time
    stride: Tensor  # [P] float32
    level: Tensor  # [P] int64
    ranges: Tensor  # [P, 2] float32, regression range in grid steps
    sizes: tuple[int, ...] = ()  # points of every level, its pad included; empty: only the device knows


class Offsets(Protocol):
    """Left and right lengths of segments, and their standard deviations (None: the model knows none), in grid steps."""

    def __call__(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``[B, P, 2]`` everywhere, or ``[N, 2]`` at ascending ``rows`` ``[N]`` of the flattened ``[B * P]`` points."""
        ...


class BoundaryFields(Protocol):
    """Signed distances to the nearest start and end, and their Laplace scales, in grid steps."""

    def __call__(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, 2, T]`` each; with ascending ``rows`` ``[N]`` of the flattened ``[B * T]`` steps, NaN at all others."""
        ...


class Points(NamedTuple):
    """What every localizer says about a batch, for inference to decode: class scores of all points, the rest on demand."""

    grid: PointGrid
    mask: Tensor  # [B, P]
    scores: Tensor  # [B, P, C] float32 class probabilities, 0 where padded
    depth: Tensor  # [B, T] depth of each step in [0, 1]
    offsets: Offsets
    fields: BoundaryFields | None  # None: the model has no boundary fields


class Pyramid(nn.Module):
    """Levels of stride ``first_stride * 2**i`` by max pooling and one block each.

    A level of stride 1 is the input itself. ``forward`` returns the levels after a LayerNorm each.
    """

    def __init__(
        self, width: int, num_heads: int, window: int, *, first_stride: int, num_levels: int, mlp_ratio: float,
        drop_path: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first_stride, self.num_levels = first_stride, num_levels
        blocks = num_levels - (first_stride == 1)
        self.blocks = nn.ModuleList(
            VariableDepthBlock(width, num_heads, window, mlp_ratio, drop_path) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_levels))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """``[B, T, D]`` and ``[B, T]`` to per-level features ``[B, T_i, D]`` (zero where padded) and masks."""
        levels, masks = self._levels(x, mask)
        normed = (norm(x) * m.unsqueeze(-1) for norm, x, m in zip(self.norms, levels, masks, strict=True))
        return list(normed), masks

    def points(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """The levels as one sequence and its mask (:func:`flatten_levels`), then what ``forward`` returns."""
        norm = self.norms[0]
        assert isinstance(norm, nn.LayerNorm)
        if (kernels := fused(x, norm.weight)) is None:
            levels, masks = self(x, mask)
            return *flatten_levels(levels, masks), levels, masks
        levels, masks = self._levels(x, mask)
        features, valid, levels = kernels.flatten_levels(levels, masks, [(n.weight, n.bias, n.eps) for n in self.norms])
        return features, valid, levels, masks

    def _levels(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Before their norms."""
        levels, masks = [], []
        blocks = iter(self.blocks)
        for level in range(self.num_levels):
            pools = self.first_stride.bit_length() - 1 if level == 0 else 1
            for _ in range(pools):
                x, mask = halve(x, mask)
            if level > 0 or self.first_stride > 1:
                x = next(blocks)(x, mask)
            levels.append(x)
            masks.append(mask)
        return levels, masks


def halve(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Max pooling of kernel 3, stride 2 over the valid steps: ``[B, T, D]`` to ``[B, ceil(T / 2), D]``."""
    if (kernels := fused(x, x)) is not None:
        return kernels.halve(x, mask)  # type: ignore[no-any-return]
    lowest = torch.finfo(x.dtype).min
    padded = F.pad(x.masked_fill(~mask.unsqueeze(-1), lowest), (0, 0, 1, 2), value=lowest)  # alike for odd and even T
    mask = mask[:, ::2]
    left, middle, right = (padded[:, tap::2][:, : mask.shape[1]] for tap in range(3))
    pooled = torch.maximum(torch.maximum(left, middle), right)
    return pooled * mask.unsqueeze(-1), mask


def double(x: Tensor, steps: int) -> Tensor:
    """Linear interpolation from a level to the next finer one: ``[B, T, D]`` to ``[B, steps, D]``, steps in 2 T - {0, 1}."""
    between = 0.5 * (x + F.pad(x[:, 1:], (0, 0, 0, 1)))
    return torch.stack([x, between], dim=2).flatten(1, 2)[:, :steps]


def flatten_levels(levels: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All levels as one sequence ``[B, P, D]`` with its mask ``[B, P]``, a masked pad after each level."""
    features = torch.cat([F.pad(x, (0, 0, 0, 1)) for x in levels], dim=1)
    return features, torch.cat([F.pad(m, (0, 1)) for m in masks], dim=1)


def point_grid(
    lengths: list[int], strides: tuple[int, ...], ranges: tuple[tuple[float, float], ...], device: torch.device
) -> PointGrid:
    """Points of levels with ``lengths`` steps, in the order of :func:`flatten_levels`.

    Those of the last shapes are kept: on a device they are dozens of launches of constants. Nobody may write into them.
    """
    infra = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if traced or any(torch._C._get_dispatch_mode(mode) is not None for mode in infra):
        return _point_grid(lengths, strides, ranges, device)
    key = (tuple(lengths), tuple(strides), tuple(tuple(r) for r in ranges), device)
    with _LOCK:
        if key not in _GRIDS:
            with torch.inference_mode(False), torch.no_grad():  # to be read where gradients are wanted as well
                _GRIDS[key] = _point_grid(lengths, strides, ranges, device)
        _GRIDS.move_to_end(key)
        while len(_GRIDS) > GRIDS_KEPT:
            _GRIDS.popitem(last=False)
        return _GRIDS[key]


GRIDS_KEPT = 8
_GRIDS: OrderedDict[Any, PointGrid] = OrderedDict()
_LOCK = threading.Lock()


def _point_grid(
    lengths: list[int], strides: tuple[int, ...], ranges: tuple[tuple[float, float], ...], device: torch.device
) -> PointGrid:
    position, stride, level, bounds = [], [], [], []
    for i, (count, step, limits) in enumerate(zip(lengths, strides, ranges, strict=True)):
        time = torch.arange(count + 1, device=device)
        position.append(time.float() * step)
        stride.append(torch.full((count + 1,), float(step), device=device))
        level.append(torch.full((count + 1,), i, device=device))
        # Filled on the device: a table copied from the host could not be captured in a CUDA graph.
        bounds.append(torch.stack([torch.full((count + 1,), float(bound), device=device) for bound in limits], dim=1))
    sizes = tuple(count + 1 for count in lengths)
    return PointGrid(torch.cat(position), torch.cat(stride), torch.cat(level), torch.cat(bounds), sizes)


class TopDown(nn.Module):
    """Brings coarse context back to full rate: lateral projections, summed from the coarsest level down."""

    def __init__(self, width: int, out_channels: int, *, first_stride: int, num_levels: int) -> None:
        super().__init__()
        self.pools = first_stride.bit_length() - 1
        self.norm = nn.LayerNorm(width)
        self.full_rate = nn.Linear(width, out_channels)
        self.laterals = nn.ModuleList(nn.Linear(width, out_channels) for _ in range(num_levels))

    def forward(self, x: Tensor, mask: Tensor, levels: list[Tensor], masks: list[Tensor]) -> Tensor:
        """Full-rate ``[B, T, D]`` and the pyramid's levels to ``[B, T, out]``, zero where padded."""
        if (kernels := fused(x, self.full_rate.weight)) is not None:
            return self._fused(kernels, x, mask, levels, masks)
        context = None
        for lateral, level, valid in zip(reversed(self.laterals), reversed(levels), reversed(masks), strict=True):
            value = lateral(level) * valid.unsqueeze(-1)
            context = value if context is None else value + double(context, level.shape[1]) * valid.unsqueeze(-1)
        assert context is not None
        for pool in reversed(range(self.pools)):
            valid = mask[:, :: 1 << pool]
            context = double(context, valid.shape[1]) * valid.unsqueeze(-1)
        return (self.full_rate(self.norm(x)) + context) * mask.unsqueeze(-1)

    def _fused(self, kernels: Any, x: Tensor, mask: Tensor, levels: list[Tensor], masks: list[Tensor]) -> Tensor:
        context, added = None, kernels.ALONE
        for lateral, level, valid in zip(reversed(self.laterals), reversed(levels), reversed(masks), strict=True):
            context = kernels.lateral(level, lateral.weight, lateral.bias, valid, context, added)
            added = kernels.DOUBLED
        assert context is not None
        for pool in reversed(range(1, self.pools)):
            valid = mask[:, :: 1 << pool]
            context = double(context, valid.shape[1]) * valid.unsqueeze(-1)
        normed = kernels.norm_rows(x, self.norm.weight, self.norm.bias, None, self.norm.eps)
        added = kernels.DOUBLED if self.pools else kernels.SAME
        return kernels.lateral(normed, self.full_rate.weight, self.full_rate.bias, mask, context, added)  # type: ignore[no-any-return]

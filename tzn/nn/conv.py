"""Masked k = 3 convolutions over time on ``[B, T, C]``, dense or only at the rows that somebody asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.ops._fused import fused, fused_conv3


class Conv3(nn.Linear):
    """Convolution of kernel 3, stride 1, zero padding, as one matrix product over three stacked neighbours.

    On CPU a matrix product over gathered rows is as fast as ``Conv1d`` and, unlike it, can skip rows.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(3 * in_channels, out_channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, in]`` (zero where padded) to ``[B, T, out]``."""
        if x.dim() == 3 and (kernel := fused_conv3(x, self.weight)) is not None:
            return kernel(x, self.weight, self.bias, None, None, None, 0.0)  # type: ignore[no-any-return]
        padded = F.pad(x, (0, 0, 1, 1))
        return super().forward(torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=-1))

    def at(self, rows: Tensor, neighbours: Tensor) -> Tensor:
        """Outputs of chosen steps: ``rows`` ``[S, in]``, ``neighbours`` ``[N, 3]`` indices into them (-1: zeros)."""
        stacked = F.pad(rows, (0, 0, 0, 1))[neighbours]  # index -1 is the appended row of zeros
        return super().forward(stacked.flatten(1))


def conv_layers(x: Tensor, mask: Tensor, convs: nn.ModuleList, norms: nn.ModuleList) -> Tensor:
    """As many [Conv3, LayerNorm, ReLU, mask] as there are, on ``[B, T, C]`` zero outside ``mask`` ``[B, T]``."""
    first = next(iter(convs), None)
    kernels = fused(x, first.weight) if isinstance(first, Conv3) else None
    if kernels is not None:
        for conv, norm in zip(convs, norms, strict=True):
            x = kernels.conv_norm(x, conv.weight, conv.bias, norm.weight, norm.bias, mask, norm.eps)
        return x
    kernel = fused_conv3(x, first.weight) if isinstance(first, Conv3) else None
    if kernel is not None:
        for conv, norm in zip(convs, norms, strict=True):
            x = kernel(x, conv.weight, conv.bias, norm.weight, norm.bias, mask, norm.eps)
        return x
    keep = mask.unsqueeze(-1).to(x.dtype)
    for conv, norm in zip(convs, norms, strict=True):
        x = F.relu(norm(conv(x))) * keep
    return x


class ConvTower(nn.Module):
    """``layers`` x [Conv3, LayerNorm, ReLU, mask], then a Conv3 with bias to ``out_channels``."""

    def __init__(self, in_channels: int, width: int, out_channels: int, layers: int) -> None:
        super().__init__()
        inputs = [in_channels] + [width] * layers
        self.convs = nn.ModuleList(Conv3(inputs[i], width, bias=False) for i in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.output = Conv3(inputs[-1], out_channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, in]`` zero outside ``mask`` ``[B, T]`` to ``[B, T, out]``."""
        return self.output(self.hidden(x, mask))

    def hidden(self, x: Tensor, mask: Tensor) -> Tensor:
        return conv_layers(x, mask, self.convs, self.norms)

    def hidden_neighbours(self, x: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What an output convolution at the steps ``rows`` needs: packed hidden rows and its ``[N, 3]`` neighbours.

        Args:
            x: ``[B, T, in]``; mask: ``[B, T]``; rows: ``[N]`` ascending indices into the flattened ``[B * T]`` axis.
        """
        batch, steps = mask.shape
        keep = mask.flatten()
        needed = [rows]
        for _ in range(len(self.convs) + 1):
            needed.append(_with_neighbours(needed[-1], steps, keep))
        packed = x.reshape(batch * steps, -1)[needed[-1]]
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            source, target = needed[len(self.convs) + 1 - depth], needed[len(self.convs) - depth]
            assert isinstance(conv, Conv3)
            packed = F.relu(norm(conv.at(packed, _neighbour_slots(source, target, steps))))
        return packed, _neighbour_slots(needed[1], rows, steps)

    def at(self, x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """The rows ``rows`` of ``self(x, mask)``, computing nothing else: ``[N, out]``."""
        return self.output.at(*self.hidden_neighbours(x, mask, rows))


def _with_neighbours(rows: Tensor, steps: int, keep: Tensor) -> Tensor:
    """Rows and their valid neighbours within the same recording, ascending."""
    wanted = torch.zeros_like(keep)
    wanted[rows] = True
    wanted[(rows[rows % steps > 0]) - 1] = True
    wanted[(rows[rows % steps < steps - 1]) + 1] = True
    return (wanted & keep).nonzero().squeeze(1)


def _neighbour_slots(source: Tensor, target: Tensor, steps: int) -> Tensor:
    """For every target row, where its three neighbours stand in ``source``; -1 where they are padding."""
    wanted = target[:, None] + torch.arange(-1, 2, device=target.device)
    same = torch.div(wanted, steps, rounding_mode="floor") == torch.div(target, steps, rounding_mode="floor")[:, None]
    if source.numel() == 0:
        return torch.full_like(wanted, -1)
    slot = torch.searchsorted(source, wanted).clamp(max=source.numel() - 1)
    return torch.where(same & (source[slot] == wanted), slot, -1)

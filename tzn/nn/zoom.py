"""Zoom: a full-rate boundary stream that is refined, block by block, near boundaries that are not settled yet."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.kernels import Dial
from tzn.nn.block import VariableDepthBlock
from tzn.nn.boundary import MIN_SCALE
from tzn.nn.conv import Conv3, conv_layers
from tzn.ops._fused import fused

# Activity rises from 0 to 1 while the scale goes from half the threshold to twice it: narrow enough for a dial, wide enough
# that a small change of the features does not switch a step.
RAMP = math.log(4)
# ... and from 0 to 1 while the probability that a boundary is within the radius rises so far.
REACH = (0.1, 0.3)
TRAINED_FACTOR = 64  # from the least to the largest threshold of training


class Exit(NamedTuple):
    """What the stream says of boundaries after some of its blocks."""

    distance: Tensor  # [B, F, T] grid steps
    scale: Tensor  # [B, F, T] Laplace scale of it, grid steps
    reach: Tensor  # [B, F, T] logit of the probability that a boundary is within the radius


class Zoomed(NamedTuple):
    exits: tuple[Exit, ...]  # L + 1: before the first block, then after every block
    gates: Tensor  # [B, T, L]


class BoundaryStream(nn.Module):
    """Distances to boundaries at full rate: a cheap first guess everywhere, refined where it is not settled.

    Block l reads the state of the one before and corrects (distance, scale) residually, as D-FINE's decoder layers do (Peng
    et al., ICLR 2025); every exit is supervised. A block runs on the steps of which the exit before says that a boundary is
    within reach (the probability that one is nearer than the radius, from 0.1 to 0.3) and not settled (scale above
    ``threshold``). Both are ramps, and a step that stopped stays stopped, so the stream is one continuous function of its
    input, in training and at inference. The threshold is the dial: the precision, in grid steps, from which nothing more is
    spent. It needs no look at the rest of the recording, so streams turn it too.

    Args:
        in_channels: of the features at full rate.
        width: channels of the stream.
        num_fields: 2 (starts and ends) or 1 (region).
        layers: L, blocks.
        num_heads, window, mlp_ratio: of the blocks.
        stem_layers: convolutions before the first exit.
        radius: R; distances saturate softly at +-R steps.
        threshold: Laplace scale in grid steps.
    """

    def __init__(
        self, in_channels: int, width: int, num_fields: int, *, layers: int, num_heads: int, window: int, mlp_ratio: float,
        stem_layers: int, radius: float, threshold: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_fields, self.radius, self.threshold = num_fields, radius, threshold
        self.full_depth = False  # whether every block runs on every step, whatever the threshold
        self.project = nn.Linear(in_channels, width)
        self.convs = nn.ModuleList(Conv3(width, width, bias=False) for _ in range(stem_layers))
        self.conv_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(stem_layers))
        self.blocks = nn.ModuleList(VariableDepthBlock(width, num_heads, window, mlp_ratio) for _ in range(layers))
        self.exit_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.exits = nn.ModuleList(nn.Linear(width, 3 * num_fields) for _ in range(layers + 1))
        for linear in self.exits:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():  # start unsure: a scale of half the radius
            self.exits[0].bias[num_fields : 2 * num_fields] = math.log(math.expm1(radius / 2))  # type: ignore[index,operator]

    @property
    def receptive_radius(self) -> int:
        """Steps on either side of an output that can change it, of its own input."""
        return len(self.convs) + sum(block.window // 2 for block in self.blocks)  # type: ignore[operator,misc]

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, *, gates: Tensor | None = None, shift: Tensor | None = None,
        last_only: bool = False,
    ) -> Zoomed:  # fmt: skip
        """Exits and gates.

        Args:
            x: ``[B, T, in_channels]``, zero where padded.
            context: ``[B, T, width]``, added to its projection.
            mask: ``[B, T]`` bool.
            gates: ``[B, T, L]`` in [0, 1], given in place of the stream's own.
            shift: ``[B, 1]``, logarithm of the factor that divides the threshold.
            last_only: the exits before the last are not wanted; without gradients an exit is read by one kernel then, only
                where its block ran.
        """
        h = self.stem(x, context, mask)
        return self.refine(h, mask, gates=gates, shift=shift, last_only=last_only)

    def refine(
        self,
        h: Tensor,
        mask: Tensor,
        *,
        gates: Tensor | None = None,
        shift: Tensor | None = None,
        last_only: bool = False,
    ) -> Zoomed:
        """Exits and gates from the state of :meth:`stem`; the other arguments as of :meth:`forward`."""
        if last_only and (kernels := fused(h, self.project.weight, "zoom")) is not None:
            return self._refine_fused(kernels, h, mask, gates, shift)
        raw = self._read(0, h.flatten(0, 1))
        exits, chosen = [self._exit(raw, mask)], []
        gate = mask.float()
        for layer, block in enumerate(self.blocks):
            gate = gate * self.activity(exits[-1], shift) if gates is None else gates[..., layer] * mask
            chosen.append(gate)
            h = block(h, mask, gate)
            raw = self._refined(layer + 1, h.flatten(0, 1), raw, gate.flatten())
            exits.append(self._exit(raw, mask))
        stacked = torch.stack(chosen, dim=-1) if chosen else gate.new_zeros(*mask.shape, 0)
        return Zoomed(tuple(exits[-1:] if last_only else exits), stacked)

    def _refine_fused(
        self, kernels: Any, h: Tensor, mask: Tensor, gates: Tensor | None, shift: Tensor | None
    ) -> Zoomed:
        """The same with one call for an exit and the gate behind it, which looks at no step that stopped."""
        raw = h.new_empty(mask.numel(), 3 * self.num_fields, dtype=torch.float32)
        table = raw.new_empty(len(self.blocks), *mask.shape)
        if gates is not None:
            table.copy_((gates * mask.unsqueeze(-1)).movedim(-1, 0))
        moved = None if shift is None else shift.expand(mask.shape[0], 1).flatten().float().contiguous()
        dial = Dial(MIN_SCALE, math.log(self.threshold), RAMP, REACH, self.full_depth)
        for layer, (norm, linear) in enumerate(zip(self.exit_norms, self.exits, strict=True)):
            if layer:
                h = self.blocks[layer - 1](h, mask, table[layer - 1])
            following = table[layer] if gates is None and layer < len(self.blocks) else None
            running = kernels.read_exit(
                h, (norm.weight, norm.bias, norm.eps), (linear.weight, linear.bias), raw, mask,
                table[layer - 1] if layer else None, following, moved, dial,
            )  # fmt: skip
            if running == 0 and following is not None:  # what stopped stays stopped
                table[layer:] = 0
                break
        last = Exit(*kernels.fields(raw, mask.shape, self.radius, MIN_SCALE))
        return Zoomed((last,), table.movedim(0, -1))

    def stem(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """The state ``[B, T, width]`` before the first block; arguments of :meth:`forward`."""
        if (kernels := fused(x, self.project.weight)) is not None:
            h = kernels.lateral(x, self.project.weight, self.project.bias, mask, context, kernels.SAME)
        else:
            h = (self.project(x) + context) * mask.unsqueeze(-1)
        return conv_layers(h, mask, self.convs, self.conv_norms)

    @torch.no_grad()
    def activity(self, last: Exit, shift: Tensor | None = None) -> Tensor:
        """How much of the next block every step gets, ``[B, T]`` in [0, 1]: the larger of the fields'.

        Without gradient: a scale must say how sure the distance is, not ask for a block.
        """
        if self.full_depth:
            return torch.ones_like(last.scale).amax(dim=1)
        low, high = REACH
        close = ((last.reach.sigmoid() - low) / (high - low)).clamp(0, 1)
        unsure = last.scale.log() - math.log(self.threshold)
        if shift is not None:
            unsure = unsure + shift.unsqueeze(-1)
        return (close * (0.5 + unsure / RAMP).clamp(0, 1)).amax(dim=1)

    def _read(self, layer: int, rows: Tensor) -> Tensor:
        """Raw correction ``[N, 3 F]`` of an exit."""
        return self.exits[layer](self.exit_norms[layer](rows)).float()  # type: ignore[no-any-return]

    def _refined(self, layer: int, rows: Tensor, raw: Tensor, gate: Tensor) -> Tensor:
        """The exit before, corrected where the block ran."""
        if rows.device.type == "cpu" and not torch.compiler.is_compiling():  # the host knows where: no work elsewhere
            at = gate.nonzero().squeeze(1)
            return raw.index_add(0, at, self._read(layer, rows[at]) * gate[at].unsqueeze(-1))
        return raw + self._read(layer, rows) * gate.unsqueeze(-1)

    def _exit(self, raw: Tensor, mask: Tensor) -> Exit:
        distance, spread, reach = raw.unflatten(0, mask.shape).transpose(1, 2).split(self.num_fields, dim=1)
        return Exit(self.radius * torch.tanh(distance / self.radius), F.softplus(spread) + MIN_SCALE, reach)


def training_shift(batch: int, device: torch.device) -> Tensor:
    """``shift`` ``[B, 1]`` of a training step: half of the recordings run everything, so that deep exits learn at every step;
    the others run at thresholds drawn log-uniformly within a factor of 64, so that one network serves the whole dial."""
    shift = (torch.rand(batch, 1, device=device) - 0.5) * math.log(TRAINED_FACTOR)
    return torch.where(torch.rand(batch, 1, device=device) < 0.5, math.inf, shift)


def random_depths(batch: int, steps: int, layers: int, device: torch.device) -> Tensor:
    """tau ``[B, T]`` in {0, 1 / L, ..., 1}: constant over stretches of 1 to all steps, one typical length a recording."""
    typical = torch.exp(torch.rand(batch, 1, device=device) * math.log(max(steps, 2)))
    stretch = (torch.rand(batch, steps, device=device) < 1 / typical).long().cumsum(1)
    levels = torch.randint(0, layers + 1, (batch, steps + 1), device=device)
    return levels.gather(1, stretch).float() / layers

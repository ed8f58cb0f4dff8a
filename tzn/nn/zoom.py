"""Zoom: a full-rate boundary stream that is refined, block by block, where that still makes boundaries more certain."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn import ops
from tzn.nn.block import VariableDepthBlock
from tzn.nn.boundary import MIN_SCALE
from tzn.nn.conv import Conv3

# Activity rises from 0 to 1 while the expected gain goes from half the threshold to twice it: narrow enough for a dial, wide
# enough that a small change of the features does not switch a step.
RAMP = math.log(4)
REACH = (0.6, 0.8)  # shares of the radius between which a step leaves the reach of a boundary ("settled")
GAIN_LIMITS = (-9.0, 3.0)  # of the logarithm of the expected gain in nats


class Exit(NamedTuple):
    """What the stream says of boundaries after some of its blocks."""

    distance: Tensor  # [B, F, T] grid steps
    scale: Tensor  # [B, F, T] Laplace scale of it, grid steps
    log_gain: Tensor | None  # [B, T] logarithm of the nats that all later blocks are expected to gain; None: no later block


class Zoomed(NamedTuple):
    exits: tuple[Exit, ...]  # L + 1: before the first block, then after every block
    gates: Tensor  # [B, T, L]


class BoundaryStream(nn.Module):
    """Distances to boundaries at full rate: a cheap first guess everywhere, refined where refinement pays.

    Block l reads the state of the one before and corrects (distance, scale) residually, as D-FINE's decoder layers do (Peng
    et al., ICLR 2025); every exit is supervised. Which steps a block runs on is read off the exit before it:

    * ``gate="gain"``: where the expected gain, in nats of boundary likelihood that all later blocks together win there, is
      above ``threshold``. A Poisson regression on the logarithm of how much smaller the last exit's scale is, on steps
      within the radius of a boundary; 0 elsewhere. It reads the state detached, so no feature bends to please it.
    * ``gate="settled"``: where |distance| is within reach of a boundary and the scale is above ``threshold`` (in grid steps).

    Either is a ramp over a factor of four around the threshold, and a step that stopped stays stopped, so that the stream is
    one continuous function of its input, in training and at inference. The threshold is the dial; it needs no look at the
    rest of the recording.

    Args:
        in_channels: of the features at full rate.
        width: channels of the stream. num_fields: 2 (starts and ends) or 1 (region).
        layers: L, blocks. num_heads, window, mlp_ratio: of them.
        stem_layers: convolutions before the first exit.
        radius: R; distances saturate softly at +-R steps.
        gate, threshold: see above.
    """

    def __init__(
        self, in_channels: int, width: int, num_fields: int, *, layers: int, num_heads: int, window: int, mlp_ratio: float,
        stem_layers: int, radius: float, gate: Literal["gain", "settled"], threshold: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_fields, self.radius, self.gate, self.threshold = num_fields, radius, gate, threshold
        self.project = nn.Linear(in_channels, width)
        self.norm = nn.LayerNorm(width)
        self.convs = nn.ModuleList(Conv3(width, width, bias=False) for _ in range(stem_layers))
        self.conv_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(stem_layers))
        self.blocks = nn.ModuleList(VariableDepthBlock(width, num_heads, window, mlp_ratio) for _ in range(layers))
        self.exit_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.exits = nn.ModuleList(nn.Linear(width, 2 * num_fields) for _ in range(layers + 1))
        self.gains = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))
        for layer, linear in enumerate(self.exits):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
            if layer == 0:  # start unsure: a scale of half the radius
                nn.init.constant_(linear.bias[num_fields:], math.log(math.expm1(radius / 2)))
        for linear in self.gains:
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, math.log(0.5))  # everything runs until it is known what that gains

    @property
    def receptive_radius(self) -> int:
        """Steps on either side of an output that can change it, of its own input."""
        return len(self.convs) + sum(block.window // 2 for block in self.blocks)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, *, gates: Tensor | None = None, shift: Tensor | None = None
    ) -> Zoomed:
        """Exits and gates.

        Args:
            x: ``[B, T, in_channels]`` zero where padded; context: ``[B, T, width]``, added to its projection.
            mask: ``[B, T]`` bool.
            gates: ``[B, T, L]`` in [0, 1], given in place of the stream's own.
            shift: ``[B, 1]`` logarithm of the factor that divides the threshold.
        """
        keep = mask.unsqueeze(-1)
        h = (F.relu(self.norm(self.project(x))) + context) * keep
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            h = F.relu(norm(conv(h))) * keep
        rows = h.flatten(0, 1)
        raw, log_gain = self._read(0, rows)
        exits, chosen = [self._exit(raw, log_gain, mask)], []
        active = mask.to(h.dtype)
        for layer, block in enumerate(self.blocks):
            gate = active * self.activity(exits[-1], shift) if gates is None else gates[..., layer] * mask
            chosen.append(gate)
            h = block(h, mask, gate)
            rows = h.flatten(0, 1)
            raw, log_gain = self._refine(layer + 1, rows, raw, log_gain, gate.flatten())
            exits.append(self._exit(raw, log_gain if layer + 1 < len(self.blocks) else None, mask))
            active = gate
        stacked = torch.stack(chosen, dim=-1) if chosen else h.new_zeros(*mask.shape, 0)
        return Zoomed(tuple(exits), stacked)

    def activity(self, last: Exit, shift: Tensor | None = None) -> Tensor:
        """How much of the next block every step gets, ``[B, T]`` in [0, 1]; no gradient."""
        with torch.no_grad():
            if self.gate == "gain":
                assert last.log_gain is not None
                level, near = last.log_gain, 1.0
            else:
                low, high = (share * self.radius for share in REACH)
                close = ((high - last.distance.abs()) / (high - low)).clamp(0, 1)
                best = (close * last.scale).max(dim=1).values  # of the fields
                level, near = best.clamp(min=1e-6).log(), 1.0
            level = level - math.log(self.threshold)
            if shift is not None:
                level = level + shift
            return (0.5 + level / RAMP).clamp(0, 1) * near

    def _read(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw corrections ``[N, 2 F]`` and log gains ``[N]`` of an exit."""
        normed = self.exit_norms[layer](rows)
        raw = self.exits[layer](normed).float()
        if layer == len(self.blocks):
            return raw, None
        return raw, self.gains[layer](normed.detach()).float().squeeze(-1).clamp(*GAIN_LIMITS)

    def _refine(
        self, layer: int, rows: Tensor, raw: Tensor, log_gain: Tensor | None, gate: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The exit before, corrected where the block ran."""
        if rows.device.type == "cpu" and not torch.compiler.is_compiling():  # counts that the host knows: no work elsewhere
            at = gate.nonzero().squeeze(1)
            change, gain = self._read(layer, rows[at])
            raw = raw.index_add(0, at, change * gate[at].unsqueeze(-1))
            return raw, gain if gain is None or log_gain is None else log_gain.index_copy(0, at, gain)
        change, gain = self._read(layer, rows)
        raw = raw + change * gate.unsqueeze(-1)
        return raw, gain if gain is None or log_gain is None else torch.where(gate > 0, gain, log_gain)

    def _exit(self, raw: Tensor, log_gain: Tensor | None, mask: Tensor) -> Exit:
        distance, spread = raw.unflatten(0, mask.shape).transpose(1, 2).split(self.num_fields, dim=1)
        return Exit(
            self.radius * torch.tanh(distance / self.radius),
            F.softplus(spread) + MIN_SCALE,
            None if log_gain is None else log_gain.view(mask.shape),
        )


def training_gates(stream: BoundaryStream, mask: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """(gates, shift) of a training step: what the stream runs at.

    ``kind`` "policy": half of the recordings run everything, so that gains are seen where the gate would not have looked;
    the others run at thresholds drawn log-uniformly within a factor of 16, so that one network serves the whole dial.
    "random": every step has its own depth, by recording uniform over stretches of random length; "full": everything.
    """
    batch, steps = mask.shape
    layers = len(stream.blocks)
    if kind == "full":
        return torch.ones(batch, steps, layers, device=mask.device), None
    if kind == "random":
        return ops.depth_gates(random_depths(batch, steps, layers, mask.device), layers), None
    span = math.log(16)
    shift = (torch.rand(batch, 1, device=mask.device) - 0.5) * span
    everything = torch.rand(batch, 1, device=mask.device) < 0.5
    return None, torch.where(everything, math.inf, shift)


def random_depths(batch: int, steps: int, layers: int, device: torch.device) -> Tensor:
    """tau ``[B, T]`` in {0, 1 / L, ..., 1}: constant over stretches of 1 to all steps, one typical length a recording."""
    typical = torch.exp(torch.rand(batch, 1, device=device) * math.log(max(steps, 2)))
    starts = torch.rand(batch, steps, device=device) < 1 / typical
    stretch = starts.long().cumsum(1)
    levels = torch.randint(0, layers + 1, (batch, steps + 1), device=device)
    return levels.gather(1, stretch).float() / layers

"""The variable-depth transformer block as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tzn import ops


class VariableDepthBlock(nn.Module):
    """Pre-norm transformer block with windowed attention whose work follows the active tokens.

    Args:
        width: channels D.
        num_heads: heads H; divides D.
        window: odd attention window w in steps.
        mlp_ratio: hidden channels of the MLP over D.
        drop_path: probability that a recording skips the block in training; skipped tokens cost nothing.
    """

    def __init__(self, width: int, num_heads: int, window: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.position_bias = nn.Parameter(torch.zeros(num_heads, window))
        self.output = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        for linear in (self.query, self.key_value, self.output, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Small residual branches at the start: the block begins near the identity, as the gates do.
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.down.weight.mul_(0.1)

    @property
    def window(self) -> int:
        return self.position_bias.shape[1]

    def weights(self) -> ops.BlockWeights:
        return ops.BlockWeights(
            self.norm1.weight, self.norm1.bias, self.query.weight, self.query.bias,
            self.key_value.weight, self.key_value.bias, self.position_bias, self.output.weight, self.output.bias,
            self.norm2.weight, self.norm2.bias, self.up.weight, self.up.bias, self.down.weight, self.down.bias,
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor, gate: Tensor | None = None) -> Tensor:
        """``x`` ``[B, T, D]``, ``mask`` ``[B, T]`` bool, ``gate`` ``[B, T]`` >= 0 (None: 1) to ``[B, T, D]``."""
        if self.training and self.drop_path > 0:
            keep = torch.rand(x.shape[0], 1, device=x.device) >= self.drop_path
            factor = keep.to(x.dtype) / (1 - self.drop_path)
            gate = factor.expand(x.shape[:2]) if gate is None else gate * factor
        return ops.variable_depth_block(x, gate, self.weights(), mask=mask)

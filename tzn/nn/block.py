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

    Rows outside the mask come out as they went in. In code whose next layer mixes steps without looking at the mask (a
    convolution, pooling), multiply by it first:

    >>> block = VariableDepthBlock(width=8, num_heads=2, window=5)
    >>> x, mask = torch.randn(1, 12, 8), torch.arange(12)[None] < 9
    >>> y = block(x, mask) * mask.unsqueeze(-1)  # [B, T, D]; for [B, C, T] code transpose(1, 2) before and after
    >>> y.shape
    torch.Size([1, 12, 8])

    An optimizer that sorts parameters by the type of their module (no decay on norms) finds ``position_bias`` in the block
    itself: treat it like a bias.

    Raises:
        ValueError: a width that ``num_heads`` does not divide, an even window, ``drop_path`` outside [0, 1).
    """

    def __init__(self, width: int, num_heads: int, window: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        if width < 1 or num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a divisor of width = {width}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window: got {window}, expected an odd positive integer")
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio: got {mlp_ratio}, expected at least one hidden channel, with width = {width}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: got {drop_path}, expected a probability in [0, 1)")
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
        before, after = (self.norm1, self.query, self.key_value), (self.output, self.norm2, self.up, self.down)
        first, last = ([x for part in parts for x in (part.weight, part.bias)] for parts in (before, after))
        return ops.BlockWeights._make([*first, self.position_bias, *last])

    def forward(self, x: Tensor, mask: Tensor, gate: Tensor | None = None) -> Tensor:
        """``x`` ``[B, T, D]``, ``mask`` ``[B, T]`` bool, ``gate`` ``[B, T]`` >= 0 (None: 1) to ``[B, T, D]``."""
        if self.training and self.drop_path > 0:
            keep = torch.rand(x.shape[0], 1, device=x.device) >= self.drop_path
            factor = keep.to(x.dtype) / (1 - self.drop_path)
            gate = factor.expand(x.shape[:2]) if gate is None else gate * factor
        return ops.variable_depth_block(x, gate, self.weights(), mask=mask)

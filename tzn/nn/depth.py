"""The depth predictor of adaptive temporal refinement: how deep every token goes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tzn.ops._fused import fused

STRETCH = 0.05  # how far the sigmoid is stretched beyond [0, 1] before it is clamped
SATURATION = math.log((1 + STRETCH) / STRETCH)  # the logit from which tau is 1; below its negative tau is 0


def depth_from_logits(logits: Tensor) -> Tensor:
    """tau = clamp((1 + 2 s) sigmoid(logits) - s, 0, 1) with s = 0.05.

    A plain sigmoid never reaches 0, so every token would run the first layer whatever its depth; the stretched one reaches
    both ends (Louizos, Welling, Kingma, ICLR 2018, section 2.2).
    """
    return ((1 + 2 * STRETCH) * torch.sigmoid(logits) - STRETCH).clamp(0, 1)


class DepthPredictor(nn.Module):
    """Logits of tau = :func:`depth_from_logits` (MLP(LayerNorm x)) per token, started near tau = 1."""

    def __init__(self, width: int, hidden: int | None = None, initial_logit: float = 3.0) -> None:
        super().__init__()
        hidden = hidden or max(width // 4, 8)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.logit = nn.Linear(hidden, 1)
        nn.init.normal_(self.logit.weight, std=0.01)
        nn.init.constant_(self.logit.bias, initial_logit)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to logits of tau ``[B, T]`` in float32."""
        return self.raw(x).float()

    def raw(self, x: Tensor) -> Tensor:
        """The same in the dtype of ``x``."""
        return self.logit(F.gelu(self.hidden(self.norm(x)))).squeeze(-1)  # type: ignore[no-any-return]


def budget_shift(logits: Tensor, mask: Tensor, budget: float, iterations: int = 50) -> Tensor:
    """Per-recording shift s with mean(tau(logits + s)) = ``budget`` over valid steps, by bisection.

    Args:
        logits: ``[B, T]``; mask: ``[B, T]`` bool; budget: mean depth in (0, 1); 1 keeps everything at full depth.

    Returns:
        ``[B, 1]``; +inf where ``budget`` is 1.

    Raises:
        ValueError: budget outside (0, 1].
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget = {budget}: expected a mean depth in (0, 1]")
    if budget == 1:
        return torch.full_like(logits[:, :1], float("inf"))
    if (kernels := fused(logits, logits)) is not None:
        return kernels.dial(logits, mask, budget, SATURATION, STRETCH, iterations)  # type: ignore[no-any-return]
    steps = mask.sum(1, keepdim=True).clamp(min=1)
    bound = logits.abs().amax() + SATURATION  # shifted that far, every token has depth 0, or every one depth 1
    low, high = -bound.expand(logits.shape[0], 1), bound.expand(logits.shape[0], 1)
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        mean = (depth_from_logits(logits + middle) * mask).sum(1, keepdim=True) / steps
        low, high = torch.where(mean < budget, middle, low), torch.where(mean < budget, high, middle)
    return 0.5 * (low + high)

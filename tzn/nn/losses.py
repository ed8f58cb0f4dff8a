"""Losses. All are sums over what they are given in float32; the caller divides by its own count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tzn.nn.zoom import Exit


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), summed. ``logits`` and ``targets`` (in [0, 1]) of equal shape."""
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    correct = probability * targets + (1 - probability) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * entropy * (1 - correct) ** gamma).sum()


def diou_loss(offset: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """1-D distance-IoU loss of segments that share a point, summed. Both ``[N, 2]`` >= 0: (left, right) lengths."""
    offset, target = offset.float(), target.float()
    overlap = torch.minimum(offset, target).sum(-1)
    union = (offset.sum(-1) + target.sum(-1) - overlap).clamp(min=eps)
    hull = torch.maximum(offset, target).sum(-1).clamp(min=eps)
    shift = 0.5 * ((offset[:, 1] - offset[:, 0]) - (target[:, 1] - target[:, 0]))
    return (1 - overlap / union + (shift / hull) ** 2).sum()


def laplace_loss(error: Tensor, scale: Tensor) -> Tensor:
    """Negative log-likelihood of errors under Laplace noise, |error| / scale + log(2 scale), summed."""
    return (error.abs() / scale + torch.log(2 * scale)).sum()


def boundary_distance_loss(
    distance: Tensor, scale: Tensor, target: Tensor, radius: float, mask: Tensor, *, kind: str, slope_weight: float
) -> tuple[Tensor, Tensor]:
    """Loss of a distance field on the steps with |target| < ``radius`` (docs/design.md section 3).

    Args:
        distance, scale, target: ``[..., T]``; mask: ``[..., T]`` valid steps.
        kind: "laplace": negative log-likelihood + ``slope_weight`` (slope - 1)^2; "l1": |error| + ``slope_weight``
            (change per step)^2, the paper's form.

    Returns:
        (summed loss, number of steps it was summed over).
    """
    near = mask & (target.abs() < radius)
    error = distance - target
    change = distance.diff(dim=-1)
    # Both ends near and on the same branch: the target itself rises by one there.
    smooth = near[..., 1:] & near[..., :-1] & (target.diff(dim=-1) - 1).abs().lt(1e-3)
    if kind == "laplace":
        value = laplace_loss(error[near], scale[near])
        value = value + slope_weight * ((change - 1) ** 2)[smooth].sum()
    else:
        value = error[near].abs().sum() + slope_weight * (change**2)[smooth].sum()
    return value, near.sum()


def bernoulli_divergence(logits: Tensor, probability: Tensor) -> Tensor:
    """KL(p || q) of independent yes-or-no classes, summed; q = sigmoid(``logits``).

    ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))``: zero where q = p, with the gradient q - p at the logits.

    Args:
        logits: any shape; probability: p, the same shape, in [0, 1].
    """
    logits, p = logits.float(), probability.float()
    cross = F.binary_cross_entropy_with_logits(logits, p, reduction="none")
    entropy = -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)
    return (cross - entropy).sum()


def laplace_divergence(distance: Tensor, scale: Tensor, target: Tensor, target_scale: Tensor) -> Tensor:
    """KL(Laplace(t, s) || Laplace(d, b)) of distances, summed; t = ``target`` and s = ``target_scale``, > 0.

    ``log(b / s) + (s exp(-|d - t| / s) + |d - t|) / b - 1``: zero where d = t and b = s. An unsure target hardly pulls: its
    gradient at d is that of an absolute error only where |d - t| is well above s.
    """
    error = (distance - target).abs()
    return (
        torch.log(scale / target_scale) + (target_scale * torch.exp(-error / target_scale) + error) / scale - 1
    ).sum()


def depth_budget_loss(gates: Tensor, mask: Tensor, target: float) -> Tensor:
    """Squared excess of the mean depth of valid steps over ``target``; layers cost the same, so the mean gate is it.

    Args:
        gates: ``[B, T, L]`` of :func:`tzn.ops.depth_gates`; mask: ``[B, T]``.
    """
    share = (gates.mean(-1) * mask).sum() / mask.sum().clamp(min=1)
    return (share - target).clamp(min=0) ** 2


def reach_loss(exits: Sequence[Exit], target: Tensor, mask: Tensor, radius: float) -> Tensor:
    """Cross-entropy of "a boundary is within the radius", summed over steps and fields, mean over exits.

    Args:
        exits: of :class:`tzn.nn.zoom.BoundaryStream`.
        target: ``[B, F, T]`` distances clipped to ``radius``; mask: ``[B, T]``.
    """
    near = (target.abs() < radius).float()
    valid = mask.unsqueeze(1).expand_as(near)
    each = [F.binary_cross_entropy_with_logits(e.reach[valid], near[valid], reduction="sum") for e in exits]
    return torch.stack(each).mean()

"""The training objective of TemporalZoomNet: classes, offsets, boundary distances, depth budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from tzn import ops
from tzn.config import TrainingConfig
from tzn.models import Outputs, TemporalZoomNetConfig
from tzn.nn.assignment import PointTargets, assign_points
from tzn.nn.losses import boundary_distance_loss, depth_budget_loss, diou_loss, focal_loss, laplace_loss

NORM_MOMENTUM = 0.9


class Objective(nn.Module):
    """Weighted sum of the losses; each is a sum over the global batch divided by a running count of what it sums over.

    The running counts are buffers, so a resumed run continues with them.
    """

    point_norm: Tensor
    step_norm: Tensor

    def __init__(self, model: TemporalZoomNetConfig, training: TrainingConfig) -> None:
        super().__init__()
        self.model, self.training_config = model, training
        self.register_buffer("point_norm", torch.tensor(float(training.loss_norm)))
        self.register_buffer("step_norm", torch.tensor(float(training.loss_norm)))

    def forward(
        self, outputs: Outputs, segments: Sequence[Tensor], labels: Sequence[Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Losses by name; "loss" is what to minimise.

        Args:
            segments: per recording ``[N, 2]`` in grid steps; labels: ``[N]``.
            progress: share of training done, in [0, 1]; drives the depth target.
        """
        c, trunk = self.training_config, outputs.trunk
        targets = [self._assign(outputs, s, lab) for s, lab in zip(segments, labels, strict=True)]
        valid = trunk.point_mask
        positive = torch.stack([t.positive for t in targets]) & valid
        classes = torch.stack([t.classes for t in targets])
        if c.label_smoothing:
            classes = classes * (1 - c.label_smoothing) + c.label_smoothing / (self.model.num_classes + 1)
        points = self._average("point_norm", positive.sum())
        losses = {"class": focal_loss(outputs.class_logits[valid], classes[valid]) / points}
        target = torch.stack([t.offsets for t in targets])[positive]
        offset, scale = outputs.offsets[positive], outputs.offset_scale[positive]
        losses["offset"] = diou_loss(offset, target) / points
        losses["offset_scale"] = laplace_loss((offset - target).detach(), scale) / points
        losses["boundary"] = self._boundary_loss(outputs, segments)
        losses["depth"] = self._depth_loss(outputs, progress)
        losses["loss"] = (
            c.class_weight * losses["class"]
            + c.offset_weight * losses["offset"]
            + 0.1 * losses["offset_scale"]
            + c.boundary_weight * losses["boundary"]
            + c.depth_weight * losses["depth"]
        )
        return losses

    def _assign(self, outputs: Outputs, segments: Tensor, labels: Tensor) -> PointTargets:
        points = outputs.trunk.points
        return assign_points(
            points.position, points.stride, points.ranges, segments, labels, self.model.num_classes,
            center_radius=self.training_config.center_radius,
        )  # fmt: skip

    def _boundary_loss(self, outputs: Outputs, segments: Sequence[Tensor]) -> Tensor:
        if outputs.distance is None or outputs.distance_scale is None:
            return outputs.class_logits.new_zeros(())
        c, mask = self.training_config, outputs.trunk.mask
        target = boundary_targets(segments, mask.shape[1], self.model.boundary_radius, self.model.boundary_fields)
        total, steps = boundary_distance_loss(
            outputs.distance, outputs.distance_scale, target, self.model.boundary_radius,
            mask.unsqueeze(1).expand_as(target), kind=c.boundary_loss, slope_weight=c.slope_weight,
        )  # fmt: skip
        return total / self._average("step_norm", steps)

    def _depth_loss(self, outputs: Outputs, progress: float) -> Tensor:
        gates = outputs.trunk.depths.gates
        if gates.shape[-1] == 0 or self.training_config.target_depth == 1:
            return outputs.class_logits.new_zeros(())
        c = self.training_config
        done = min(progress / c.depth_warmup, 1.0) if c.depth_warmup else 1.0
        return depth_budget_loss(gates, outputs.trunk.mask, 1 - (1 - c.target_depth) * done)

    def _average(self, name: str, count: Tensor) -> Tensor:
        """Running count per process: all together see ``world`` times as much, and gradients are averaged."""
        average = getattr(self, name)
        if self.training:
            total = count.to(average.dtype)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(total)
            average.mul_(NORM_MOMENTUM).add_((1 - NORM_MOMENTUM) * total.clamp(min=1))
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return average.clone() / world


def boundary_targets(segments: Sequence[Tensor], steps: int, radius: float, fields: str) -> Tensor:
    """Targets ``[B, F, T]`` of the boundary fields: (starts, ends) or the region field."""
    if fields == "region":
        return torch.stack([ops.region_distance(s, steps, radius) for s in segments]).unsqueeze(1)
    most = max((s.shape[0] for s in segments), default=0)
    padded = [F.pad(s, (0, 0, 0, most - s.shape[0]), value=float("inf")) for s in segments]
    return ops.signed_distance(torch.stack(padded).transpose(1, 2), steps, radius)

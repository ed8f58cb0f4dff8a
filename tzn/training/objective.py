"""Training objectives: classes and offsets for both networks; boundary distances and depth budget for TemporalZoomNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from tzn import ops
from tzn.config import TrainingConfig
from tzn.models import ActionFormerConfig, Outputs, TemporalZoomNetConfig
from tzn.models.actionformer import ActionFormerOutputs
from tzn.nn.assignment import assign_points
from tzn.nn.losses import (
    boundary_distance_loss,
    depth_budget_loss,
    diou_loss,
    focal_loss,
    laplace_loss,
    reach_loss,
)
from tzn.nn.pyramid import PointGrid, flatten_levels, point_grid
from tzn.training.distillation import distillation_losses

NORM_MOMENTUM = 0.9
# Nothing but the scale's own layer learns from this loss (what it reads is detached), and AdamW divides by the gradient's
# size: the weight only sets how much of the clipped gradient norm that layer takes from the others.
SCALE_WEIGHT = 0.1
REACH_WEIGHT = 0.3


class PointObjective(nn.Module):
    """Class and offset losses of the pyramid's points: sums over the global batch over a running count of positives.

    The running counts are buffers, so a resumed run continues with them.
    """

    point_norm: Tensor

    def __init__(self, num_classes: int, training: TrainingConfig) -> None:
        super().__init__()
        self.num_classes, self.training_config = num_classes, training
        self.register_buffer("point_norm", torch.tensor(float(training.loss_norm)))

    def point_losses(
        self, points: PointGrid, valid: Tensor, logits: Tensor, offsets: Tensor, segments: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:  # fmt: skip
        """Losses "class" and "offset", the positive points ``[B, P]``, their target offsets, and the running count.

        Args:
            valid: ``[B, P]``; logits: ``[B, P, C]``; offsets: ``[B, P, 2]`` in strides.
            segments: per recording ``[N, 2]`` in grid steps; labels: ``[N]``.
        """
        c = self.training_config
        targets = [
            assign_points(
                points.position, points.stride, points.ranges, s, lab, self.num_classes, center_radius=c.center_radius
            )
            for s, lab in zip(segments, labels, strict=True)
        ]
        positive = torch.stack([t.positive for t in targets]) & valid
        classes = torch.stack([t.classes for t in targets])
        if c.label_smoothing:
            classes = classes * (1 - c.label_smoothing) + c.label_smoothing / (self.num_classes + 1)
        target = torch.stack([t.offsets for t in targets])[positive]
        norm = self.average("point_norm", positive.sum())
        losses = {
            "class": focal_loss(logits[valid], classes[valid]) / norm,
            "offset": diou_loss(offsets[positive], target) / norm,
        }
        return losses, positive, target, norm

    def average(self, name: str, count: Tensor) -> Tensor:
        """Running count per process: all together see ``world`` times as much, and gradients are averaged."""
        average = getattr(self, name)
        if self.training:
            total = count.to(average.dtype)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(total)
            average.mul_(NORM_MOMENTUM).add_((1 - NORM_MOMENTUM) * total.clamp(min=1))
        return self.running(name)

    def running(self, name: str) -> Tensor:
        """The running count as it is now, per process."""
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return getattr(self, name).clone() / world


class Objective(PointObjective):
    """The whole objective of a TemporalZoomNet."""

    step_norm: Tensor

    def __init__(self, model: TemporalZoomNetConfig, training: TrainingConfig) -> None:
        super().__init__(model.num_classes, training)
        self.model = model
        self.register_buffer("step_norm", torch.tensor(float(training.loss_norm)))

    def forward(
        self,
        outputs: Outputs,
        segments: Sequence[Tensor],
        labels: Sequence[Tensor],
        progress: float,
        teacher: Outputs | None = None,
    ) -> dict[str, Tensor]:
        """Losses by name; "loss" is what to minimise, "depth_mean" the mean tau.

        Args:
            segments: per recording ``[N, 2]`` in grid steps; labels: ``[N]``.
            progress: share of training done, in [0, 1]; drives the depth target.
            teacher: what a teacher makes of the same crops; adds the losses "distill_class" and so on.
        """  # fmt: skip
        c, trunk = self.training_config, outputs.trunk
        losses, positive, target, norm = self.point_losses(
            trunk.points, trunk.point_mask, outputs.class_logits, outputs.offsets, segments, labels
        )
        error = (outputs.offsets[positive] - target).detach()
        losses["offset_scale"] = laplace_loss(error, outputs.offset_scale[positive]) / norm
        losses["boundary"] = self._boundary_loss(outputs, segments)
        losses["depth"] = self._depth_loss(outputs, progress)
        losses["loss"] = (
            c.class_weight * losses["class"]
            + c.offset_weight * losses["offset"]
            + SCALE_WEIGHT * losses["offset_scale"]
            + c.boundary_weight * losses["boundary"]
            + c.depth_weight * losses["depth"]
        )
        if teacher is not None:
            for name, value in self._distillation(outputs, teacher).items():
                losses[f"distill_{name}"] = value
                losses["loss"] = losses["loss"] + getattr(c, f"distill_{name}_weight") * value
        losses["depth_mean"] = ((trunk.depths.tau * trunk.mask).sum() / trunk.mask.sum()).detach()
        return losses

    def _distillation(self, outputs: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Class and boundary terms over the same running counts as the annotations' own."""
        sums = distillation_losses(outputs, teacher, self.model.boundary_radius)
        counts = {"class": "point_norm", "boundary": "step_norm"}
        return {name: value / self.running(counts[name]) if name in counts else value for name, value in sums.items()}

    def _boundary_loss(self, outputs: Outputs, segments: Sequence[Tensor]) -> Tensor:
        if outputs.distance is None or outputs.distance_scale is None:
            return outputs.class_logits.new_zeros(())
        c, mask = self.training_config, outputs.trunk.mask
        target = boundary_targets(segments, mask.shape[1], self.model.boundary_radius, self.model.boundary_fields)
        exits = [(e.distance, e.scale) for e in outputs.trunk.exits] or [(outputs.distance, outputs.distance_scale)]
        totals = [
            boundary_distance_loss(
                distance, scale, target, self.model.boundary_radius, mask.unsqueeze(1).expand_as(target),
                kind=c.boundary_loss, slope_weight=c.slope_weight,
            )
            for distance, scale in exits
        ]  # fmt: skip
        norm = self.average("step_norm", totals[0][1])
        loss = torch.stack([total for total, _ in totals]).mean() / norm
        if outputs.trunk.exits:
            loss = (
                loss + REACH_WEIGHT * reach_loss(outputs.trunk.exits, target, mask, self.model.boundary_radius) / norm
            )
        return loss

    def _depth_loss(self, outputs: Outputs, progress: float) -> Tensor:
        gates = outputs.trunk.depths.gates
        if gates.shape[-1] == 0 or self.training_config.target_depth == 1 or outputs.trunk.exits:
            return outputs.class_logits.new_zeros(())
        c = self.training_config
        done = min(progress / c.depth_warmup, 1.0) if c.depth_warmup else 1.0
        return depth_budget_loss(gates, outputs.trunk.mask, 1 - (1 - c.target_depth) * done)


class ActionFormerObjective(PointObjective):
    """The original recipe: focal and DIoU loss (docs/actionformer.md section 10)."""

    def __init__(self, model: ActionFormerConfig, training: TrainingConfig) -> None:
        super().__init__(model.num_classes, training)
        self.model = model

    def forward(
        self, outputs: ActionFormerOutputs, segments: Sequence[Tensor], labels: Sequence[Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Losses by name, as :meth:`Objective.forward`; a negative ``offset_weight`` balances the two by their size."""
        logits, valid = flatten_levels(outputs.class_logits, outputs.masks)
        offsets, _ = flatten_levels(outputs.offsets, outputs.masks)
        lengths = [mask.shape[1] for mask in outputs.masks]
        points = point_grid(lengths, self.model.strides, self.model.regression_range, logits.device)
        losses, *_ = self.point_losses(points, valid, logits, offsets, segments, labels)
        weight: Tensor | float = self.training_config.offset_weight
        if weight <= 0:
            weight = losses["class"].detach() / losses["offset"].detach().clamp(min=0.01)
        losses["loss"] = self.training_config.class_weight * losses["class"] + weight * losses["offset"]
        return losses


def boundary_targets(segments: Sequence[Tensor], steps: int, radius: float, fields: str) -> Tensor:
    """Targets ``[B, F, T]`` of the boundary fields: (starts, ends) or the region field."""
    if fields == "region":
        return torch.stack([ops.region_distance(s, steps, radius) for s in segments]).unsqueeze(1)
    most = max((s.shape[0] for s in segments), default=0)
    padded = [F.pad(s, (0, 0, 0, most - s.shape[0]), value=float("inf")) for s in segments]
    return ops.signed_distance(torch.stack(padded).transpose(1, 2), steps, radius)

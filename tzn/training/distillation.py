"""Distillation: a student learns a trained teacher's class probabilities, boundary distances and depths.

Both see the same augmented crop. With the student's (teacher's) class probabilities q (p), boundary distances Laplace(d, b)
(Laplace(t, s)) and depths tau (sigma)::

    loss += distill_class_weight    * sum over points, classes  KL(p || q)                      / positive points
          + distill_boundary_weight * sum over steps, fields    KL(Laplace(t, s) || Laplace(d, b)) / near steps
          + distill_depth_weight    * mean over steps           (tau - sigma)^2

Padding is left out. Distances count where |t| < 0.9 R: nearer to R the teacher says only that there is no boundary. The
counts are the running ones of the annotations' own losses, so that a weight of 1 means the same for both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict
from tzn.errors import ConfigError
from tzn.models import Outputs, TemporalZoomNet, TemporalZoomNetConfig
from tzn.models.checkpoint import load_checkpoint, run_checkpoint
from tzn.nn.losses import bernoulli_divergence, laplace_divergence

NEAR = 0.9  # share of the radius below which the teacher's distance says where a boundary is
# What a point and a step mean: teacher and student must agree on it.
SAME_MODEL = ("input_dim", "num_classes", "first_stride", "num_levels", "regression_ranges")
SAME_GRID = ("feat_stride", "num_frames", "fps", "fixed_length", "pool", "pool_kind", "log_channels", "log_scales")
SAME_FIELDS = ("boundary_fields", "boundary_radius")


class Teacher:
    """A trained network that only answers. No :class:`torch.nn.Module`, so no module that holds it owns its weights."""

    def __init__(self, model: TemporalZoomNet) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, features: Tensor, mask: Tensor) -> Outputs:
        """Dense outputs of the crops ``[B, T, input_dim]`` with ``mask`` ``[B, T]``, without gradients."""
        self.model.to(features.device)
        return self.model(features.to(self.model.feature_mean.dtype), mask)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # weight averaging copies the module in training; its teacher is the same


def load_teacher(config: ExperimentConfig, classes: tuple[str, ...]) -> Teacher:
    """The teacher that ``config.training.teacher`` names, with the weights that evaluation would use.

    Raises:
        CheckpointError: no such checkpoint, or damaged.
        ConfigError: teacher and student do not speak of the same classes, points or steps.
    """
    loaded = load_checkpoint(run_checkpoint(Path(str(config.training.teacher))))
    if not isinstance(loaded.model, TemporalZoomNet) or not isinstance(config.model, TemporalZoomNetConfig):
        kind = type(loaded.model).__name__
        student = "TemporalZoomNet" if isinstance(config.model, TemporalZoomNetConfig) else "ActionFormer"
        raise ConfigError(
            f"training.teacher = {config.training.teacher}: {kind} for a student of kind {student}; "
            "expected TemporalZoomNet for both"
        )
    _check(config, config_from_dict(loaded.config), classes, loaded.classes)
    return Teacher(loaded.model)


def _check(
    config: ExperimentConfig, teacher: ExperimentConfig, classes: tuple[str, ...], known: tuple[str, ...]
) -> None:
    name = f"training.teacher = {config.training.teacher}"
    if classes != known:
        raise ConfigError(f"{name}: knows the classes {', '.join(known)}; expected {', '.join(classes)}, in this order")
    both = "none" not in (config.model.boundary_fields, teacher.model.boundary_fields)  # type: ignore[union-attr]
    for section, keys in (("model", SAME_MODEL + (SAME_FIELDS if both else ())), ("data", SAME_GRID)):
        ours, theirs = getattr(config, section), getattr(teacher, section)
        for key in keys:
            if getattr(ours, key) != getattr(theirs, key):
                raise ConfigError(
                    f"{name}: has {section}.{key} = {getattr(theirs, key)}; expected the student's {getattr(ours, key)}"
                )


def distillation_losses(outputs: Outputs, teacher: Outputs, radius: float) -> dict[str, Tensor]:
    """Terms by name: "class" and "boundary" are sums, "depth" is a mean; a term is missing where one of both has no such head.

    Args:
        outputs, teacher: of the same crops, with the same points, steps and fields.
        radius: R of the distance fields, in steps.
    """
    valid, mask = outputs.trunk.point_mask, outputs.trunk.mask
    losses = {"class": bernoulli_divergence(outputs.class_logits[valid], teacher.class_logits[valid].float().sigmoid())}
    if outputs.distance is not None and teacher.distance is not None:
        assert outputs.distance_scale is not None and teacher.distance_scale is not None
        near = mask.unsqueeze(1) & (teacher.distance.abs() < NEAR * radius)
        losses["boundary"] = laplace_divergence(
            outputs.distance[near], outputs.distance_scale[near], teacher.distance[near], teacher.distance_scale[near]
        )
    # The depth of a boundary stream follows from its scales: nothing learns it.
    streams = outputs.trunk.exits or teacher.trunk.exits
    if not streams and outputs.trunk.depths.gates.shape[-1] and teacher.trunk.depths.gates.shape[-1]:
        error = outputs.trunk.depths.tau[mask] - teacher.trunk.depths.tau[mask]
        losses["depth"] = (error**2).sum() / mask.sum().clamp(min=1)
    return losses

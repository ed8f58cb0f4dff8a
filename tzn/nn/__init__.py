"""Modules and losses built on :mod:`tzn.ops`."""

from tzn.nn.block import VariableDepthBlock
from tzn.nn.boundary import BoundaryDistanceHead
from tzn.nn.depth import DepthPredictor, budget_shift, depth_from_logits
from tzn.nn.losses import boundary_distance_loss, depth_budget_loss, diou_loss, focal_loss, laplace_loss

__all__ = [
    "BoundaryDistanceHead",
    "DepthPredictor",
    "VariableDepthBlock",
    "boundary_distance_loss",
    "budget_shift",
    "depth_budget_loss",
    "depth_from_logits",
    "diou_loss",
    "focal_loss",
    "laplace_loss",
]

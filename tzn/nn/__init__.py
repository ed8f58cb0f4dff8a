"""Modules built on :mod:`tzn.ops`."""

from tzn.nn.block import VariableDepthBlock
from tzn.nn.boundary import BoundaryDistanceHead
from tzn.nn.depth import DepthPredictor, budget_shift, depth_from_logits

__all__ = ["BoundaryDistanceHead", "DepthPredictor", "VariableDepthBlock", "budget_shift", "depth_from_logits"]

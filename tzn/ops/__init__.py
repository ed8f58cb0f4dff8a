"""Functional API: every op checks its arguments, then runs on the chosen back end. docs/design.md sections 2-4 and 6."""

from tzn.ops.backend import backends, choose_backend
from tzn.ops.boundary_crossings import boundary_crossings
from tzn.ops.decode_segments import decode_segments, pair_segments, select_candidates
from tzn.ops.depth import active_tokens, depth_gates
from tzn.ops.local_attention import local_attention
from tzn.ops.nms import batched_nms, batched_nms_many, nms, soft_nms
from tzn.ops.segment_iou import segment_iou
from tzn.ops.signed_distance import region_distance, signed_distance
from tzn.ops.variable_depth_block import variable_depth_block
from tzn.reference import ActiveTokens, BlockWeights, Candidates, Crossings, Segments

__all__ = [
    "ActiveTokens",
    "BlockWeights",
    "Candidates",
    "Crossings",
    "Segments",
    "active_tokens",
    "backends",
    "batched_nms",
    "batched_nms_many",
    "boundary_crossings",
    "choose_backend",
    "decode_segments",
    "depth_gates",
    "local_attention",
    "nms",
    "pair_segments",
    "region_distance",
    "segment_iou",
    "select_candidates",
    "signed_distance",
    "soft_nms",
    "variable_depth_block",
]

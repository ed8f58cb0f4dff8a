"""The definition of every op in plain PyTorch: any floating dtype, any device, no dispatch, no argument checks."""

from tzn.reference.boundary_crossings import Crossings, boundary_crossings
from tzn.reference.decode_segments import Candidates, Segments, decode_segments, pair_segments, select_candidates
from tzn.reference.depth import ActiveTokens, active_tokens, depth_gates
from tzn.reference.local_attention import local_attention, packed_local_attention
from tzn.reference.nms import batched_nms, batched_nms_many, nms, soft_nms
from tzn.reference.segment_iou import segment_iou
from tzn.reference.signed_distance import region_distance, signed_distance
from tzn.reference.variable_depth_block import BlockWeights, variable_depth_block

__all__ = [
    "ActiveTokens",
    "BlockWeights",
    "Candidates",
    "Crossings",
    "Segments",
    "active_tokens",
    "batched_nms",
    "batched_nms_many",
    "boundary_crossings",
    "decode_segments",
    "depth_gates",
    "local_attention",
    "nms",
    "packed_local_attention",
    "pair_segments",
    "region_distance",
    "segment_iou",
    "select_candidates",
    "signed_distance",
    "soft_nms",
    "variable_depth_block",
]

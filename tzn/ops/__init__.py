"""Functional API: every op checks its arguments, then meets PyTorch's dispatcher (docs/architecture.md)."""

from tzn.ops._backend import backends, choose_backend
from tzn.ops.active_tokens import active_tokens
from tzn.ops.boundary_crossings import boundary_crossings
from tzn.ops.decode_segments import decode_segments
from tzn.ops.depth_gates import depth_gates
from tzn.ops.local_attention import local_attention
from tzn.ops.nms import PaddedPicks, batched_nms, batched_nms_many, nms, nms_padded, soft_nms
from tzn.ops.pair_segments import pair_segments
from tzn.ops.segment_iou import segment_iou
from tzn.ops.select_candidates import PaddedCandidates, select_candidates, select_candidates_padded
from tzn.ops.signed_distance import region_distance, signed_distance
from tzn.ops.variable_depth_block import variable_depth_block
from tzn.reference import ActiveTokens, BlockWeights, Candidates, Crossings, Segments

__all__ = [
    "ActiveTokens",
    "BlockWeights",
    "Candidates",
    "Crossings",
    "PaddedCandidates",
    "PaddedPicks",
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
    "nms_padded",
    "pair_segments",
    "region_distance",
    "segment_iou",
    "select_candidates",
    "select_candidates_padded",
    "signed_distance",
    "soft_nms",
    "variable_depth_block",
]

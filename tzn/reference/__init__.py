"""The definition of every op in plain PyTorch: any floating dtype, any device, no dispatch, no argument checks.

Each file opens with the formula as a reader understands it at once; where that is slow, a compact form follows.
"""

from tzn.reference.active_tokens import ActiveTokens, active_tokens
from tzn.reference.boundary_crossings import Crossings, boundary_crossings
from tzn.reference.decode_segments import Segments, decode_segments
from tzn.reference.depth_gates import depth_gates
from tzn.reference.local_attention import local_attention, packed_local_attention
from tzn.reference.nms import batched_nms, nms, soft_nms, suppress
from tzn.reference.pair_segments import pair_segments
from tzn.reference.segment_iou import segment_iou
from tzn.reference.select_candidates import Candidates, select_candidates
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
    "suppress",
    "variable_depth_block",
]

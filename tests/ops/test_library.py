"""Every op as a node of compiled and exported graphs: opcheck, one graph without breaks, the same results."""

from __future__ import annotations

import pytest
import torch
from oracle import candidates

from tzn import ops


def _distance(steps=40):
    boundaries = torch.tensor([[7.3, 20.0, 31.7], [5.0, 12.5, float("inf")]])
    return ops.signed_distance(boundaries, steps, 6.0), torch.full((2, steps), 0.3)


def _crossings(row: int) -> ops.Crossings:
    distance, scale = _distance()
    return ops.boundary_crossings(distance[row : row + 1], scale[row : row + 1])


def _tables() -> list[torch.Tensor]:
    found = ops.boundary_crossings(*_distance())
    return [found.position, found.std, found.count]


def _table(row: int) -> list[torch.Tensor]:
    return [x[row : row + 1] for x in _tables()]


def _offsets():
    return torch.tensor([14.0, 25.0]), torch.tensor([[6.0, 5.0], [4.5, 6.0]]), torch.ones(2, 2)


SEGMENTS, SCORES, LABELS = candidates(30, 3)
DISTANCE, SCALE = _distance()
GATE = (torch.arange(24).reshape(2, 12) % 5 == 0).float()
LEVEL = torch.arange(30) // 10
RULE = (0.1, 0.5, 0.001, 9, 0.0, "score_iou", False)
CLASS_SCORES = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))

REGISTERED = {
    "active_tokens": (torch.ops.tzn.active_tokens, (GATE, 5, GATE < 2)),
    "boundary_crossings": (torch.ops.tzn.boundary_crossings, (DISTANCE, SCALE, "vote_median", 4, 0.5, None)),
    "select_candidates": (torch.ops.tzn.select_candidates, (CLASS_SCORES, LEVEL, 0.4, 5)),
    "select_candidates_padded": (
        torch.ops.tzn.select_candidates_padded,
        (CLASS_SCORES.view(1, 30, 3).repeat(2, 1, 1), LEVEL, 3, 15, 0.4, 5),
    ),
    "decode_segments": (torch.ops.tzn.decode_segments, (*_offsets(), _table(0), _table(1), 3.0)),
    "decode_segments of a batch": (
        torch.ops.tzn.decode_segments,
        (*(x.expand(2, *x.shape) for x in _offsets()), _tables(), _tables(), 3.0),
    ),
    "decode_segments without crossings": (torch.ops.tzn.decode_segments, (*_offsets(), [], [], 3.0)),
    "pair_segments": (torch.ops.tzn.pair_segments, (CLASS_SCORES, _table(0), _table(1), 4, 9)),
    "soft_nms": (torch.ops.tzn.nms, (SEGMENTS, SCORES, None, None, "linear", False, *RULE)),
    "batched_nms": (torch.ops.tzn.nms, (SEGMENTS, SCORES, LABELS, None, "gaussian", True, *RULE)),
    "many recordings, voting": (
        torch.ops.tzn.nms,
        (SEGMENTS, SCORES, LABELS, torch.tensor([20, 0, 10]), "hard", False, 0.1, 0.5, 0.001, 9, 0.7, "score", True),
    ),
    "batched_nms of nothing": (
        torch.ops.tzn.nms,
        (SEGMENTS[:0], SCORES[:0], LABELS[:0], None, "hard", False, *RULE),
    ),
    "nms_padded": (
        torch.ops.tzn.nms_padded,
        (SEGMENTS[None], SCORES[None], LABELS[None], 3, 9, "gaussian", True, 0.1, 0.5, 0.001, 0.7, "score_iou", True),
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_op_passes_opcheck(name):
    op, arguments = REGISTERED[name]
    torch.library.opcheck(op.default, arguments)


PUBLIC = {
    "depth_gates": lambda: ops.depth_gates(torch.rand(2, 9), 3),
    "active_tokens": lambda: ops.active_tokens(GATE, 5),
    "signed_distance": lambda: ops.signed_distance(torch.tensor([[3.0, 9.0]]), 12, 4.0),
    "region_distance": lambda: ops.region_distance(torch.tensor([[3.0, 9.0]]), 12, 4.0),
    "boundary_crossings": lambda: ops.boundary_crossings(DISTANCE, SCALE),
    "select_candidates": lambda: ops.select_candidates(CLASS_SCORES, LEVEL, min_score=0.4, topk=5),
    "decode_segments": lambda: ops.decode_segments(*_offsets()),
    "segment_iou": lambda: ops.segment_iou(SEGMENTS, SEGMENTS, "diou"),
    "soft_nms": lambda: ops.soft_nms(SEGMENTS, SCORES),
    "nms": lambda: ops.nms(SEGMENTS, SCORES, 0.3),
    "batched_nms": lambda: ops.batched_nms(SEGMENTS, SCORES, LABELS, 0.1, 0.001, 9),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_to_one_graph_with_the_same_result(name):
    torch.manual_seed(0)
    eager = PUBLIC[name]()
    torch.manual_seed(0)
    compiled = torch.compile(PUBLIC[name], fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


def test_fields_to_detections_in_one_exported_graph():
    """Distance fields and candidates in, suppressed segments out: pairing and suppression as one traced program."""

    class Decode(torch.nn.Module):
        def forward(self, distance, scale, class_scores):
            starts = ops.boundary_crossings(distance[:1], scale[:1])
            ends = ops.boundary_crossings(distance[1:], scale[1:])
            segments, labels, scores = ops.pair_segments(starts, ends, class_scores)
            return ops.batched_nms(segments.segments, scores, labels, 0.1, 0.001, 9)

    arguments = (DISTANCE, SCALE, torch.rand(40, 3, generator=torch.Generator().manual_seed(2)))
    exported = torch.export.export(Decode(), arguments)
    torch.testing.assert_close(exported.module()(*arguments), Decode()(*arguments), rtol=0, atol=0)

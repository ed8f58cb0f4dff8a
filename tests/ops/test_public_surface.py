"""Names and signatures of ``tzn.ops``, and calls as they were written for earlier versions: apart from the ops' own tests,
because a change here breaks other people's programs, and is made on purpose or not at all.
"""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from tzn import ops

NMS = (
    "iou_threshold, min_score, max_seg_num, use_soft_nms=True, multiclass=True, sigma=0.5, voting_thresh=0.75, *, "
    "method='gaussian', per_class_voting=False, overlap='iou', vote_weight='score_iou', return_index=False"
)
SURFACE = {
    "ActiveTokens": "active, halo",
    "BlockWeights": "norm1_weight, norm1_bias, query_weight, query_bias, key_value_weight, key_value_bias, position_bias, "
    "output_weight, output_bias, norm2_weight, norm2_bias, up_weight, up_bias, down_weight, down_bias",
    "Candidates": "point, label, score",
    "Crossings": "position, std, slope, count",
    "PaddedCandidates": "point, label, score",
    "PaddedPicks": "index, segments, score, label, num_kept",
    "Segments": "segments, std",
    "active_tokens": "gate, window, mask=None",
    "backends": "",
    "batched_nms": f"segments, scores, labels, {NMS}",
    "batched_nms_many": f"segments, scores, labels, counts, {NMS}",
    "boundary_crossings": "distance, scale, *, estimator='vote_median', vote_window=4, min_slope=0.5, mask=None",
    "choose_backend": "device='cpu'",
    "decode_segments": "position, offset, offset_std, starts=None, ends=None, *, snap_sigmas=3.0",
    "depth_gates": "tau, num_layers",
    "local_attention": "q, k, v, window, *, mask=None, query_mask=None, bias=None, dilation=1, shifted=False, cu_seqlens=None",
    "nms": "segments, scores, iou_threshold, *, min_score=0.0, max_seg_num=0, overlap='iou'",
    "nms_padded": "segments, scores, labels, classes, capacity, *, method='gaussian', multiclass=True, iou_threshold=0.1, "
    "sigma=0.5, min_score=0.001, voting_thresh=0.0, vote_weight='score_iou', per_class_voting=False",
    "pair_segments": "starts, ends, class_scores, *, max_ends=16, topk=2000",
    "region_distance": "segments, num_steps, radius",
    "segment_iou": "a, b, kind='iou'",
    "select_candidates": "scores, level, *, min_score, topk",
    "select_candidates_padded": "scores, level, levels, *, min_score, topk",
    "signed_distance": "boundaries, num_steps, radius",
    "soft_nms": "segments, scores, *, iou_threshold=0.1, sigma=0.5, min_score=0.001, method='gaussian', max_seg_num=0",
    "variable_depth_block": "x, gate, weights, *, mask=None",
}
# The definition is PyTorch's own operators: these have no schema.
PLAIN = {"depth_gates", "region_distance", "segment_iou", "signed_distance"}
OF_NMS = {"batched_nms", "batched_nms_many", "soft_nms"}


def _signature(thing: object) -> str:
    if hasattr(thing, "_fields"):
        return ", ".join(thing._fields)
    found, starred = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            found.append("*")
            starred = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        found.append(parameter.name + default)
    return ", ".join(found)


def test_names_and_signatures():
    assert {name: _signature(getattr(ops, name)) for name in ops.__all__} == SURFACE


def test_every_op_has_one_schema():
    public = {n for n in SURFACE if n.islower()} - PLAIN - OF_NMS - {"backends", "choose_backend"}
    names = {s.name.removeprefix("tzn::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("tzn::")}
    # The tutorial on writing an op registers one of its own in a process that runs it.
    assert {n for n in names if not n.startswith(("_", "tutorial_"))} == public


def _candidates():
    start = torch.arange(8.0) * 3
    return torch.stack([start, start + 5], 1), torch.linspace(0.9, 0.2, 8), torch.arange(8) % 2


def test_suppression_as_actionformer_calls_it():
    """By position and by name; three results, as long as nobody asks for more."""
    lists = _candidates()
    by_position = ops.batched_nms(*lists, 0.3, 0.01, 5, True, False, 0.4, 0.7)
    by_name = ops.batched_nms(
        segments=lists[0], scores=lists[1], labels=lists[2], iou_threshold=0.3, min_score=0.01, max_seg_num=5,
        use_soft_nms=True, multiclass=False, sigma=0.4, voting_thresh=0.7,
    )  # fmt: skip
    segments, scores, labels = by_position
    assert segments.shape == (5, 2) and scores.shape == labels.shape == (5,) and labels.dtype == torch.int64
    for a, b in zip(by_position, by_name, strict=True):
        assert torch.equal(a, b)
    many = ops.batched_nms_many(*lists, torch.tensor([8]), 0.3, 0.01, 5, True, False, 0.4, 0.7)
    for a, b in zip(many, (*by_position, torch.tensor([5])), strict=True):
        assert torch.equal(a, b)
    assert len(ops.soft_nms(lists[0], lists[1])) == 2
    assert ops.nms(lists[0], lists[1], 0.9).tolist() == list(range(8))


def test_attention_and_decoding_as_they_were_called():
    q = torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(1, 9, dtype=torch.bool)
    plain = ops.local_attention(q, q, q, 5)
    full = ops.local_attention(q, q, q, 5, mask=everything, query_mask=everything, bias=torch.zeros(2, 5))
    torch.testing.assert_close(full, plain)
    distance = ops.signed_distance(torch.tensor([[3.0, 8.0]]), 12, 4.0)
    starts = ops.boundary_crossings(distance, torch.full((1, 12), 0.3))
    position, std, _, count = starts
    assert (
        count.tolist() == [2] and position[0, :2].tolist() == pytest.approx([3.0, 8.0]) and std.shape == position.shape
    )
    offsets = torch.tensor([4.0]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
    for found in (ops.decode_segments(*offsets), ops.decode_segments(*offsets, starts, starts, snap_sigmas=3.0)):
        segments, error = found
        assert segments.shape == error.shape == (1, 2)
    point, label, score = ops.select_candidates(
        torch.rand(4, 2), torch.zeros(4, dtype=torch.long), min_score=0.0, topk=3
    )
    assert len(point) == len(label) == len(score) == 3


@pytest.mark.parametrize("name", ["nms_padded", "select_candidates_padded"])
def test_nothing_to_choose_from(name):
    if name == "nms_padded":
        none = torch.zeros(2, 0)
        found = ops.nms_padded(torch.zeros(2, 0, 2), none, none.long(), 3, 4)
        assert found.num_kept.tolist() == [0, 0] and (found.label == -1).all() and (found.score == -torch.inf).all()
    else:
        found = ops.select_candidates_padded(
            torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.long), 2, min_score=0, topk=4
        )
        assert found.label.shape == (2, 0)
        for level, message in ((torch.tensor([0.0]), "torch.float32"), (torch.tensor([2]), "2 to 2")):
            with pytest.raises(ValueError, match=f"level: got {message}"):
                ops.select_candidates_padded(torch.zeros(2, 1, 3), level, 2, min_score=0, topk=4)
        for sizes, message in (
            ([], "len(levels): got 0"),
            ([2, -1], "levels: got -1"),
            ([1, 1], "levels: got 2 points, expected the P = 1"),
            ([0, 1], "level: got levels of [1, 0] points, expected of levels = [0, 1]"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                ops.select_candidates_padded(torch.zeros(2, 1, 3), torch.tensor([0]), sizes, min_score=0, topk=4)

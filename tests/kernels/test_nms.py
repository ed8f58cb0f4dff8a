from __future__ import annotations

import pytest
import torch
from oracle import assert_as_good_as_eager
from tzn.kernels.segment_voting import vote
from tzn.ops.picks import best_picks

from tzn import reference
from tzn.kernels import nms as kernels
from tzn.reference.nms import vote_segments


def _candidates(recordings, number, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(recordings, number, generator=generator) * 60
    segments = torch.stack([start, start + torch.rand(recordings, number, generator=generator) * 12], dim=-1)
    scores = torch.rand(recordings, number, generator=generator)
    scores = torch.where(torch.rand(scores.shape, generator=generator) < 0.3, (scores * 8).round() / 8, scores)  # ties
    return segments, scores, torch.randint(classes, scores.shape, generator=generator, dtype=torch.int32)


@pytest.fixture(params=["registers", "two-level"])
def level(request, monkeypatch):
    """The same cases through both kernels; chunks of 16 make the second one span several."""
    if request.param == "two-level":
        monkeypatch.setattr(kernels, "REGISTERS", 0)
        monkeypatch.setattr(kernels, "CHUNK", 16)
    return request.param


def _rule(method, iou_threshold=0.3, sigma=0.4, min_score=0.05):
    return {"method": method, "iou_threshold": iou_threshold, "sigma": sigma, "min_score": min_score}


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("number", [1, 7, 90])
@pytest.mark.parametrize("cap", [0, 5])
def test_soft_picks_are_exactly_those_of_the_reference(level, method, number, cap):
    segments, scores, _ = _candidates(2, number, 1)
    rule = _rule(method)
    picks = kernels.suppress(segments, scores, None, None, 1, cap or number, **rule)
    for r in range(2):
        index, score = reference.soft_nms(segments[r], scores[r], max_seg_num=cap, **rule)
        assert picks.count[r, 0] == len(index)
        assert picks.index[r, 0, : len(index)].tolist() == index.tolist()
        assert torch.equal(picks.score[r, 0, : len(index)], score)
        assert (picks.index[r, 0, len(index) :] == -1).all()
        assert (picks.score[r, 0, len(index) :] == -torch.inf).all()


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3])
@pytest.mark.parametrize("min_score", [0.0, 0.5])
def test_hard_picks(level, iou_threshold, min_score):
    segments, scores, _ = _candidates(1, 80, 1, seed=3)
    picks = kernels.suppress(segments, scores, None, None, 1, 80, **_rule("hard", iou_threshold, 1.0, min_score))
    wanted = reference.nms(segments[0], scores[0], iou_threshold, min_score=min_score)
    assert picks.index[0, 0, : picks.count[0, 0]].tolist() == wanted.tolist()


def test_equal_scores_go_by_index(level):
    segments = torch.tensor([[[0.0, 1.0], [5.0, 6.0], [0.0, 1.0], [2.0, 3.0]]]).repeat(1, 10, 1)
    scores = torch.full((1, 40), 0.5)
    picks = kernels.suppress(segments, scores, None, None, 1, 40, **_rule("hard", 0.5, 1.0, 0.0))
    assert picks.index[0, 0, : picks.count[0, 0]].tolist() == [0, 1, 3]


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_recordings_and_classes_side_by_side(level, method):
    segments, scores, labels = _candidates(3, 60, 4)
    counts = torch.tensor([60, 0, 33])
    limit = 20
    rule = _rule(method)
    picks = kernels.suppress(segments, scores, labels, counts, 4, limit, **rule)
    index, score, group, count = best_picks(picks, limit)
    for r in range(3):
        part = slice(0, int(counts[r]))
        wanted = reference.batched_nms(
            segments[r, part], scores[r, part], labels[r, part], rule["iou_threshold"], rule["min_score"], limit,
            method=method, sigma=rule["sigma"], voting_thresh=0.0,
        )  # fmt: skip
        number = int(count[r])
        assert number == len(wanted[1])
        assert torch.equal(segments[r, index[r, :number].long()], wanted[0])
        assert torch.equal(score[r, :number], wanted[1])
        assert group[r, :number].tolist() == wanted[2].tolist()


def test_candidates_outside_every_class_are_left_out(level):
    segments, scores, labels = _candidates(1, 30, 2)
    labels[0, :10] = -1
    labels[0, 10:15] = 7
    scores[0, 20] = -torch.inf
    picks = kernels.suppress(segments, scores, labels, None, 2, 30, **_rule("gaussian", min_score=0.0))
    chosen = sorted(i for row in picks.index[0] for i in row.tolist() if i >= 0)
    assert chosen == [i for i in range(15, 30) if i != 20]


@pytest.mark.parametrize("per_class", [False, True])
def test_voting(per_class):
    segments, scores, labels = _candidates(2, 70, 3)
    kept, kept_labels = segments[:, :21].clone(), labels[:, :21].clone()
    kept[0, 3] = kept[0, 3, 0]  # no length, and no candidate like it: 0 / 0 candidates vote
    given = vote(kept, kept_labels if per_class else None, segments, scores, labels if per_class else None, None, 0.5)
    for r in range(2):
        arguments = (kept_labels[r], labels[r] if per_class else None)
        eager = vote_segments(kept[r], segments[r], scores[r], 0.5, *arguments)
        exact = vote_segments(kept[r].double(), segments[r].double(), scores[r].double(), 0.5, *arguments)
        assert torch.equal(given[r].isnan(), eager.isnan())
        assert_as_good_as_eager(given[r].nan_to_num(), eager.nan_to_num(), exact.nan_to_num())

from __future__ import annotations

import pytest
import torch

from tzn import ops, reference
from tzn.kernels import select_candidates as kernels


@pytest.mark.parametrize("topk", [1, 10, 500])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(40, 20, 10, 5), (1,), (0, 3)], ids=str)
def test_entries_scores_and_order_are_those_of_the_reference(topk, ties, sizes, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 64)
    torch.manual_seed(0)
    classes, points = 3, sum(sizes)
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    scores = torch.rand(2, points, classes)
    scores = (scores * 6).round() / 6 if ties else scores * torch.logspace(-6, 0, points)[:, None]
    table = kernels.select_candidates(scores, *kernels.level_order(level, len(sizes)), min_score=0.001, topk=topk)
    for r in range(2):
        wanted = reference.select_candidates(scores[r], level, min_score=0.001, topk=topk)
        kept = torch.arange(topk) < table.count[r, :, None]
        assert table.point[r][kept].tolist() == wanted.point.tolist()
        assert table.label[r][kept].tolist() == wanted.label.tolist()
        assert torch.equal(table.score[r][kept], wanted.score)
        assert (table.point[r][~kept] == 0).all()
        assert (table.label[r][~kept] == -1).all()
        assert (table.score[r][~kept] == -torch.inf).all()


def test_levels_in_any_order():
    torch.manual_seed(0)
    level = torch.randint(4, (50,))
    scores = torch.randn(1, 50, 2)  # scores need not be probabilities
    table = kernels.select_candidates(scores, *kernels.level_order(level, 4), min_score=-1.0, topk=7)
    wanted = reference.select_candidates(scores[0], level, min_score=-1.0, topk=7)
    kept = torch.arange(7) < table.count[0, :, None]
    assert table.point[0][kept].tolist() == wanted.point.tolist()
    assert torch.equal(table.score[0][kept], wanted.score)


@pytest.mark.parametrize(
    "kind", ["all-equal", "differ-in-the-last-bits", "both-zeros", "infinities", "none", "huge-topk"]
)
def test_scores_that_histograms_could_confuse(kind, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 64)
    torch.manual_seed(1)
    level, topk, least = torch.arange(2).repeat_interleave(100), 150, -torch.inf
    scores = torch.full((1, 200, 3), 0.25)
    if kind == "differ-in-the-last-bits":
        scores = (scores.view(torch.int32) + torch.randint(1500, scores.shape, dtype=torch.int32)).view(torch.float32)
    if kind == "both-zeros":
        scores = torch.where(torch.rand(scores.shape) < 0.5, 0.0, -0.0)
    if kind == "infinities":
        scores = torch.where(torch.rand(scores.shape) < 0.5, torch.inf, torch.randn(scores.shape))
    if kind == "none":
        least = 0.5
    if kind == "huge-topk":
        scores, topk = torch.randn(scores.shape), 1000
    table = kernels.select_candidates(scores, *kernels.level_order(level, 2), min_score=least, topk=topk)
    wanted = reference.select_candidates(scores[0], level, min_score=least, topk=topk)
    kept = torch.arange(topk) < table.count[0, :, None]
    assert table.point[0][kept].tolist() == wanted.point.tolist()
    assert table.label[0][kept].tolist() == wanted.label.tolist()
    assert torch.equal(table.score[0][kept], wanted.score)


def test_the_order_of_levels_is_found_again_once_they_change(monkeypatch):
    calls, original = [], kernels.level_order
    monkeypatch.setattr(kernels, "level_order", lambda *a: (calls.append(1), original(*a))[1])
    scores, level = torch.rand(1, 4, 1), torch.tensor([0, 0, 1, 1])

    def points(levels=2):
        return ops.select_candidates_padded(scores, level, levels, min_score=0.0, topk=1).point[0].tolist()

    first = points()
    assert points() == first == [int(scores[0, :2].argmax()), 2 + int(scores[0, 2:].argmax())]
    assert len(calls) == 1
    level.copy_(torch.tensor([1, 0, 0, 0]))
    assert points() == [1 + int(scores[0, 1:].argmax()), 0]
    assert points(3)[2] == 0
    assert len(calls) == 3

from __future__ import annotations

import pytest
import torch

from tzn import ops, reference
from tzn.kernels import select_candidates as kernels


def select(scores, level, levels, min_score, topk, spare=0):
    """In tables of exactly the capacity that is needed, and ``spare``, whose memory was full of something else."""
    capacity = int((level.bincount(minlength=levels) * scores.shape[2]).clamp(max=topk).sum()) + spare
    order = kernels.level_order(level, levels)
    return kernels.select_candidates(scores, *order, min_score=min_score, topk=topk, capacity=capacity)


def taken(table, level, classes, row, topk):
    """Places ``[N]`` that hold candidates: of each level its first ``count``."""
    places = (level.bincount(minlength=table.count.shape[1]) * classes).clamp(max=topk)
    kept = torch.zeros(table.point.shape[1], dtype=torch.bool)
    for first, count in zip((places.cumsum(0) - places).tolist(), table.count[row].tolist(), strict=True):
        kept[first : first + count] = True
    return kept


@pytest.mark.parametrize("spare", [0, 3, 130])
@pytest.mark.parametrize("topk", [1, 10, 500])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(40, 20, 10, 5), (1,), (0, 3)], ids=str)
def test_entries_scores_and_order_are_those_of_the_reference(topk, ties, sizes, spare, monkeypatch):
    spare = min(spare, len(sizes) * topk)
    full = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: full(*size, **kind).fill_(7))
    monkeypatch.setattr(kernels, "CHUNK", 64)
    torch.manual_seed(0)
    classes, points = 3, sum(sizes)
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    scores = torch.rand(2, points, classes)
    scores = (scores * 6).round() / 6 if ties else scores * torch.logspace(-6, 0, points)[:, None]
    table = select(scores, level, len(sizes), 0.001, topk, spare)
    for r in range(2):
        wanted = reference.select_candidates(scores[r], level, min_score=0.001, topk=topk)
        kept = taken(table, level, classes, r, topk)
        assert table.point[r][kept].tolist() == wanted.point.tolist()
        assert table.label[r][kept].tolist() == wanted.label.tolist()
        assert torch.equal(table.score[r][kept], wanted.score)
        assert (table.point[r][~kept] == 0).all()
        assert (table.label[r][~kept] == -1).all()
        assert (table.score[r][~kept] == -torch.inf).all()


def test_fewer_places_than_candidates_write_nothing_beyond_them(monkeypatch):
    """Sizes that the host was told wrongly, which nobody checks on a device."""
    torch.manual_seed(0)
    scores, level = torch.rand(2, 30, 3), torch.arange(3).repeat_interleave(10)
    whole = select(scores, level, 3, 0.0, 20)
    guarded, empty = [], torch.empty

    def fenced(*size, **kind):
        shape = torch.Size(size[0] if isinstance(size[0], (tuple, torch.Size)) else size)
        guarded.append(empty(shape.numel() + 64, **kind).fill_(7))
        return guarded[-1][: shape.numel()].view(shape)

    monkeypatch.setattr(torch, "empty", fenced)
    for capacity in (45, 20, 3):
        table = kernels.select_candidates(
            scores, *kernels.level_order(level, 3), min_score=0.0, topk=20, capacity=capacity
        )
        assert all((x[-64:] == 7).all() for x in guarded)
        full = capacity // 20 * 20  # of levels that have all their places
        assert torch.equal(table.point[:, :full], whole.point[:, :full])
        assert (table.label != 7).all()


def test_levels_in_any_order():
    torch.manual_seed(0)
    level = torch.randint(4, (50,))
    scores = torch.randn(1, 50, 2)  # scores need not be probabilities
    table = select(scores, level, 4, -1.0, 7)
    wanted = reference.select_candidates(scores[0], level, min_score=-1.0, topk=7)
    kept = taken(table, level, 2, 0, 7)
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
    table = select(scores, level, 2, least, topk)
    wanted = reference.select_candidates(scores[0], level, min_score=least, topk=topk)
    kept = taken(table, level, 3, 0, topk)
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

from __future__ import annotations

import pytest
import torch

from tzn import reference
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
        kept = table.entry[r] >= 0
        assert kept.sum(1).tolist() == table.count[r].tolist()
        entry = table.entry[r][kept]
        assert (entry // classes).tolist() == wanted.point.tolist()
        assert (entry % classes).tolist() == wanted.label.tolist()
        assert torch.equal(table.score[r][kept], wanted.score)


def test_levels_in_any_order():
    torch.manual_seed(0)
    level = torch.randint(4, (50,))
    scores = torch.randn(1, 50, 2)  # scores need not be probabilities
    table = kernels.select_candidates(scores, *kernels.level_order(level, 4), min_score=-1.0, topk=7)
    wanted = reference.select_candidates(scores[0], level, min_score=-1.0, topk=7)
    kept = table.entry[0] >= 0
    assert (table.entry[0][kept] // 2).tolist() == wanted.point.tolist()
    assert torch.equal(table.score[0][kept], wanted.score)

from __future__ import annotations

import pytest
import torch

from tzn import ops
from tzn.kernels import nms as kernels
from tzn.reference.nms import best_picks


@pytest.mark.parametrize(("classes", "each", "capacity"), [(3, 70, 70), (1, 5, 5), (7, 40, 300), (200, 2, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_best_picks_are_those_of_a_stable_sort(classes, each, capacity, ties):
    torch.manual_seed(classes)
    score = torch.randn(3, classes, each)
    score = (score * 2).round() / 2 if ties else score
    made = torch.randint(each + 1, (3, classes, 1))
    made[2] = 0
    there = torch.arange(each) < made
    score = torch.where(there, score, -torch.inf)
    index = torch.where(there, torch.randint(50, score.shape), -1).int()
    segments = torch.randn(3, 50, 2)
    found = kernels.best_picks(index, score, segments, capacity)
    wanted, wanted_score = best_picks(index, score, capacity)
    for row in range(3):
        number = min(int(made[row].sum()), capacity)
        assert found[3][row] == number
        assert torch.equal(found[0][row, :number], wanted[row, :number].long())
        assert torch.equal(found[1][row, :number], wanted_score[row, :number])
        assert torch.equal(found[2][row, :number], segments[row, wanted[row, :number].long()])
        assert (found[0][row, number:] == 0).all()
        assert (found[1][row, number:] == -torch.inf).all()
        assert (found[2][row, number:] == 0).all()


@pytest.mark.parametrize("method", ["gaussian", "hard"])
def test_padded_suppression_is_that_of_the_definition(monkeypatch, method):
    torch.manual_seed(0)
    start = torch.rand(2, 60) * 50
    segments = torch.stack([start, start + torch.rand(2, 60) * 10], 2)
    scores = torch.where(torch.rand(2, 60) < 0.2, -torch.inf, torch.rand(2, 60))
    given = segments, scores, torch.randint(4, (2, 60)), 4, 45
    ours = ops.nms_padded(*given, method=method, iou_threshold=0.3)
    monkeypatch.setenv("TZN_BACKEND", "reference")
    wanted = ops.nms_padded(*given, method=method, iou_threshold=0.3)
    for name, a, b in zip(ours._fields, ours, wanted, strict=True):
        assert torch.equal(a, b), name

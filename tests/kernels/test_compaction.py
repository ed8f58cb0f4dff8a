from __future__ import annotations

import pytest
import torch
from oracle import IDS, SHAPES, random_masks

from tzn import reference
from tzn.kernels import active_tokens as compaction


@pytest.mark.parametrize(("name", "batch", "steps", "window", "active", "lengths"), SHAPES, ids=IDS)
@pytest.mark.parametrize("given", ["gate-and-mask", "gate", "mask", "neither"])
def test_lists_are_those_of_the_reference(name, batch, steps, window, active, lengths, given):
    mask, query = random_masks(batch, steps, active, lengths)
    gate = torch.rand(batch, steps) * query if "gate" in given else None
    mask = mask if "mask" in given else None
    lists = compaction.compact(gate, mask, batch, steps, window, torch.device("cpu"))
    wanted = reference.active_tokens(torch.ones(batch, steps) if gate is None else gate, window, mask)
    active_count, halo_count = lists.counts.tolist()
    assert lists.active[:active_count].tolist() == wanted.active.tolist()
    assert lists.halo[:halo_count].tolist() == wanted.halo.tolist()
    assert lists.halo[lists.slot[:active_count].long()].tolist() == wanted.active.tolist()
    assert lists.near[:halo_count].tolist() == torch.searchsorted(wanted.active, wanted.halo).tolist()
    for entries, count in ((lists.active, active_count), (lists.slot, active_count), (lists.halo, halo_count)):
        assert (entries[count:] == -1).all()


def test_counts_run_on_over_many_tiles(monkeypatch):
    monkeypatch.setattr(compaction, "BLOCK", 16)
    torch.manual_seed(0)
    gate = torch.rand(3, 333) * (torch.rand(3, 333) < 0.2)
    mask = torch.rand(3, 333) < 0.8
    lists = compaction.compact(gate, mask, 3, 333, 9, torch.device("cpu"))
    wanted = reference.active_tokens(gate, 9, mask)
    assert lists.active[: int(lists.counts[0])].tolist() == wanted.active.tolist()
    assert lists.halo[: int(lists.counts[1])].tolist() == wanted.halo.tolist()


def test_gates_that_are_not_positive_are_inactive():
    gate = torch.tensor([[0.0, float("nan"), 1e-30, -1.0, 1.0]])
    lists = compaction.compact(gate, None, 1, 5, 1, torch.device("cpu"))
    assert lists.active.tolist() == [2, 4, -1, -1, -1]

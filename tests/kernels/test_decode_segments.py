from __future__ import annotations

import pytest
import torch

from tzn import reference
from tzn.kernels.decode_segments import decode_segments
from tzn.kernels.pair_segments import pair_segments


def _crossings(recordings, capacity, counts, steps, seed):
    torch.manual_seed(seed)
    past = torch.arange(capacity) >= torch.tensor(counts)[:, None]
    position = (
        (torch.rand(recordings, capacity, dtype=torch.float64) * steps).masked_fill(past, torch.inf).sort(1).values
    )
    std = (0.1 + torch.rand(recordings, capacity, dtype=torch.float64)).masked_fill(past, torch.inf)
    return position, std, torch.tensor(counts)


def _alone(crossings, r):
    position, std, count = (x[r : r + 1] for x in crossings)
    return reference.Crossings(position, std, torch.ones_like(std), count)


COUNTS = [(0, 0, 0), (1, 5, 0), (7, 0, 12)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_decoded_and_refined_segments(counts):
    steps, number = 60, 150
    starts, ends = _crossings(3, 12, counts, steps, 1), _crossings(3, 14, counts[::-1], steps, 2)
    position = (torch.rand(3, number) * steps).double()
    offset, std = (torch.rand(3, number, 2, dtype=torch.float64) * 6 for _ in range(2))
    for tables in ((starts, ends), (None, None)):
        segments, error = decode_segments(position, offset, std, *tables, snap_sigmas=3.0)
        for r in range(3):
            alone = [None if t is None else _alone(t, r) for t in tables]
            wanted = reference.decode_segments(position[r], offset[r], std[r], *alone, snap_sigmas=3.0)
            torch.testing.assert_close(segments[r], wanted.segments, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(error[r], wanted.std, rtol=1e-12, atol=1e-12)


def _sorted(segments, std, label, score):
    """Rows in an order of their own: pairs around the same steps have equal scores, in no particular order."""
    rows = torch.cat([score[:, None], label[:, None], segments, std], dim=1)
    return torch.tensor(sorted(rows.tolist()), dtype=torch.float64).reshape(-1, 6)


@pytest.mark.parametrize("topk", [1, 40, 2000])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_paired_segments(counts, topk):
    steps, classes = 60, 5
    starts, ends = _crossings(3, 12, counts, steps, 3), _crossings(3, 14, counts[::-1], steps, 4)
    scores = torch.rand(3, steps, classes, dtype=torch.float64)
    *given, count = pair_segments(starts, ends, scores, max_ends=3, topk=topk)
    for r in range(3):
        wanted, label, score = reference.pair_segments(
            _alone(starts, r), _alone(ends, r), scores[r], max_ends=3, topk=topk
        )
        number = int(count[r])
        assert number == len(score)
        torch.testing.assert_close(given[3][r, :number], score, rtol=1e-12, atol=1e-12)
        if topk == 2000:
            rows = _sorted(*(x[r, :number] for x in given))
            torch.testing.assert_close(rows, _sorted(*wanted, label, score), rtol=1e-12, atol=1e-12)

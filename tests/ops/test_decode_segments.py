from __future__ import annotations

import pytest
import torch

from tzn import ops, reference
from tzn.ops import Crossings


def _crossings(positions, stds):
    count = torch.tensor([len(positions)])
    place = torch.tensor([positions], dtype=torch.float64)
    return Crossings(place, torch.tensor([stds], dtype=torch.float64), torch.ones_like(place), count)


def _decode(starts, ends, offset_std=2.0, **more):
    position = torch.tensor([20.0], dtype=torch.float64)
    offset = torch.tensor([[8.0, 6.0]], dtype=torch.float64)  # segment [12, 26]
    return ops.decode_segments(
        position, offset, torch.full((1, 2), offset_std, dtype=torch.float64), starts, ends, **more
    )


def test_without_crossings_segments_are_the_offsets():
    out = ops.decode_segments(torch.tensor([5.0]), torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, 0.7]]))
    assert out.segments.tolist() == [[3.0, 8.0]]
    torch.testing.assert_close(out.std, torch.tensor([[0.5, 0.7]]))


def test_ends_fuse_by_inverse_variance():
    out = _decode(_crossings([13.0, 40.0], [1.0, 1.0]), _crossings([25.0], [0.5]))
    weights = torch.tensor([1 / 4, 1 / 1.0])
    start = (weights[0] * 12 + weights[1] * 13) / weights.sum()
    assert out.segments[0, 0] == pytest.approx(float(start))
    assert out.std[0, 0] == pytest.approx((1 / 4 + 1) ** -0.5)
    assert out.segments[0, 1] == pytest.approx((26 / 4 + 25 / 0.25) / (1 / 4 + 1 / 0.25))


def test_far_and_uncertain_crossings_are_left_alone():
    far = _decode(_crossings([19.5], [1.0]), _crossings([33.0], [1.0]))  # 7.5 and 7 away, 3 sigma is 6.7
    assert far.segments.tolist() == [[12.0, 26.0]]
    near = _decode(_crossings([18.5], [1.0]), _crossings([32.5], [1.0]))
    assert near.segments[0, 0] > 12 and near.segments[0, 1] > 26
    vague = _decode(_crossings([13.0], [2.5]), _crossings([25.0], [2.5]))
    assert vague.segments.tolist() == [[12.0, 26.0]]


def test_ends_that_would_cross_keep_the_offsets():
    position, offset = torch.tensor([10.0]), torch.tensor([[0.5, 0.5]])
    out = ops.decode_segments(
        position, offset, torch.full((1, 2), 5.0), _crossings([13.0], [0.1]), _crossings([7.0], [0.1])
    )
    assert out.segments.tolist() == [[9.5, 10.5]]


def test_selection_keeps_the_best_of_every_level():
    scores = torch.tensor([[0.9, 0.2], [0.3, 0.001], [0.8, 0.7], [0.05, 0.6]])
    level = torch.tensor([0, 0, 1, 1])
    found = ops.select_candidates(scores, level, min_score=0.1, topk=2)
    assert list(zip(found.point.tolist(), found.label.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert found.score.tolist() == pytest.approx([0.9, 0.3, 0.8, 0.7])


def test_pairs_are_scored_by_the_mean_inside():
    scores = torch.zeros(20, 2, dtype=torch.float64)
    scores[3:8, 1] = 0.9
    scores[12:15, 0] = 0.6
    segments, labels, values = ops.pair_segments(
        _crossings([2.5, 11.5], [1.0, 1.0]), _crossings([7.5, 14.5], [1.0, 1.0]), scores
    )
    best = {
        (tuple(s), lab): v
        for s, lab, v in zip(segments.segments.tolist(), labels.tolist(), values.tolist(), strict=True)
    }
    assert best[((2.5, 7.5), 1)] == pytest.approx(0.9)
    assert best[((11.5, 14.5), 0)] == pytest.approx(0.6)
    assert best[((2.5, 14.5), 1)] == pytest.approx(0.9 * 5 / 12)
    assert ((11.5, 7.5), 0) not in best
    assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_pairs_of_nothing():
    none = _crossings([], [])
    segments, labels, values = ops.pair_segments(none, _crossings([3.0], [1.0]), torch.rand(10, 2, dtype=torch.float64))
    assert segments.segments.shape == (0, 2) and len(labels) == len(values) == 0


def _table(counts, steps, seed):
    """Crossings of as many recordings as counts, ascending."""
    generator = torch.Generator().manual_seed(seed)
    past = torch.arange(14) >= torch.tensor(counts)[:, None]
    place, std = torch.rand(2, len(counts), 14, generator=generator, dtype=torch.float64)
    place = (place * steps).masked_fill(past, torch.inf).sort(1).values
    return ops.Crossings(place, (0.1 + std).masked_fill(past, torch.inf), torch.ones_like(std), torch.tensor(counts))


def _row(crossings, r):
    return ops.Crossings(*(x[r : r + 1] for x in crossings))


COUNTS = [(0, 0, 0), (1, 5, 0), (7, 0, 12)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_batch_is_its_recordings_by_the_definition(counts):
    starts, ends = _table(counts, 60, 1), _table(counts[::-1], 60, 2)
    position, *sides = torch.rand(5, 3, 150, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    offset, std = 6 * torch.stack(sides[:2], 2), 6 * torch.stack(sides[2:], 2)
    for tables in ((starts, ends), (None, None)):
        found = ops.decode_segments(60 * position, offset, std, *tables)
        for r in range(3):
            alone = [None if t is None else _row(t, r) for t in tables]
            wanted = reference.decode_segments(60 * position[r], offset[r], std[r], *alone)
            for ours, true in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours[r], true, rtol=1e-12, atol=1e-12)


def _sorted(segments, labels, scores):
    """Rows in an order of their own: pairs around the same steps have equal scores, in no particular order."""
    rows = torch.cat([scores[:, None], labels[:, None], *segments], dim=1)
    return torch.tensor(sorted(rows.tolist()), dtype=torch.float64).reshape(-1, 6)


@pytest.mark.parametrize("topk", [1, 40, 2000])
@pytest.mark.parametrize("counts", [(0, 3), (5, 0), (7, 12)], ids=str)
def test_pairs_are_those_of_the_definition(counts, topk):
    starts, ends = _table(counts[:1], 60, 3), _table(counts[1:], 60, 4)
    scores = torch.rand(60, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, wanted = (f.pair_segments(starts, ends, scores, max_ends=3, topk=topk) for f in (ops, reference))
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-12, atol=1e-12)
    if topk == 2000:
        torch.testing.assert_close(_sorted(*found), _sorted(*wanted), rtol=1e-12, atol=1e-12)


def test_clear_errors():
    with pytest.raises(ValueError, match="starts, ends: got only one"):
        _decode(_crossings([1.0], [1.0]), None)
    with pytest.raises(ValueError, match="scores: got NaN"):
        ops.select_candidates(torch.tensor([[float("nan")]]), torch.zeros(1), min_score=0.1, topk=3)
    with pytest.raises(ValueError, match="topk: got 0"):
        ops.select_candidates(torch.rand(2, 2), torch.zeros(2), min_score=0.1, topk=0)
    with pytest.raises(ValueError, match="offset: got shape"):
        ops.decode_segments(torch.zeros(2), torch.zeros(3, 2), torch.zeros(2, 2))

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tzn import ops


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-3, 25), max_size=6), st.integers(0, 24), st.floats(0.5, 10))
def test_equals_the_offset_to_the_nearest_boundary(boundaries, steps, radius):
    d = ops.signed_distance(torch.tensor(boundaries, dtype=torch.float64), steps, radius)
    assert d.shape == (steps,)
    for t in range(steps):
        if not boundaries:
            assert d[t] == radius
            continue
        nearest = min(abs(t - b) for b in boundaries)
        wanted = {max(-radius, min(radius, t - b)) for b in boundaries if abs(t - b) <= nearest + 1e-12}
        assert any(abs(float(d[t]) - w) < 1e-9 for w in wanted)


def test_rises_with_slope_one_through_every_boundary_and_jumps_halfway():
    d = ops.signed_distance(torch.tensor([4.25, 14.0], dtype=torch.float64), 20, 100.0)
    change = d.diff()
    jumps = (change < 0).nonzero().flatten().tolist()
    assert jumps == [9]  # between 9 (nearest 4.25) and 10 (nearest 14)
    torch.testing.assert_close(change[change > 0], torch.ones(18, dtype=torch.float64))


def test_padding_and_batches():
    inf = float("inf")
    boundaries = torch.tensor([[3.0, inf], [inf, inf], [8.0, 1.0]])
    d = ops.signed_distance(boundaries, 10, 4.0)
    torch.testing.assert_close(d[0], ops.signed_distance(torch.tensor([3.0]), 10, 4.0))
    assert (d[1] == 4.0).all()
    torch.testing.assert_close(d[2], ops.signed_distance(torch.tensor([1.0, 8.0]), 10, 4.0))


def test_region_field_is_negative_inside_and_blind_to_touching_segments():
    apart = ops.region_distance(torch.tensor([[2.0, 6.0], [9.0, 12.0]]), 15, 3.0)
    inside = torch.tensor([2 < t < 6 or 9 < t < 12 for t in range(15)])
    assert torch.equal(apart < 0, inside)
    touching = ops.region_distance(torch.tensor([[2.0, 6.0], [6.0, 12.0]]), 15, 3.0)
    assert (touching[3:12] <= 0).all()  # no sign change at the shared boundary
    starts = ops.signed_distance(torch.tensor([2.0, 6.0]), 15, 3.0)
    assert starts[5] < 0 <= starts[6]  # separate fields keep it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.signed_distance(torch.zeros(2, dtype=torch.long), 5, 1.0), "boundaries: got torch.int64"),
        (lambda: ops.signed_distance(torch.zeros(2), -1, 1.0), "num_steps: got -1"),
        (lambda: ops.signed_distance(torch.zeros(2), 5, 0.0), "radius: got 0.0"),
        (lambda: ops.region_distance(torch.tensor([[2.0, 1.0]]), 5, 1.0), "segments: got a segment with end < start"),
        (lambda: ops.region_distance(torch.zeros(2), 5, 1.0), "segments: got shape"),
    ],
    ids=["dtype", "steps", "radius", "inverted", "shape"],
)
def test_clear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()

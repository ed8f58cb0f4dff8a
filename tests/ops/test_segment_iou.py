from __future__ import annotations

import pytest
import torch

from tzn import ops


def test_by_hand():
    a = torch.tensor([[0.0, 4.0], [10.0, 12.0]])
    b = torch.tensor([[2.0, 6.0], [4.0, 8.0], [10.0, 12.0]])
    expected = torch.tensor([[2 / 6, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(ops.segment_iou(a, b), expected)
    diou = ops.segment_iou(a, b, "diou")
    assert float(diou[0, 0]) == pytest.approx(2 / 6 - (2 / 6) ** 2)
    assert float(diou[0, 1]) == pytest.approx(-((4 / 8) ** 2))
    assert float(diou[1, 2]) == 1.0


def test_no_segments_and_no_length():
    assert ops.segment_iou(torch.zeros(0, 2), torch.zeros(3, 2)).shape == (0, 3)
    assert ops.segment_iou(torch.ones(1, 2), torch.ones(1, 2)).isnan().all()


def test_clear_errors():
    with pytest.raises(ValueError, match="a: got a segment with end < start"):
        ops.segment_iou(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="kind: got 'giou'"):
        ops.segment_iou(torch.zeros(1, 2), torch.zeros(1, 2), "giou")

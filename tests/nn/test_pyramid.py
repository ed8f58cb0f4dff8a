from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tzn.nn.pyramid import Pyramid, TopDown, double, flatten_levels, halve, point_grid


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_halving_is_masked_max_pooling(steps):
    torch.manual_seed(0)
    x = torch.randn(2, steps, 3)
    mask = torch.arange(steps)[None] < torch.tensor([steps, max(steps - 2, 1)])[:, None]
    pooled, half = halve(x * mask.unsqueeze(-1), mask)
    for b in range(2):
        length = int(mask[b].sum())
        expected = F.max_pool1d(x[b, :length].T[None], 3, 2, 1)[0].T
        torch.testing.assert_close(pooled[b, : expected.shape[0]], expected)
        assert half[b].sum() == expected.shape[0]
        assert (pooled[b, expected.shape[0] :] == 0).all()


def test_doubling_interpolates_and_trims():
    x = torch.tensor([[[0.0], [2.0], [6.0]]])
    assert double(x, 5).flatten().tolist() == [0, 1, 2, 4, 6]
    assert double(x, 6).shape[1] == 6


@pytest.mark.parametrize("first_stride", [1, 2, 4])
def test_levels_have_their_strides_and_padding_does_not_matter(first_stride):
    torch.manual_seed(1)
    pyramid = Pyramid(8, 2, 3, first_stride=first_stride, num_levels=3, mlp_ratio=2, drop_path=0).double().eval()
    down = TopDown(8, 6, first_stride=first_stride, num_levels=3).double().eval()
    x = torch.randn(1, 37, 8, dtype=torch.float64)
    mask = torch.ones(1, 37, dtype=torch.bool)
    levels, masks = pyramid(x, mask)
    assert [level.shape[1] for level in levels] == [-(-37 // (first_stride * 2**i)) for i in range(3)]
    padded, padded_mask = F.pad(x, (0, 0, 0, 14)), F.pad(mask, (0, 14))
    longer, longer_masks = pyramid(padded, padded_mask)
    for a, b in zip(levels, longer, strict=True):
        torch.testing.assert_close(b[:, : a.shape[1]], a, rtol=1e-12, atol=1e-12)
        assert (b[:, a.shape[1] :] == 0).all()
    short, long = down(x, mask, levels, masks), down(padded, padded_mask, longer, longer_masks)
    torch.testing.assert_close(long[:, :37], short, rtol=1e-12, atol=1e-12)


def test_points_follow_the_flattened_levels():
    points = point_grid([4, 2], (2, 4), ((0, 8), (8, 100)), torch.device("cpu"))
    assert points.position.tolist() == [0, 2, 4, 6, 8, 0, 4, 8]
    assert points.level.tolist() == [0] * 5 + [1] * 3
    assert points.ranges[-1].tolist() == [8, 100]
    features, mask = flatten_levels(
        [torch.ones(1, 4, 2), torch.ones(1, 2, 2)],
        [torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)],
    )
    assert mask[0].tolist() == [True] * 4 + [False] + [True] * 2 + [False]
    assert features.sum(-1)[0].tolist() == [2, 2, 2, 2, 0, 2, 2, 0]

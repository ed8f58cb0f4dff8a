from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tzn.nn.conv import Conv3, ConvTower


def _masked(batch, steps, channels, lengths):
    mask = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    return torch.randn(batch, steps, channels, dtype=torch.float64) * mask.unsqueeze(-1), mask


def test_conv3_is_a_zero_padded_convolution_of_kernel_three():
    torch.manual_seed(0)
    conv = Conv3(4, 5).double()
    x = torch.randn(2, 11, 4, dtype=torch.float64)
    weight = conv.weight.view(5, 3, 4).permute(0, 2, 1)
    expected = F.conv1d(x.transpose(1, 2), weight, conv.bias, padding=1).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("rows", [[], [0], [12], [0, 1, 2, 11, 13, 20], list(range(26))], ids=len)
def test_tower_at_rows_equals_the_dense_rows(layers, rows):
    torch.manual_seed(1)
    tower = ConvTower(4, 6, 3, layers).double()
    x, mask = _masked(2, 13, 4, (13, 8))
    rows = torch.tensor([r for r in rows if mask.flatten()[r]], dtype=torch.long)
    torch.testing.assert_close(tower.at(x, mask, rows), tower(x, mask).reshape(26, 3)[rows], rtol=1e-12, atol=1e-12)


def test_padding_has_no_influence():
    torch.manual_seed(2)
    tower = ConvTower(4, 6, 3, 2).double()
    x, mask = _masked(1, 20, 4, (9,))
    alone = tower(x[:, :9], mask[:, :9])
    torch.testing.assert_close(tower(x, mask)[:, :9], alone, rtol=1e-12, atol=1e-12)

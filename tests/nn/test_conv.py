from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tzn.nn.conv import Conv3, ConvTower, conv_layers
from tzn.ops._backend import missing_native


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


@pytest.fixture
def compiled():
    if missing_native() is not None:
        pytest.skip("compiled kernels are not built")
    return torch.ops.tzn_native.conv3


def _layer(x, mask, conv, norm):
    y = F.linear(
        torch.cat([F.pad(x, (0, 0, 1, 0))[:, :-1], x, F.pad(x, (0, 0, 0, 1))[:, 1:]], -1), conv.weight, conv.bias
    )
    return y if norm is None else F.relu(norm(y)) * mask.unsqueeze(-1)


@pytest.mark.parametrize("normed", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize(
    ("channels", "out", "lengths"),
    [(96, 96, (131, 60)), (128, 64, (7,)), (5, 3, (1, 1, 1)), (17, 130, (2, 50, 49)), (64, 12, (97,)), (1, 1, (3, 0)),
     (33, 65, ())],
    ids=str,
)  # fmt: skip
def test_the_compiled_convolution_is_no_further_from_float64_than_pytorchs(compiled, channels, out, lengths, normed):
    """Shapes that end within a tile of rows and within a vector of channels; memory full of NaN before."""
    torch.manual_seed(3)
    conv, norm = Conv3(channels, out, bias=not normed), torch.nn.LayerNorm(out) if normed else None
    steps = max(lengths, default=4)
    x, mask = (
        _masked(len(lengths), steps, channels, lengths)
        if lengths
        else (torch.zeros(0, 4, channels), torch.ones(0, 4) > 0)
    )
    x = x.float()
    if norm is not None:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        wide = _layer(x.double(), mask, conv.double(), None if norm is None else norm.double())
        conv.float(), None if norm is None else norm.float()
        eager = _layer(x, mask, conv, norm)
        torch.full((len(lengths), steps, out), float("nan"))  # what the allocator hands out next
        found = compiled(
            x, conv.weight, conv.bias, *((None, None) if norm is None else (norm.weight, norm.bias)),
            mask if normed else None, 1e-5,
        )  # fmt: skip
    assert found.shape == wide.shape and bool(found.isfinite().all())
    if found.numel():
        bar = 2 * float((eager - wide).abs().max()) + 2e-6 * float(wide.abs().max())
        assert float((found - wide).abs().max()) <= bar
        if normed:
            assert bool((found[~mask] == 0).all())


def test_a_strided_input_and_the_layers_without_gradients(compiled):
    torch.manual_seed(4)
    tower = ConvTower(6, 20, 3, 2)
    for norm in tower.norms:
        torch.nn.init.normal_(norm.bias)  # a padded step must not come out as its norm's bias
    x, mask = _masked(2, 40, 12, (40, 23))
    x = x.float()[:, :, ::2]
    wanted = tower(x, mask)  # with gradients: PyTorch's operators
    with torch.no_grad():
        torch.testing.assert_close(tower(x, mask), wanted, rtol=1e-4, atol=1e-5)
        hidden = conv_layers(x, mask, tower.convs, tower.norms)
    assert hidden[0].any() and not hidden[1, 23:].any()

"""Layers that run fused in inference give what their modules give operator by operator."""

from __future__ import annotations

import pytest
import torch
from small_model import build

from tzn.kernels import fused as kernels
from tzn.kernels import zoom as zoom_kernels
from tzn.nn import BoundaryDistanceHead, DepthPredictor, budget_shift, depth_from_logits
from tzn.nn.conv import ConvTower
from tzn.nn.pyramid import Pyramid, TopDown, halve, point_grid
from tzn.nn.zoom import BoundaryStream
from tzn.ops import depth_gates
from tzn.ops._fused import fused

LENGTHS = {"odd": (37, 12), "one-step": (1, 1), "none-valid": (9, 0), "even": (40, 40)}
shapes = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _inputs(lengths, width, dtype=torch.float64):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), width).to(dtype) * mask.unsqueeze(-1), mask


def _randomised(module, dtype=torch.float64):
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3 + (0.7 if parameter.dim() == 1 else 0.0))
    return module.to(dtype).eval()


def _both(monkeypatch, run):
    """Results on Triton's kernels, and operator by operator."""
    ours = run()
    monkeypatch.setenv("TZN_BACKEND", "reference")
    wanted = run()
    monkeypatch.setenv("TZN_BACKEND", "triton")
    return ours, wanted


def _same(monkeypatch, run, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(*_both(monkeypatch, run), rtol=rtol, atol=atol)


def _launched(monkeypatch, name, kernels=kernels):
    """Counts calls of a launcher, so that no test compares PyTorch with itself."""
    calls, original = [], getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *a, **k: (calls.append(name), original(*a, **k))[1])
    return calls


@shapes
@pytest.mark.parametrize(("width", "dtype"), [(20, torch.float64), (20, torch.float32), (300, torch.float64)])
def test_towers_of_convolutions(monkeypatch, lengths, width, dtype):
    tower = _randomised(ConvTower(10, width, 3, layers=2), dtype)
    x, mask = _inputs(lengths, 10, dtype)
    calls = _launched(monkeypatch, "conv_norm")
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    _same(monkeypatch, lambda: tower.hidden(x, mask), tolerance, tolerance)
    assert len(calls) == 2
    strided = torch.stack([x, x], 3)[..., 1]
    torch.testing.assert_close(tower.hidden(strided, mask), tower.hidden(x, mask))


def test_a_tile_that_rows_do_not_fill(monkeypatch):
    tower = _randomised(ConvTower(70, 130, 3, layers=1))
    x, mask = _inputs((75, 66, 3), 70)
    _same(monkeypatch, lambda: tower.hidden(x, mask))


@shapes
@pytest.mark.parametrize("fields", [1, 2])
def test_boundary_head(monkeypatch, lengths, fields):
    head = _randomised(BoundaryDistanceHead(10, fields, width=12, layers=1, radius=5.0))
    head.tower.output.weight.mul_(20)  # also where tanh and softplus saturate
    x, mask = _inputs(lengths, 10)
    calls = _launched(monkeypatch, "fields")
    _same(monkeypatch, lambda: [x.contiguous() for x in head(x, mask)], 1e-5, 1e-5)
    assert calls


def test_softplus_of_scales_far_below_zero(monkeypatch):
    head = _randomised(BoundaryDistanceHead(1, 2, width=1, layers=0, radius=5.0))
    head.tower.output.weight.zero_()
    head.tower.output.weight[:, 1] = 1.0
    head.tower.output.bias.zero_()
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)[None, :, None]
    _same(monkeypatch, lambda: head(x, torch.ones(1, 61, dtype=torch.bool))[1].contiguous() - 0.05, 2e-6, 2e-8)


def test_tanh_of_distances_next_to_a_boundary():
    """Relative error within four roundings of float32, where 2 sigmoid(2 x) - 1 would keep no digit."""
    raw = torch.cat([10.0 ** torch.arange(-9.0, 2.0), torch.zeros(1), torch.linspace(0.1, 3, 19), torch.tensor([40.0])])
    raw = torch.cat([raw, -raw])[None, :, None]
    weight = torch.zeros(2, 3)
    weight[0, 1] = 1.0
    distance, _ = kernels.fields(raw, weight, torch.zeros(2), 8.0, 0.05)
    wanted = 8 * torch.tanh(raw[0, :, 0].double() / 8)
    assert ((distance[0, 0] - wanted).abs() <= 4 * 2**-24 * wanted.abs()).all()


@shapes
@pytest.mark.parametrize("first_stride", [1, 2, 4])
def test_pyramid_and_top_down_path(monkeypatch, lengths, first_stride):
    given = {"first_stride": first_stride, "num_levels": 3}
    pyramid = _randomised(Pyramid(8, 2, 3, mlp_ratio=2, drop_path=0, **given))
    down = _randomised(TopDown(8, 6, **given))
    x, mask = _inputs(lengths, 8)
    calls = _launched(monkeypatch, "lateral")

    def run():
        features, valid, levels, masks = pyramid.points(x, mask)
        return features, valid, *levels, *masks, down(x, mask, levels, masks)

    _same(monkeypatch, run)
    assert len(calls) == 4


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_pooling_where_any_step_may_be_masked(monkeypatch, steps):
    x, mask = torch.randn(3, steps, 5), torch.rand(3, steps) < 0.6
    _same(monkeypatch, lambda: halve(x, mask), 0, 0)
    x[0, 0, 0] = float("nan")
    mask[0, 0] = True
    ours, wanted = _both(monkeypatch, lambda: halve(x, mask)[0])
    assert torch.equal(ours.isnan(), wanted.isnan())
    assert ours.isnan().any()


@shapes
@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("shift", [None, "one", "each"])
def test_exits_of_a_boundary_stream(monkeypatch, lengths, fields, shift):
    """Against the definition, operator by operator over every step, and poisoned where nothing may be read."""
    given = {
        "layers": 3,
        "num_heads": 2,
        "window": 5,
        "mlp_ratio": 2.0,
        "stem_layers": 2,
        "radius": 6.0,
        "threshold": 0.6,
    }
    stream = _randomised(BoundaryStream(7, 20, fields, **given))
    x, mask = _inputs(lengths, 7)
    context = _inputs(lengths, 20)[0]
    moved = None if shift is None else torch.randn(len(lengths) if shift == "each" else 1, 1)
    calls, empty = _launched(monkeypatch, "read_exit", zoom_kernels), torch.Tensor.new_empty

    def poisoned(self, *size, **kind):
        made = empty(self, *size, **kind)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for gates in (None, torch.rand(*mask.shape, 3) * (torch.rand(*mask.shape, 3) < 0.5)):
        calls.clear()
        ours = stream(x, context, mask, gates=gates, shift=moved, last_only=True)
        assert len(calls) == 4
        monkeypatch.setenv("TZN_BACKEND", "reference")
        wanted = stream(x, context, mask, gates=gates, shift=moved)
        monkeypatch.setenv("TZN_BACKEND", "triton")
        torch.testing.assert_close(ours.gates, wanted.gates, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(tuple(ours.exits[-1]), tuple(wanted.exits[-1]), rtol=1e-5, atol=1e-5)
        assert ours.gates[..., 1].is_contiguous()
    if mask.sum() > 40 and fields == 2:
        gate = stream(x, context, mask, shift=moved, last_only=True).gates[mask]
        assert 0 < (gate[:, 0] > 0).double().mean() <= 1
    stream.full_depth = True
    assert (stream(x, context, mask, last_only=True).gates == mask.unsqueeze(-1)).all()


@shapes
def test_depths(monkeypatch, lengths):
    predictor = _randomised(DepthPredictor(8))
    x = _inputs(lengths, 8)[0]
    raw = predictor.raw(x).float()
    for shift in (None, torch.randn(len(lengths), 1)):
        logits, tau, gates = kernels.gates(raw, shift, 3, 0.05)
        wanted = depth_from_logits(raw if shift is None else raw + shift)
        assert torch.equal(logits, raw)
        torch.testing.assert_close(tau, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gates, depth_gates(wanted, 3), rtol=1e-5, atol=3e-6)
        assert gates[..., 1].is_contiguous()


@shapes
@pytest.mark.parametrize("budget", [0.01, 0.5, 0.97, 1])
def test_the_dial(monkeypatch, lengths, budget):
    logits, mask = torch.randn(len(lengths), max(lengths)).double() * 4, _inputs(lengths, 1)[1]
    _same(monkeypatch, lambda: budget_shift(logits, mask, budget))


def test_the_dial_over_more_steps_than_a_tile(monkeypatch):
    logits, mask = torch.randn(2, 9000).double() * 4, torch.rand(2, 9000) < 0.7
    _same(monkeypatch, lambda: budget_shift(logits, mask, 0.3, 20))


@pytest.mark.parametrize(
    "changes", [{}, {"first_stride": 1, "embedding_layers": 2}, {"boundary_fields": "region"}], ids=str
)
def test_a_whole_network(monkeypatch, changes):
    model = build(**changes)
    model.feature_mean.normal_()
    model.feature_std.uniform_(0.5, 2)
    x, mask = _inputs((41, 26), 7, torch.float32)

    def run():
        points = model.points(x, mask, budget=0.6)
        return points.scores, points.depth, *points.offsets(), *(f.contiguous() for f in points.fields()), points.mask

    _same(monkeypatch, run, 1e-4, 1e-4)


def test_where_somebody_looks_operators_run(monkeypatch):
    x = torch.zeros(1, 2, 3)
    assert fused(x, x) is kernels
    with torch.enable_grad():
        assert fused(x, x) is None
    with torch.autocast("cpu"):
        assert fused(x, x) is None
    with torch.profiler.profile():
        assert fused(x, x) is None
    assert fused(x, x.double()) is None
    assert fused(x.int(), x.int()) is None
    assert torch.vmap(lambda x: torch.tensor(float(fused(x, x) is None)).expand(2))(torch.zeros(3, 2)).all()
    monkeypatch.setenv("TZN_BACKEND", "reference")
    assert fused(x, x) is None


def test_points_are_kept_per_shape():
    given = ([4, 2], (2, 4), ((0, 8), (8, 100)), torch.device("cpu"))
    with torch.inference_mode():
        first = point_grid(*given)
    assert point_grid(*given) is first
    assert not first.stride.is_inference()
    assert point_grid([4, 3], *given[1:]).level.shape == (9,)
    for length in range(20):
        point_grid([length, 2], *given[1:])
    again = point_grid(*given)
    assert again is not first
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(again, first, strict=True))

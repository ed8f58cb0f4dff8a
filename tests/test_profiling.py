"""Counted multiply-adds: against the published figure, formulas by hand, fvcore, and PyTorch's counter."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from tzn import ops
from tzn.config_loading import load_config
from tzn.models import TemporalZoomNet, TemporalZoomNetConfig, build_model
from tzn.profiling import count_flops

# Facts of the released program at T = 2304, in 1e9 multiply-adds, counted there by fvcore.
PUBLISHED = {"embedding": 9.06, "stem": 14.67, "branch": 7.10, "classification head": 7.27, "regression head": 7.15}


@pytest.fixture(scope="module")
def thumos():
    config = load_config("configs/actionformer_thumos14_i3d.yaml").model
    torch.manual_seed(0)
    return build_model(config).eval()


def test_actionformer_costs_what_was_published(thumos):
    count = count_flops(thumos, (torch.randn(1, 2304, 2048), torch.ones(1, 2304, dtype=torch.bool)))
    assert count.gmac == pytest.approx(45.25, rel=0.005)
    assert count.gflop == 2 * count.gmac
    for part, gmac in PUBLISHED.items():  # depthwise convolutions are element-wise here: 0.3 % of a block
        assert count.parts[part] / 1e9 == pytest.approx(gmac, rel=0.0075), part
    assert abs(count.parts["other"]) < 1e6
    assert (count.steps, count.padded_steps, count.active_share) == (2304, 2304, 1.0)
    assert "45.1" in count.table()


def test_a_short_recording_is_counted_at_its_own_padded_length(thumos):
    count = count_flops(thumos, (torch.randn(1, 600, 2048), torch.ones(1, 600, dtype=torch.bool)))
    assert (count.steps, count.padded_steps) == (600, 640)
    assert count.gmac == pytest.approx(45.25 * 640 / 2304, rel=0.01)


class GivenDepth(TemporalZoomNet):
    """Tokens have the depth ``tau`` in place of what the predictor says."""

    tau: torch.Tensor

    def trunk(self, features, mask, **_):
        return super().trunk(features, mask, tau=self.tau)


def small_net(tau: torch.Tensor) -> TemporalZoomNet:
    torch.manual_seed(1)
    settings = {
        "input_dim": 24, "num_classes": 5, "width": 32, "num_heads": 4, "window": 7, "num_levels": 3, "first_stride": 2,
        "regression_ranges": ((0, 8), (8, 32), (32, 10000)), "head_width": 16, "boundary_width": 16,
        "refinement_layers": 3,
    }  # fmt: skip
    model = GivenDepth(TemporalZoomNetConfig(**settings)).eval()
    model.tau = tau
    return model


def block_by_hand(active: int, halo: int, width: int, window: int, hidden: int) -> int:
    return 2 * active * width**2 + 2 * halo * width**2 + 2 * active * width * hidden + 2 * active * window * width


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_refinement_is_counted_by_active_and_halo_tokens(monkeypatch, backend):
    if ops.backends()[backend] != "available":
        pytest.skip(ops.backends()[backend])
    monkeypatch.setenv("TZN_BACKEND", backend)
    tau = torch.zeros(1, 64)
    tau[0, 20:30], tau[0, 24] = 0.5, 1.0  # 10 tokens run layer 0, the same 10 layer 1 in part, one layer 2
    model = small_net(tau)
    count = count_flops(model, (torch.randn(1, 64, 24), torch.ones(1, 64, dtype=torch.bool)))
    expected = [block_by_hand(a, h, 32, 7, 128) for a, h in ((10, 16), (10, 16), (1, 7))]
    assert count.parts["refinement"] == sum(expected)
    assert count.active_share == pytest.approx((10 + 10 + 1) / (3 * 64))
    none = count_flops(small_net(torch.zeros(1, 64)), (torch.randn(1, 64, 24), torch.ones(1, 64) > 0))
    assert none.parts["refinement"] == 0


def test_padding_is_not_counted_in_blocks():
    features, mask = torch.randn(2, 64, 24), torch.arange(64)[None] < torch.tensor([[64], [16]])
    model = small_net(torch.ones(2, 64))
    both = count_flops(model, (features, mask)).parts["shallow blocks"]
    assert both == block_by_hand(80, 80, 32, 7, 128)


def _handle(inputs, outputs) -> int:
    """fvcore's count of one of our ops from the shapes of a trace, all tokens active."""
    batch, heads, steps, width = outputs[0].type().sizes()
    return 2 * batch * heads * steps * width * 19


def test_fvcore_agrees_on_actionformer(thumos):
    features, mask = torch.randn(1, 576, 2048), torch.ones(1, 576, dtype=torch.bool)
    ours = count_flops(thumos, (features, mask))
    inputs = thumos.padded(features, mask)
    with torch.no_grad():
        analysis = FlopCountAnalysis(thumos, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("tzn::local_attention", _handle)
        # fvcore also counts norms and the element-wise products; only products of matrices are meant here.
        theirs = sum(
            n for op, n in analysis.by_operator().items() if op in ("linear", "matmul", "conv", "local_attention")
        )
    assert theirs == pytest.approx(sum(ours.parts.values()), rel=1e-3)


def test_fvcore_agrees_on_temporal_zoom_net_at_full_depth():
    model = small_net(torch.ones(1, 64))
    features, mask = torch.randn(1, 64, 24), torch.ones(1, 64, dtype=torch.bool)
    ours = count_flops(model, (features, mask))
    blocks = 0

    def handle(inputs, outputs) -> int:
        nonlocal blocks
        blocks += 1
        batch, steps, width = outputs[0].type().sizes()
        return block_by_hand(batch * steps, batch * steps, width, 7, _hidden(inputs))

    def _hidden(inputs) -> int:
        weights = list(inputs[2].node().inputs())
        return weights[11].type().sizes()[0]

    with torch.no_grad():
        analysis = FlopCountAnalysis(model, (features, mask)).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).set_op_handle("tzn::variable_depth_block", handle)
        theirs = sum(
            n for op, n in analysis.by_operator().items() if op in ("linear", "matmul", "conv", "variable_depth_block")
        )
    assert blocks == 1 + 3 + 3  # shallow, refinement, pyramid
    assert theirs == pytest.approx(sum(ours.parts.values()), rel=1e-3)


@pytest.mark.parametrize("active", [0.0, 0.3, 1.0])
def test_a_training_step_has_two_products_backward_for_each_one_forward(monkeypatch, active):
    """What :func:`count_multiply_adds` says of training, by PyTorch's counter; it sees no attention, forward or backward."""
    if ops.backends()["cpp"] != "available":
        pytest.skip(ops.backends()["cpp"])
    monkeypatch.setenv("TZN_BACKEND", "cpp")
    tau = (torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < active).float()
    model = small_net(tau)
    features, mask = torch.randn(2, 64, 24), torch.arange(64)[None] < torch.tensor([[64], [40]])
    with FlopCounterMode(display=False) as counter:
        outputs = model(features, mask)
        forward = counter.get_total_flops() // 2
        heads = (outputs.class_logits, outputs.offsets, outputs.offset_scale, outputs.distance, outputs.distance_scale)
        sum(head.sum() for head in heads).backward()
        both = counter.get_total_flops() // 2
    points = 2 * (32 + 16 + 8 + 3)
    no_gradient = 2 * 64 * 24 * 32 + points * 3 * 16 * 2  # of the features, and of what the offsets' scale observes
    assert forward > 0 and both == 3 * forward - no_gradient

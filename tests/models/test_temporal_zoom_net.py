from __future__ import annotations

import pytest
import torch

from tzn.models import TemporalZoomNet, TemporalZoomNetConfig

CONFIG = TemporalZoomNetConfig(
    input_dim=7, num_classes=5, width=16, num_heads=2, window=5, head_width=12, boundary_width=12, first_stride=2,
    num_levels=3, regression_ranges=((0, 4), (4, 8), (8, 10000)), refinement_layers=2, drop_path=0.0,
)  # fmt: skip


def build(**changes) -> TemporalZoomNet:
    torch.manual_seed(0)
    model = TemporalZoomNet(CONFIG.replace(**changes)).double().eval()
    if model.depth_predictor is not None:  # spread the depths: at the start all are near one
        torch.nn.init.normal_(model.depth_predictor.logit.weight, std=2.0)
        torch.nn.init.zeros_(model.depth_predictor.logit.bias)
    return model


def batch(lengths=(61, 38)):
    torch.manual_seed(1)
    steps = max(lengths)
    mask = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), steps, 7, dtype=torch.float64), mask


@pytest.mark.parametrize("first_stride", [1, 2, 4])
def test_recordings_of_a_batch_give_the_same_as_alone(first_stride):
    model = build(first_stride=first_stride)
    features, mask = batch()
    together = model(features, mask)
    for i, length in enumerate((61, 38)):
        alone = model(features[i : i + 1, :length], mask[i : i + 1, :length])
        for level in range(3):
            count = int((alone.trunk.points.level == level).sum()) - 1
            for name in ("class_logits", "offsets", "offset_scale"):
                a = getattr(alone, name)[0][alone.trunk.points.level == level][:count]
                b = getattr(together, name)[i][together.trunk.points.level == level][:count]
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(together.distance[i, :, :length], alone.distance[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(together.trunk.depths.tau[i, :length], alone.trunk.depths.tau[0])


def test_heads_at_candidate_rows_equal_the_dense_heads():
    model = build()
    features, mask = batch()
    outputs = model(features, mask)
    rows = outputs.trunk.point_mask.flatten().nonzero().squeeze(1)[::3]
    offsets, scale = model.offset_head.at(outputs.trunk, rows)
    torch.testing.assert_close(offsets, outputs.offsets.reshape(-1, 2)[rows], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scale, outputs.offset_scale.reshape(-1, 2)[rows], rtol=1e-6, atol=1e-7)
    steps = mask.flatten().nonzero().squeeze(1)[5::7]
    distance, spread = model.boundary_head.at(outputs.trunk.boundary_features, mask, steps)
    dense = outputs.distance.transpose(1, 2).reshape(-1, 2)[steps]
    torch.testing.assert_close(distance, dense, rtol=1e-6, atol=1e-6)
    assert (spread > 0).all()


@pytest.mark.parametrize("changes", [{}, {"first_stride": 1}, {"first_stride": 4, "shallow_layers": 2}], ids=str)
def test_nothing_beyond_the_receptive_radius_matters(changes):
    model = build(**changes)
    radius, steps = model.receptive_radius, 700
    features, mask = batch((steps,))
    changed = features.clone()
    changed[:, steps // 2] += 3.0
    with torch.no_grad():
        before, after = model(features, mask), model(changed, mask)
    moved = ((before.class_logits - after.class_logits).abs().amax(-1) > 0) & before.trunk.point_mask
    reach = (before.trunk.points.position[moved[0]] - steps // 2).abs().max()
    near = ((before.distance - after.distance).abs().amax(1)[0] > 0).nonzero() - steps // 2
    assert moved.any() and max(float(reach), float(near.abs().max())) <= radius
    assert radius % model.config.strides[-1] == 0
    assert radius < 3 * float(reach)  # not absurdly cautious either


def test_depth_zero_skips_refinement_and_depth_one_runs_all_of_it():
    model = build()
    features, mask = batch()
    full = model.trunk(features, mask, budget=1.0)
    none = model.trunk(features, mask, depth_shift=torch.full((2, 1), -float("inf"), dtype=torch.float64))
    assert (full.depths.gates == 1).all() and (none.depths.gates == 0).all()
    shallow = build(refinement_layers=0)
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if k in shallow.state_dict()})
    torch.testing.assert_close(none.point_features, shallow.trunk(features, mask).point_features, rtol=0, atol=0)
    assert (full.point_features - none.point_features).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    model = build().train()
    outputs = model(*batch())
    total = sum(
        x.pow(2).sum()
        for x in (outputs.class_logits, outputs.offsets, outputs.offset_scale, outputs.distance, outputs.distance_scale)
    )
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("fields", ["start_end", "region", "none"])
def test_boundary_fields(fields):
    outputs = build(boundary_fields=fields)(*batch())
    shape = None if outputs.distance is None else tuple(outputs.distance.shape)
    assert shape == {"start_end": (2, 2, 61), "region": (2, 1, 61), "none": None}[fields]


def test_standardisation_is_part_of_the_model():
    model = build()
    features, mask = batch((20,))
    plain = model(features, mask).class_logits
    model.feature_mean.fill_(2.0)
    model.feature_std.fill_(3.0)
    torch.testing.assert_close(model(3.0 * features + 2.0, mask).class_logits, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "a number divisible by model.num_heads = 3"),
        ({"window": 4}, "model.window = 4"),
        ({"first_stride": 3}, "model.first_stride = 3: expected a power of two"),
        ({"num_levels": 2}, "expected one range per level .model.num_levels = 2"),
        ({"boundary_fields": "both"}, "model.boundary_fields = 'both'"),
        ({"drop_path": 1.0}, "model.drop_path = 1.0"),
        ({"input_dim": 0}, "model.input_dim = 0"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**change)

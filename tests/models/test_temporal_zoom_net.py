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
    if model.front_end is not None and model.front_end.gates is not None:  # at the start they gate nothing
        torch.nn.init.normal_(model.front_end.gates.up.weight)
    if model.boundary_stream is not None:  # the same for what is near and settled
        for exit_ in model.boundary_stream.exits:
            torch.nn.init.normal_(exit_.weight)
        model.boundary_stream.exits[0].bias[4:].data.fill_(-2.0)
    return model


def batch(lengths=(61, 38)):
    torch.manual_seed(1)
    steps = max(lengths)
    mask = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), steps, 7, dtype=torch.float64), mask


FRONT_ENDS = [
    {"front_end": "conv", "front_end_samples": 7, "front_end_width": 8},
    {"front_end": "conv", "front_end_layers": 1, "front_end_width": 8, "front_end_squeeze": 3},
    {"front_end": "spectrogram", "front_end_samples": 7, "front_end_window": 33, "front_end_width": 8},
]
ZOOMED = [
    {"zoom_layers": 2, "zoom_window": 5, "embedding_stride": 2, "refinement_layers": 0},
    {
        "zoom_layers": 1,
        "zoom_window": 3,
        "embedding_stride": 4,
        "first_stride": 4,
        "shallow_layers": 1,
        "refinement_layers": 0,
    },
    {"zoom_layers": 2, "zoom_window": 5, "refinement_layers": 0, **FRONT_ENDS[0]},
]
CONFIGURATIONS = [{}, {"first_stride": 1}, {"first_stride": 4, "shallow_layers": 2}, *FRONT_ENDS, *ZOOMED]


@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_recordings_of_a_batch_give_the_same_as_alone(changes):
    model = build(**changes)
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


@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_nothing_beyond_the_receptive_radius_matters(changes):
    model = build(**changes)
    steps, middle = 700, 350
    features, mask = batch((steps,))
    changed = features.clone()
    changed[:, middle] += 3.0
    with torch.no_grad():
        before, after = model(features, mask), model(changed, mask)

    def assert_far_is_equal(old, new, position):
        """Up to rounding: other numbers of active tokens are other shapes of matrix products, and these round differently."""
        moved = (old - new).abs().amax(-1) > 64 * torch.finfo(old.dtype).eps * old.abs().max()
        assert moved.any()
        assert (position[moved] - middle).abs().max() <= model.receptive_radius

    valid = before.trunk.point_mask[0]
    position = before.trunk.points.position[valid]
    assert_far_is_equal(before.class_logits[0, valid], after.class_logits[0, valid], position)
    assert_far_is_equal(before.distance[0].T, after.distance[0].T, torch.arange(steps))


@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_the_receptive_radius_is_the_smallest_multiple_of_the_coarsest_stride_that_holds(changes):
    """By the gradient of single outputs at every phase of the coarsest stride: exactly zero where nothing is read."""
    model = build(**changes)
    radius, coarsest = model.receptive_radius, model.config.strides[-1]
    middle = radius + coarsest
    features, mask = batch((2 * middle,))
    features.requires_grad_()
    # Every token runs every layer, so no path is closed.
    outputs = model(features, mask, tau=torch.ones(mask.shape))
    points, farthest = outputs.trunk.points, 0
    for position in range(middle - coarsest, middle):
        here = ((points.position == position) & outputs.trunk.point_mask[0]).nonzero()[:, 0].tolist()
        read = [outputs.class_logits[0, i].sum() + outputs.offsets[0, i].sum() for i in here]
        for output in (*read, outputs.distance[0, :, position].sum()):
            (gradient,) = torch.autograd.grad(output, features, retain_graph=True)
            matters = gradient[0].abs().amax(-1).nonzero()
            farthest = max(farthest, int((matters - position).abs().max()))
    assert radius % coarsest == 0
    assert radius - coarsest < farthest <= radius


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


@pytest.mark.parametrize("changes", [{}, ZOOMED[0]], ids=str)
def test_every_parameter_gets_a_gradient(changes):
    model = build(**changes).train()
    outputs = model(*batch())
    total = sum(
        x.pow(2).sum()
        for x in (
            outputs.class_logits,
            outputs.offsets,
            outputs.offset_scale,
            outputs.distance,
            outputs.distance_scale,
            *(e.reach for e in outputs.trunk.exits),
        )
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
        ({"embedding_stride": 2}, "model.embedding_stride = 2: expected 1 with a model.front_end, or without"),
        ({"zoom_layers": 1}, "model.zoom_layers = 1: expected 0 with model.refinement_layers = 2"),
        (
            {"embedding_stride": 4, "zoom_layers": 1, "refinement_layers": 0},
            "model.embedding_stride = 4: expected at most model.first_stride = 2",
        ),
        ({"zoom_layers": 1, "boundary_fields": "none"}, "model.zoom_layers = 1: expected 0 with"),
        (
            {"zoom_layers": 1, "refinement_layers": 0, "boundary_width": 13},
            "model.boundary_width = 13: expected a number divisible by",
        ),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**change)

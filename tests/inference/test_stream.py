"""A stream gives what one pass over the whole recording gives, as soon as it cannot change, in constant memory."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from small_model import GRID, build, features

from tzn.config import InferenceConfig
from tzn.detections import Detections
from tzn.errors import ConfigError, LimitWarning
from tzn.inference.localize import localize
from tzn.inference.stream import StreamLocalizer
from tzn.models import ActionFormer, ActionFormerConfig

CONFIG = InferenceConfig(pre_nms_topk=100_000, max_segments=1_000_000)
REACH = 400  # more than any segment of the small model goes to one side
ZOOMED = {"zoom_layers": 2, "zoom_window": 5, "embedding_stride": 2, "refinement_layers": 0}


def streamed(stream: StreamLocalizer, x: torch.Tensor, cuts) -> list[Detections]:
    parts = [stream.push(part) for part in x.tensor_split(sorted(cuts))]
    return [*parts, stream.close()]


def joined(parts: list[Detections]) -> Detections:
    std = [p.std for p in parts if p.std is not None]
    arrays = [np.concatenate([getattr(p, name) for p in parts]) for name in ("segments", "scores", "labels")]
    return Detections(*arrays, np.concatenate(std) if std else None)


def in_one_pass(model, x, config, **limits) -> Detections:
    found, _ = localize(model, x, GRID, len(x) * GRID.step, config)
    return found.filter(score=limits.get("min_score"))


def assert_same(found: Detections, wanted: Detections, *, atol: float = 2e-4, score: float = 1e-4) -> None:
    """The same detections, whatever their order; ``atol`` in seconds."""
    assert len(found) == len(wanted) > 0
    for label in np.unique(wanted.labels):
        a, b = (one[one.labels == label] for one in (found, wanted))
        assert len(a) == len(b)
        order = [np.lexsort((one.scores, np.round(one.segments.sum(1), 1))) for one in (a, b)]
        cost = np.abs(a.segments[:, None] - b.segments[None]).max(2) + np.abs(a.scores[:, None] - b.scores[None])
        nearest = cost.argmin(1) if len(a) < 4000 else order[1][np.argsort(order[0])]
        assert len(np.unique(nearest)) == len(a), "a detection of one pass stands for two of the stream"
        assert np.abs(a.segments - b.segments[nearest]).max() < atol
        assert np.abs(a.scores - b.scores[nearest]).max() < score
        if a.std is not None:
            np.testing.assert_allclose(a.std, b.std[nearest], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "anchor"}, {"nms": "linear"}, {"nms": "hard", "iou_threshold": 0.4}, {"nms": "none"},
     {"multiclass": False, "voting_thresh": 0.0}, {"estimator": "crossing", "quality": 0.5, "min_score": 0.05}],
    ids=str,
)  # fmt: skip
def test_any_chunking_gives_the_one_pass_result(changes, seed):
    rng = np.random.default_rng(seed)
    model, x = build(), features(int(rng.integers(500, 800)), seed)
    config = dataclasses.replace(CONFIG, **changes)
    cuts = rng.integers(0, len(x), rng.integers(1, 200))
    stream = StreamLocalizer(model, GRID, config, reach=REACH, window=int(rng.integers(60, 300)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = streamed(stream, x, cuts)
    assert_same(joined(parts), in_one_pass(model, x, config))
    assert sum(len(part) > 0 for part in parts) > 1, "nothing came before the end"


@pytest.mark.parametrize("steps", [1, 2, 17, 200])
def test_short_recordings(steps):
    model, x = build(), features(steps)
    found = joined(streamed(StreamLocalizer(model, GRID, CONFIG, reach=REACH), x, [steps // 2]))
    assert_same(found, in_one_pass(model, x, CONFIG))


def test_row_by_row_is_chunk_by_chunk():
    model, x = build(), features(700)
    found = joined(streamed(StreamLocalizer(model, GRID, CONFIG, reach=REACH), x, range(1, 700)))
    assert_same(found, in_one_pass(model, x, CONFIG))


def test_a_score_that_is_asked_for_leaves_out_what_is_below_and_changes_nothing_above():
    model, x = build(), features(1200)
    for nms in ("soft", "hard", "linear", "none"):
        config = dataclasses.replace(CONFIG, nms=nms)
        stream = StreamLocalizer(model, GRID, config, reach=REACH, min_score=0.3)
        found = joined(streamed(stream, x, range(50, 1200, 50)))
        assert found.scores.min() >= 0.3
        assert_same(found, in_one_pass(model, x, config, min_score=0.3))


def test_other_localizers_stream_too():
    for changes in ({"boundary_fields": "region"}, {"boundary_fields": "none"}, {"refinement_layers": 1}, ZOOMED):
        model, x = build(**changes), features(900)
        found = joined(streamed(StreamLocalizer(model, GRID, CONFIG, reach=REACH), x, [300, 600]))
        assert_same(found, in_one_pass(model, x, CONFIG))


def test_nothing_that_was_given_out_is_taken_back():
    """Whatever follows, what the stream gave out before it stands in the result of one pass."""
    model, begin = build(), features(900)
    before = StreamLocalizer(model, GRID, CONFIG, reach=REACH).push(begin)
    assert len(before) > 5
    for seed, scale in ((1, 1.0), (2, 5.0), (3, 0.0)):
        x = torch.cat([begin, scale * features(500, seed)])
        whole = in_one_pass(model, x, CONFIG)
        for segment, score, label in zip(before.segments, before.scores, before.labels, strict=True):
            close = np.abs(whole.segments - segment).max(1) + np.abs(whole.scores - score) + (whole.labels != label)
            assert close.min() < 1e-3


def test_a_detection_comes_when_latency_says():
    model, x = build(), features(900)
    stream = StreamLocalizer(model, GRID, CONFIG, reach=100, window=64, min_score=0.8)
    late, seen = [], 0
    for part in x.split(8):
        seen += len(part)
        for segment in stream.push(part):
            late.append(seen - GRID.to_steps(segment.end))
    assert len(late) > 5
    assert min(late) >= stream.radius + 100 - 1e-3
    assert np.quantile(late, 0.25) <= stream.latency  # rivals make the others wait


def test_memory_and_work_do_not_grow_with_the_recording():
    model = build()
    stream = StreamLocalizer(model, GRID, CONFIG, min_score=0.8, reach=100, window=256)
    stream.push(features(512))
    held = []
    for seed in range(40):
        stream.push(features(256, seed))
        parts = sum(p.untyped_storage().nbytes() for p in stream._parts)
        held.append(
            (parts, stream._fields.untyped_storage().nbytes(), len(stream._alive.scores), len(stream._pending.score))
        )
    early, late = np.array(held[5:20]).max(0), np.array(held[20:]).max(0)
    assert (late <= 1.5 * early).all(), (early, late)


def test_a_long_stream_equals_one_pass():
    model, x = build(), features(200_000)
    config = dataclasses.replace(CONFIG, pre_nms_thresh=0.8, min_score=0.8)
    stream = StreamLocalizer(model, GRID, config, reach=REACH, window=2048, min_score=0.8)
    found = joined(streamed(stream, x, range(3000, 200_000, 3000)))
    # float32 tells steps apart to 1/64 at the end of one pass; a stream counts from the window.
    assert len(found) > 1000
    wanted = in_one_pass(model, x, config, min_score=0.8)
    assert abs(len(found) - len(wanted)) <= 0.001 * len(wanted)
    starts = np.sort(wanted.segments[:, 0])
    where = np.searchsorted(starts, found.segments[:, 0])
    near = [np.abs(starts[np.clip(where - k, 0, len(starts) - 1)] - found.segments[:, 0]) for k in (0, 1)]
    assert (np.minimum(*near) < 0.01).mean() > 0.999


def test_a_candidate_beyond_the_reach_is_said_once():
    model, x = build(), features(900)
    stream = StreamLocalizer(model, GRID, CONFIG, reach=4)
    with pytest.warns(LimitWarning, match=r"more than 4 steps \(0.4 s\).*longer reach") as caught:
        found = joined(streamed(stream, x, range(100, 900, 100)))
    assert len(caught) == 1
    assert (found.segments[:, 1] - found.segments[:, 0]).max() <= 0.8 + 1e-6


def test_candidates_cut_in_a_window_are_said():
    with pytest.warns(LimitWarning, match=r"pre_nms_topk = 5 cut candidates of a window"):
        joined(
            streamed(StreamLocalizer(build(), GRID, InferenceConfig(pre_nms_topk=5), reach=REACH), features(600), [])
        )


def test_a_fixed_turn_of_the_depth_dial():
    model, x = build(), features(600)
    low = joined(streamed(StreamLocalizer(model, GRID, CONFIG, reach=REACH, depth_shift=-5.0), x, [300]))
    plain = joined(streamed(StreamLocalizer(model, GRID, CONFIG, reach=REACH, depth_shift=0.0), x, [300]))
    assert_same(plain, in_one_pass(model, x, CONFIG))
    assert len(low) != len(plain) or np.abs(np.sort(low.scores) - np.sort(plain.scores)).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0.5}, r"inference\.budget = 0\.5: .*depth_shift"),
        ({"mode": "pair"}, r"inference\.mode = 'pair'"),
        ({"nms": "diou"}, r"inference\.nms = 'diou'"),
        ({"nms": "hard", "iou_threshold": 0.0}, r"inference\.nms = 'hard' with iou_threshold = 0"),
        ({"multiclass": False}, r"inference\.voting_thresh = 0\.7"),
        ({"per_class_voting": True}, r"inference\.voting_thresh = 0\.7"),
    ],
    ids=str,
)
def test_settings_that_need_the_whole_recording_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        StreamLocalizer(build(), GRID, dataclasses.replace(CONFIG, **changes))


def test_models_that_read_a_recording_as_a_whole_are_refused():
    config = ActionFormerConfig(input_dim=6, num_classes=3, embd_dim=16, fpn_dim=16, head_dim=16, max_seq_len=576)
    with pytest.raises(ConfigError, match="ActionFormer cannot stream: it reads a recording as a whole"):
        StreamLocalizer(ActionFormer(config), GRID, CONFIG)


def test_a_closed_stream_and_an_empty_one():
    stream = StreamLocalizer(build(), GRID, CONFIG)
    assert len(stream.close()) == len(stream.close()) == 0
    with pytest.raises(ValueError, match="closed"):
        stream.push(features(3))
    with pytest.raises(ConfigError, match="reach = 0"):
        StreamLocalizer(build(), GRID, CONFIG, reach=0)

"""From a data folder to a configuration: what is found out, what follows, and that odd data pass."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import yaml
from made_sets import many, signal, write_set

from tzn.config_loading import load_config
from tzn.errors import ConfigError, DataError
from tzn.planning import make_plan, plan_text, read_fingerprint
from tzn.planning.channels import describe_channels
from tzn.planning.groups import find_groups, held_out
from tzn.planning.plan import Cost


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return many(tmp_path_factory.mktemp("sets") / "plain", 8, 20.0, 60.0, (1.0, 4.0), 2, names="s{:02d}_x")


def test_kinds_of_channels():
    rng = np.random.default_rng(0)
    steps = 2000
    columns = [
        rng.standard_normal(steps), np.eye(3)[rng.integers(0, 3, steps)], np.cumsum(rng.normal(0.2, 0.1, steps)) % (2 * np.pi),
        np.full(steps, 7.0), rng.random(steps) < 0.1, rng.standard_t(1.5, steps), rng.random(steps) + 3,
        rng.integers(0, 5, steps), rng.uniform(0, 2 * np.pi, steps),
    ]  # fmt: skip
    rows = np.concatenate([np.asarray(c, np.float64).reshape(steps, -1) for c in columns], 1)
    expected = [
        "signed",
        *["one-hot"] * 3,
        "wrapping",
        "constant",
        "binary",
        "heavy-tailed",
        "positive",
        "levels",
        "positive",
    ]
    assert list(describe_channels([rows[:900], rows[900:]]).kinds) == expected


def test_groups_from_fields_and_ids():
    ids = ["exp01_user01", "exp02_user01", "exp03_user02"]
    assert find_groups({key: {} for key in ids})[0] == {ids[0]: "user01", ids[1]: "user01", ids[2]: "user02"}
    entries = {"a": {"subject": 1}, "b": {"subject": 1}, "c": {"subject": 2}}
    assert find_groups(entries) == ({"a": "1", "b": "1", "c": "2"}, '"subject" of the annotations')
    assert find_groups({"seq1": {}, "seq2": {}}) == ({"seq1": "seq1", "seq2": "seq2"}, "")


def test_whole_groups_are_held_out_and_no_class_is_lost():
    recordings = [(f"r{i}", frozenset({0, 1} if i else {0, 2})) for i in range(20)]
    groups = {key: f"g{i // 2}" for i, (key, _) in enumerate(recordings)}
    for share in (0.05, 0.12, 0.5):
        chosen, _ = held_out(recordings, groups, share)
        assert chosen and "r0" not in chosen  # the only recording of class 2 stays
        assert all(
            (key in chosen) == (other in chosen) for key in groups for other in groups if groups[key] == groups[other]
        )
    assert held_out(recordings[:3], groups)[0] == []
    assert held_out([(key, frozenset({i})) for i, (key, _) in enumerate(recordings)], groups)[0] == []


def test_a_plan_is_a_configuration_with_reasons(plain, tmp_path):
    found = read_fingerprint(plain)
    assert (found.rate, len(found.recordings), found.same_class_overlap) == (20.0, 8, 0.0)
    for model in ("tzn", "actionformer"):
        plan = make_plan(found, model=model)
        path = tmp_path / f"{model}.yaml"
        path.write_text(plan_text(plan, "tzn init", data="plain"))
        assert load_config(path) == plan.config()
        lines = path.read_text().splitlines()
        settings = [i for i, line in enumerate(lines) if line.startswith("  ") and not line.startswith("  #")]
        whole = yaml.safe_load(path.read_text())
        assert {name for section in whole.values() for name in section} >= {
            "crops_per_epoch",
            "patience",
            "max_segments",
        }
        chosen = sum(len(c) for c in plan.sections.values())
        assert len(settings) > chosen  # the rest stands there too, as always


def test_raw_signals_are_pooled_and_short_ones_are_not(plain, tmp_path):
    assert make_plan(read_fingerprint(plain)).value("data", "pool") == 1
    fine = make_plan(read_fingerprint(many(tmp_path / "fine", 4, 500.0, 100.0, (2.0, 10.0), 2)))
    pool, config = fine.value("data", "pool"), fine.config()
    assert 500 * 2 / 16 / 2 < pool <= 500 * 2.4 / 16  # about 16 steps in the shortest
    # Too many samples a step to lie side by side: their spectrogram; of ActionFormer, which has no front end, their mean.
    assert (config.data.pool_kind, config.model.input_dim) == ("flatten", 4 * pool)
    assert (config.model.front_end, config.model.front_end_samples) == ("spectrogram", pool)
    assert config.stored_dim == 4
    plain_mean = make_plan(fine.found, model="actionformer")
    assert plain_mean.value("data", "pool_kind") == "mean" and plain_mean.value("actionformer", "input_dim") == 4


def test_flags_and_angles_stay_exact_and_rhythm_is_not_stretched(tmp_path):
    rng = np.random.default_rng(0)
    made = {}
    for i in range(4):
        x, _ = signal(rng, 10.0, 80.0, (1.0, 3.0), 1, channels=2)
        beats = [(t, t + 2.0, "beat") for t in np.arange(1.0, 76.0, 4.0)]
        flag = (rng.random((len(x), 1)) < 0.2).astype(np.float32)
        made[f"p{i}"] = (np.concatenate([x, flag], 1), beats, {"fps": 10, "duration": 80.0})
    plan = make_plan(read_fingerprint(write_set(tmp_path / "beats", made)))
    assert plan.value("data", "exact_channels") == [2]
    assert plan.value("data", "stretch") == 0.0


def test_crops_follow_length_and_steps_follow_the_budget(tmp_path):
    found = read_fingerprint(many(tmp_path / "long", 5, 20.0, 3000.0, (1.0, 4.0), 2))
    free = make_plan(found)
    steps = lambda plan: (  # noqa: E731
        plan.value("training", "epochs") * plan.value("data", "crops_per_epoch") // plan.value("training", "batch_size")
    )
    assert plan_passes(free, found) == pytest.approx(40, rel=0.1)
    tight = make_plan(found, minutes=10, measure=lambda config: Cost(1.0 if config.model.width > 64 else 0.5, 1e-6))
    assert tight.value("model", "width") == 64
    assert steps(tight) < steps(free)
    assert tight.minutes is not None and tight.minutes <= 10
    half_life = np.log(0.5) / np.log(tight.value("training", "ema_decay")) / steps(tight)
    assert half_life == pytest.approx(0.08, rel=0.1)
    with pytest.raises(ConfigError, match="minutes"):
        make_plan(found, minutes=0)


def plan_passes(plan, found) -> float:
    crops = plan.value("training", "epochs") * plan.value("data", "crops_per_epoch")
    return crops * plan.value("data", "max_length") / found.steps.sum()


@pytest.mark.parametrize(
    ("count", "rate", "seconds", "lengths", "fields"),
    [
        (1, 20.0, 60.0, (1.0, 4.0), {}),
        (8, 5.0, 3.0, (0.4, 0.8), {}),
        (4, 12.5, 60.0, (1.0, 4.0), {"fps": None}),
        (4, 12.5, 60.0, (1.0, 4.0), {"duration": None}),
        (3, 10.0, 3600.0, (5.0, 3000.0), {}),
        (4, 20.0, 60.0, (1.0, 4.0), {"subset": "Validation"}),
    ],
)
def test_odd_data_get_a_plan(tmp_path, count, rate, seconds, lengths, fields):
    found = read_fingerprint(many(tmp_path / "odd", count, rate, seconds, lengths, 1, **fields))
    assert found.rate == pytest.approx(rate, rel=0.05)
    for model in ("tzn", "actionformer"):
        assert make_plan(found, model=model).config().model.num_classes == 1


def test_what_cannot_be_planned_is_said(tmp_path, plain):
    with pytest.raises(DataError, match="no such folder"):
        read_fingerprint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no annotations"):
        read_fingerprint(tmp_path / "empty")
    silent = many(tmp_path / "silent", 2, 20.0, 60.0, (1.0, 4.0), 1)
    content = json.loads((silent / "annotations.json").read_text())
    for entry in content["database"].values():
        entry.pop("fps"), entry.pop("duration")
    (silent / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="how long a step"):
        read_fingerprint(silent)


def test_stride_of_features_is_found_from_durations(tmp_path):
    rng = np.random.default_rng(0)
    made = {}
    for i in range(3):
        x, segments = signal(rng, 10.0, 60.0, (1.0, 4.0), 1)
        made[f"r{i}"] = (x, segments, {"fps": 50.0, "duration": 60.0 + 0.05 * i})
    found = read_fingerprint(write_set(tmp_path / "strided", made))
    assert (found.data.feat_stride, found.data.fps, found.rate) == (5.0, 50.0, 10.0)


def test_rules_can_be_replaced(plain):
    from tzn.planning.plan import Rules

    found = read_fingerprint(plain)
    changed = make_plan(found, rules=dataclasses.replace(Rules(), learning_rate=5e-4, window=31))
    assert (changed.value("training", "learning_rate"), changed.value("model", "window")) == (5e-4, 31)


def test_signals_as_they_are_become_features(tmp_path):
    rng = np.random.default_rng(0)
    folder, database = tmp_path / "phone", {}
    (folder / "recordings").mkdir(parents=True)
    for i, rate in enumerate((50.0, 100.0, 100.0, 100.0)):
        x, segments = signal(rng, rate, 40.0, (2.0, 6.0), 2)
        rows = np.concatenate([np.arange(len(x))[:, None] / rate, x], 1)
        np.savetxt(folder / f"recordings/r{i}.csv", rows, delimiter=",", header="time,a,b,c,d", comments="", fmt="%.4f")
        annotations = [{"segment": [s, e], "label": label} for s, e, label in segments]
        database[f"r{i}"] = {"subset": "training", "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    plan = make_plan(read_fingerprint(folder, progress=False))
    config = plan.config()
    assert (config.front_end.extractor, config.front_end.rate, plan.found.rate) == ("samples", 100.0, 100.0)
    assert config.data.pool > 4 and config.stored_dim == 4
    assert plan.found.steps.tolist() == [4000] * 4

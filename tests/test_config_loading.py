"""Configuration files and overrides: conversion, errors with the nearest name, round trips, the shipped files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from tzn.config import DataConfig, ExperimentConfig, TrainingConfig
from tzn.config_loading import config_from_dict, config_to_dict, dump_config, load_config, override_config
from tzn.errors import ConfigError
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHAPE = ("model.input_dim=4", "model.num_classes=2")
MINIMAL = "model: {input_dim: 4, num_classes: 2}\n"


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return _write


def test_defaults_are_those_of_the_dataclasses(write):
    expected = ExperimentConfig(TemporalZoomNetConfig(input_dim=4, num_classes=2))
    assert load_config(write(MINIMAL)) == load_config(None, SHAPE) == expected


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("training.epochs=7", "training", "epochs", 7),
        ("training.epochs=7.0", "training", "epochs", 7),
        ("data.max_length=1e3", "data", "max_length", 1000),  # a text to YAML 1.1
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),  # a text to YAML 1.1
        ("training.weight_decay=0", "training", "weight_decay", 0.0),
        ("training.precision=32", "training", "precision", "32"),
        ("data.crop_ratio=[0.5, 1]", "data", "crop_ratio", (0.5, 1.0)),
        ("data.crop_ratio=null", "data", "crop_ratio", None),
        ("data.fps=25", "data", "fps", 25.0),
        ("data.fixed_length=192", "data", "fixed_length", 192),
        ("data.single_class=true", "data", "single_class", True),
        ("data.validation=['exp01*', b]", "data", "validation", ("exp01*", "b")),
        ("data.file_prefix=", "data", "file_prefix", None),
        ("evaluation.top_k=[1, 2]", "evaluation", "top_k", (1, 2)),
        ("inference.budget=0.5", "inference", "budget", 0.5),
    ],
)
def test_override_is_converted(override, section, name, value):
    if value is None and name == "file_prefix":  # nothing is not a text
        with pytest.raises(ConfigError, match=r"data\.file_prefix = None: expected a text"):
            load_config(None, [*SHAPE, override])
        return
    found = getattr(getattr(load_config(None, [*SHAPE, override]), section), name)
    assert found == value and type(found) is type(value)


def test_nested_ranges_become_tuples_of_floats():
    ranges = "model.regression_ranges=[[0, 4], [4, 1e4]]"
    config = load_config(None, [*SHAPE, "model.num_levels=2", ranges])
    assert config.model.regression_ranges == ((0.0, 4.0), (4.0, 10000.0))
    assert hash(config.model) is not None


def test_later_overrides_win_over_earlier_and_over_the_file(write):
    path = write(MINIMAL + "training: {epochs: 9}\n")
    assert load_config(path).training.epochs == 9
    assert load_config(path, ["training.epochs=11", "training.epochs=12"]).training.epochs == 12


def test_override_config_changes_only_what_it_names():
    config = load_config(None, SHAPE)
    changed = override_config(config, ["inference.nms=hard"])
    assert changed.inference.nms == "hard"
    assert dataclasses.replace(changed, inference=config.inference) == config
    with pytest.raises(ConfigError, match="did you mean 'nms'"):
        override_config(config, ["inference.nsm=hard"])


BAD_OVERRIDES = [
    pytest.param("training.epoch=3", r"unknown name training\.epoch; did you mean 'epochs'\?", id="typo"),
    pytest.param("model.epochs=3", r"did you mean training\.epochs\?", id="wrong-section"),
    pytest.param("epochs=3", r"expected section\.name=value.*did you mean training\.epochs\?", id="no-section"),
    pytest.param("trainig.epochs=3", r"unknown section 'trainig'; did you mean 'training'\?", id="section-typo"),
    pytest.param("data.zzz=1", "expected one of: annotations, features", id="nothing-near"),
    pytest.param("training.epochs", "expected section.name=value", id="no-value"),
    pytest.param("training.=3", "expected section.name=value", id="no-name"),
    pytest.param("training.epochs=[1", "not valid YAML", id="broken-yaml"),
    pytest.param("training.epochs=2.5", "training.epochs = 2.5: expected an integer", id="half-an-epoch"),
    pytest.param("training.epochs=many", "training.epochs = 'many': expected an integer", id="text-for-integer"),
    pytest.param("training.epochs=true", "training.epochs = True: expected an integer", id="bool-for-integer"),
    pytest.param("training.learning_rate=.nan", "expected a number", id="NaN"),
    pytest.param("training.learning_rate=null", "expected a number", id="null-for-number"),
    pytest.param("data.single_class=1", "data.single_class = 1: expected true or false", id="number-for-bool"),
    pytest.param("data.fps=fast", "data.fps = 'fast': expected a number > 0, or null", id="text-for-optional"),
    pytest.param(
        "data.crop_ratio=[1]", "expected a list of 2 values 0 < low <= high <= 1, or null", id="list-too-short"
    ),
    pytest.param("data.validation=exp01", "data.validation = 'exp01': expected a list", id="text-for-list"),
    pytest.param("evaluation.tiou=[0.5, x]", "expected a list, each a number", id="text-in-list"),
    pytest.param("model.regression_ranges=[[0, 4], 5]", "each a list of 2 values", id="flat-range"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_bad_override(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(None, [*SHAPE, override])
    assert f"override {override!r}" in str(error.value)


BAD_FILES = [
    pytest.param("model: {input_dim: 4}\n", "model.num_classes must be set", id="required-missing"),
    pytest.param("", "model.input_dim and model.num_classes must be set", id="empty"),
    pytest.param("modell: {}\n", r"unknown section 'modell'; did you mean 'model'\?", id="section-typo"),
    pytest.param("epochs: 3\n", r"unknown section 'epochs'; did you mean training\.epochs\?", id="name-at-top"),
    pytest.param("model: 3\n", "section 'model' is 3, expected names and values", id="section-is-a-number"),
    pytest.param("- 1\n", "expected sections model, data, .*found a list", id="list"),
    pytest.param("model: {input_dim: 4\n", "not valid YAML", id="broken"),
    pytest.param(MINIMAL + "data: {fps: 5, fps: 6}\n", "'fps' is set twice", id="name-twice"),
    pytest.param(MINIMAL + "data: {}\ndata: {}\n", "'data' is set twice", id="section-twice"),
    pytest.param(MINIMAL + "data: {crop_ratio: [0.9, 2]}\n", r"crop_ratio = \[0\.9, 2\]: expected a list", id="range"),
    pytest.param("model: {input_dim: 4, num_classes: 2, width: 30}\n", "width = 30: expected .* divisible", id="model"),
]  # fmt: skip


def _hostile():
    many = "9" * 5000
    yield pytest.param(MINIMAL + f"data: {{max_length: {many}}}\n", "digits", id="integer-of-5000-digits")
    yield pytest.param(MINIMAL + f"data: {{max_length: {many[:4000]}}}\n", "data.max_length = 9", id="4000-digits")
    yield pytest.param(MINIMAL + "data: {validation: " + "[" * 3000 + "\n", "nested too deeply", id="3000-brackets")
    yield pytest.param("data: {fps: 2026-02-30}\n", "not valid YAML", id="a-date-that-is-none")
    yield pytest.param(MINIMAL + "data: &a {validation: [*a]}\n", "data.validation", id="a-list-in-itself")
    yield pytest.param("? [a, b]\n: 3\n", "not valid YAML|unknown section", id="a-list-as-a-name")


@pytest.mark.parametrize(("text", "message"), [*BAD_FILES, *_hostile()])
def test_bad_file(write, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(text))
    assert "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_range_error_caused_by_an_override_names_it():
    with pytest.raises(
        ConfigError, match=r"override.*training\.epochs=0.*training\.epochs = 0: expected an integer >= 1"
    ):
        load_config(CONFIGS / "hapt.yaml", ["training.epochs=0"])


def test_missing_file_lists_its_folder(write):
    folder = write(MINIMAL).parent
    with pytest.raises(ConfigError, match=r"hapt\.yaml: no such configuration; .* has: mine\.yaml"):
        load_config(folder / "hapt.yaml")
    with pytest.raises(ConfigError, match=r"has: .*activitynet_tsp\.yaml, .*synthetic\.yaml"):
        load_config(folder / "nowhere" / "other.yaml")


def test_shipped_files_are_found_from_anywhere_but_own_files_come_first(write, monkeypatch):
    folder = write(MINIMAL).parent
    monkeypatch.chdir(folder)
    shipped = load_config(CONFIGS / "hapt.yaml")
    assert load_config("configs/hapt.yaml") == load_config("hapt.yaml") == shipped
    (folder / "hapt.yaml").write_text(MINIMAL)
    assert load_config("hapt.yaml") == load_config(None, SHAPE)
    with pytest.raises(ConfigError, match=r"runs/hapt\.yaml: no such configuration"):
        load_config("runs/hapt.yaml")


def test_empty_section_means_defaults(write):
    assert load_config(write(MINIMAL + "data:\n")).data == DataConfig()


@pytest.fixture
def unusual():
    return load_config(
        CONFIGS / "epic_verb.yaml",
        ["training.learning_rate=1e-5", "data.crop_ratio=null", "data.validation=['*é']", "inference.budget=0.25"],
    )


def test_dict_round_trip_is_plain_data(unusual, tmp_path):
    plain = config_to_dict(unusual)
    assert config_from_dict(plain) == unusual
    torch.save(plain, tmp_path / "config.pt")
    assert config_from_dict(torch.load(tmp_path / "config.pt", weights_only=True)) == unusual

    def types(value):
        if isinstance(value, dict):
            return set().union(*map(types, value.values()))
        return set().union({list}, *map(types, value)) if isinstance(value, list) else {type(value)}

    assert types(plain) <= {list, str, int, float, bool, type(None)}


def test_yaml_round_trip(unusual, write):
    text = dump_config(unusual)
    assert load_config(write(text)) == unusual
    assert list(yaml.safe_load(text)) == ["model", "data", "front_end", "training", "inference", "evaluation"]


def test_checkpoint_of_another_version_names_the_unknown_setting():
    plain = config_to_dict(load_config(None, SHAPE))
    plain["training"]["epoches"] = 1
    with pytest.raises(ConfigError, match=r"unknown name training\.epoches; did you mean 'epochs'"):
        config_from_dict(plain)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configuration(path):
    config = load_config(path)
    assert path.read_text().startswith("# ") and f"configs/{path.name}" in path.read_text().split("\nmodel:")[0]
    coarsest = config.model.strides[-1]
    assert config.data.max_length % coarsest == 0 and config.data.max_length >= 2 * coarsest
    kind = config.model
    ranges = kind.regression_range if isinstance(kind, ActionFormerConfig) else kind.regression_ranges
    assert ranges[-1][1] == 10000
    assert (config.model.num_classes == 1) == config.data.single_class
    assert config_from_dict(config_to_dict(config)) == config


def test_all_expected_configurations_are_there():
    names = "synthetic hapt ludb thumos14_i3d activitynet_tsp epic_verb epic_noun fineaction multithumos"
    assert {p.stem for p in CONFIGS.glob("*.yaml")} >= set(names.split())


def test_actionformer_recipe_of_thumos():
    config = load_config(CONFIGS / "thumos14_i3d.yaml")
    training = TrainingConfig(epochs=35, warmup_epochs=5, batch_size=2, learning_rate=1e-4, weight_decay=0.05)
    assert config.training == training
    assert (config.data.feat_stride, config.data.num_frames, config.model.input_dim) == (4, 16, 2048)


def test_shipped_configurations_fit_the_real_annotations(shared):
    from tzn.data.annotations import load_annotations
    from tzn.data.dataset import class_names, select_recordings

    files = {
        "hapt": "hapt/annotations.json",
        "ludb": "ludb/annotations.json",
        "thumos14_i3d": "thumos14/annotations.json",
        "activitynet_tsp": "annotations/activitynet13.json.gz",
        "epic_verb": "annotations/epic100_verb.json.gz",
        "epic_noun": "annotations/epic100_noun.json.gz",
        "multithumos": "annotations/multithumos.json.gz",
    }
    for name, file in files.items():
        config = load_config(CONFIGS / f"{name}.yaml")
        annotations = load_annotations(shared / "data" / file, strict=False)
        assert len(class_names(annotations, config.data)) == config.model.num_classes, name
        assert select_recordings(annotations, config.data, "train") and select_recordings(
            annotations, config.data, "test"
        )
        assert set(config.evaluation.short_classes) <= set(annotations.classes), name

"""ActionFormer's configuration files against the recipes that come with the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tzn.compat.actionformer import DEFAULTS, load_any_config, translate_config
from tzn.config_loading import load_config
from tzn.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EPIC_RANGE = [[0, 4], [2, 8], [4, 16], [8, 32], [16, 64], [32, 10000]]
COMMON = {"crop_ratio": [0.9, 1.0]}
ANET = {
    "dataset_name": "anet",
    "train_split": ["training"],
    "val_split": ["validation"],
    "dataset": COMMON
    | {"num_classes": 1, "feat_stride": 16, "num_frames": 16, "max_seq_len": 192, "force_upsampling": True,
       "file_prefix": "v_"},
    "model": {"n_mha_win_size": [7, 7, 7, 7, 7, -1], "embd_dim": 256, "fpn_dim": 256, "head_dim": 256, "use_abs_pe": True,
              "max_buffer_len_factor": 1.0},
    "opt": {"learning_rate": 1e-3, "epochs": 10, "weight_decay": 0.05},
    "loader": {"batch_size": 16},
    "train_cfg": {"init_loss_norm": 200, "clip_grad_l2norm": 1.0, "label_smoothing": 0.1, "loss_weight": 2.0},
    "test_cfg": {"voting_thresh": 0.9, "pre_nms_topk": 2000, "max_seg_num": 100, "min_score": 0.001, "nms_sigma": 0.75,
                 "multiclass_nms": False, "ext_score_file": "scores.json", "duration_thresh": 0.001},
}  # fmt: skip
EPIC = {
    "dataset_name": "epic",
    "dataset": COMMON | {"file_ext": ".npz", "default_fps": 30, "trunc_thresh": 0.3, "json_file": "a.json"},
    "model": {"n_mha_win_size": 9, "regression_range": EPIC_RANGE},
    "opt": {"learning_rate": 1e-4, "epochs": 16, "weight_decay": 0.05},
    "loader": {"batch_size": 2},
    "train_cfg": {"init_loss_norm": 250, "clip_grad_l2norm": 1.0},
    "test_cfg": {"max_seg_num": 2000, "min_score": 0.001, "nms_sigma": 0.4},
}
# Effective values of the released files, by the recipe of ours that describes the same network.
RELEASED = {
    "thumos14_i3d": {
        "dataset_name": "thumos",
        "train_split": ["validation"],
        "val_split": ["test"],
        "dataset": COMMON | {"num_classes": 20, "input_dim": 2048, "feat_stride": 4, "num_frames": 16, "file_prefix": None},
        "model": {"fpn_type": "identity", "n_mha_win_size": 19},
        "opt": {"learning_rate": 1e-4, "epochs": 30, "weight_decay": 0.05},
        "loader": {"batch_size": 2},
        "train_cfg": {"init_loss_norm": 100, "clip_grad_l2norm": 1.0},
        "test_cfg": {"voting_thresh": 0.7, "pre_nms_topk": 2000, "max_seg_num": 200, "min_score": 0.001},
        "output_folder": "./ckpt/",
    },
    "activitynet_tsp": ANET | {"dataset": ANET["dataset"] | {"input_dim": 512, "default_fps": 15}},
    "activitynet_i3d": ANET | {"dataset": ANET["dataset"] | {"input_dim": 2048, "default_fps": 25}},
    "epic_verb": EPIC,
    "epic_noun": EPIC
    | {"dataset": EPIC["dataset"] | {"num_classes": 293}, "train_cfg": EPIC["train_cfg"] | {"label_smoothing": 0.1}},
    "ego4d_slowfast": {
        "dataset_name": "ego4d",
        "dataset": COMMON | {"num_classes": 110, "default_fps": 30, "max_seq_len": 1024, "trunc_thresh": 0.3},
        "model": {"n_mha_win_size": 9, "use_abs_pe": True, "backbone_arch": [2, 2, 6],
                  "regression_range": [[0, 4], [2, 8], [4, 16], [8, 32], [16, 64], [32, 128], [64, 10000]]},
        "opt": {"learning_rate": 1e-4, "epochs": 10, "weight_decay": 0.05},
        "loader": {"batch_size": 2},
        "train_cfg": {"init_loss_norm": 100, "clip_grad_l2norm": 1.0, "dropout": 0.1},
        "test_cfg": {"voting_thresh": 0.95, "max_seg_num": 2000, "min_score": 0.001, "nms_sigma": 0.9},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_the_recipe_of_the_same_network(tmp_path, name):
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(yaml.safe_dump(RELEASED[name]))
    ours = load_config(CONFIGS / f"actionformer_{name}.yaml")
    translated = load_any_config(theirs)
    # The recipes check annotations strictly where they can; subset names ignore case.
    data = dataclasses.replace(
        translated.data, strict=ours.data.strict,
        train_subset=translated.data.train_subset.capitalize() if name == "thumos14_i3d" else "training",
        test_subset=translated.data.test_subset.capitalize() if name == "thumos14_i3d" else "validation",
    )  # fmt: skip
    assert dataclasses.replace(translated, data=data) == ours


def test_what_a_file_leaves_out_takes_actionformers_defaults():
    config = translate_config({"dataset": {}})
    assert config.model.n_mha_win_size == DEFAULTS["model"]["n_mha_win_size"] == -1
    assert (config.inference.max_segments, config.inference.min_score) == (1000, 0.01)
    assert (config.training.epochs, config.training.loss_norm) == (35, 2000)
    assert config.data.crop_ratio is None


def test_our_own_files_and_overrides_with_our_names(tmp_path):
    path = CONFIGS / "actionformer_thumos14_i3d.yaml"
    assert load_any_config(path) == load_config(path)
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(yaml.safe_dump(RELEASED["thumos14_i3d"]))
    assert load_any_config(theirs, ["actionformer.num_classes=7"]).model.num_classes == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"dataset": {}, "model_name": "TriDet"}, "model_name = 'TriDet': expected"),
        ({"dataset": {}, "model": {"n_sgp_win_size": 3}}, r"model\.n_sgp_win_size: not an option of ActionFormer"),
        ({"dataset": {}, "test_cfg": {"nms_sigm": 3}}, r"test_cfg\.nms_sigm: not an option"),
        ({"dataset": {"downsample_rate": 2}}, r"dataset\.downsample_rate = 2: tzn has only 1"),
        ({"dataset": {}, "opt": {"type": "SGD"}}, r"opt\.type = 'SGD': tzn has only 'AdamW'"),
        ({"dataset": {"file_ext": ".hdf5"}}, "translated: .*file_suffix"),
        ({"dataset": {}, "val_split": ["a", "b"]}, "val_split = .* expected a list of one"),
        ({"dataset": {}, "model": 3}, "model is 3, expected names and values"),
    ],
    ids=["a-fork", "fork-option", "typo", "downsampling", "sgd", "hdf5", "two-splits", "number"],
)
def test_what_tzn_does_not_have_is_named(tmp_path, content, message):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_any_config(path)
    assert str(path) in str(caught.value)

"""ActionFormer's own configuration files as configurations of tzn (facts: Zhang, Wu, Li, ECCV 2022, and its release)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, load_config, override_config, read_yaml
from tzn.errors import ConfigError

# What ActionFormer takes for a key that a file leaves out. Keys of "model" and "test_cfg" that are not here are refused,
# because they may change the network; of the others, those not here only say where files lie.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dataset": {
        "feat_stride": 16, "num_frames": 32, "default_fps": None, "input_dim": 2304, "num_classes": 97,
        "downsample_rate": 1, "max_seq_len": 2304, "trunc_thresh": 0.5, "crop_ratio": None, "force_upsampling": False,
        "file_prefix": None, "file_ext": ".npy",
    },
    "loader": {"batch_size": 8},
    "model": {
        "backbone_type": "convTransformer", "fpn_type": "identity", "backbone_arch": [2, 2, 5], "scale_factor": 2,
        "regression_range": [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]], "n_head": 4,
        "n_mha_win_size": -1, "embd_kernel_size": 3, "embd_dim": 512, "embd_with_ln": True, "fpn_dim": 512,
        "fpn_with_ln": True, "fpn_start_level": 0, "head_dim": 512, "head_kernel_size": 3, "head_num_layers": 3,
        "head_with_ln": True, "max_buffer_len_factor": 6.0, "use_abs_pe": False, "use_rel_pe": False,
    },
    "train_cfg": {
        "center_sample": "radius", "center_sample_radius": 1.5, "loss_weight": 1.0, "cls_prior_prob": 0.01,
        "init_loss_norm": 2000, "clip_grad_l2norm": -1, "head_empty_cls": [], "dropout": 0.0, "droppath": 0.1,
        "label_smoothing": 0.0,
    },
    "test_cfg": {
        "pre_nms_thresh": 0.001, "pre_nms_topk": 5000, "iou_threshold": 0.1, "min_score": 0.01, "max_seg_num": 1000,
        "nms_method": "soft", "nms_sigma": 0.5, "duration_thresh": 0.05, "multiclass_nms": True, "ext_score_file": None,
        "voting_thresh": 0.75,
    },
    "opt": {
        "type": "AdamW", "weight_decay": 0.0, "learning_rate": 1e-3, "epochs": 30, "warmup": True, "warmup_epochs": 5,
        "schedule_type": "cosine",
    },
}  # fmt: skip
NETWORK = ("model", "test_cfg")
OURS = ("model", "actionformer", "data", "training", "inference", "evaluation")
FROM_MODEL = (
    "backbone_type", "fpn_type", "backbone_arch", "scale_factor", "regression_range", "n_head", "n_mha_win_size",
    "embd_kernel_size", "embd_dim", "embd_with_ln", "fpn_dim", "fpn_with_ln", "head_dim", "head_kernel_size",
    "head_num_layers", "head_with_ln", "use_abs_pe", "use_rel_pe",
)  # fmt: skip
FROM_TEST = ("pre_nms_thresh", "pre_nms_topk", "iou_threshold", "min_score", "duration_thresh", "voting_thresh")
TIOU = {
    "thumos": [0.3, 0.4, 0.5, 0.6, 0.7],
    "anet": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
    "epic": [0.1, 0.2, 0.3, 0.4, 0.5],
    "ego4d": [0.1, 0.2, 0.3, 0.4, 0.5],
}
UNSUPPORTED = {  # by section and key, the only value that tzn has
    ("dataset", "downsample_rate"): 1,
    ("model", "fpn_start_level"): 0,
    ("train_cfg", "center_sample"): "radius",
    ("opt", "type"): "AdamW",
    ("opt", "schedule_type"): "cosine",
}


def load_any_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """A configuration of tzn, or one of ActionFormer's YAML files translated; see :func:`translate_config`.

    Args:
        overrides: ``section.name=value`` texts with tzn's names, as for :func:`tzn.config_loading.load_config`.

    Raises:
        ConfigError: missing or invalid file, an option that tzn does not have.
    """
    content = read_yaml(Path(path))
    if "dataset" not in content or any(section in content for section in OURS if section != "model"):
        return load_config(path, overrides)
    return override_config(translate_config(content, str(path)), overrides)


def translate_config(content: Mapping[str, Any], source: str = "configuration") -> ExperimentConfig:
    """The configuration of tzn that describes the same network, data, training and decoding.

    Args:
        content: of an ActionFormer YAML file; what it leaves out takes ActionFormer's defaults.
        source: named in errors.

    Raises:
        ConfigError: another network, an unknown option of the network, a value that tzn does not have.
    """
    name = content.get("model_name", "LocPointTransformer")
    if name != "LocPointTransformer":
        raise ConfigError(f"{source}: model_name = {name!r}: expected 'LocPointTransformer', ActionFormer's network")
    parts = {section: _merged(content, section, source) for section in DEFAULTS}
    for (section, key), only in UNSUPPORTED.items():
        if parts[section][key] != only:
            raise ConfigError(f"{source}: {section}.{key} = {parts[section][key]!r}: tzn has only {only!r}")
    data, model, train, test, opt = (parts[s] for s in ("dataset", "model", "train_cfg", "test_cfg", "opt"))
    kind = str(content.get("dataset_name", "epic"))
    warmup = opt["warmup_epochs"] if opt["warmup"] else 0
    upsampled = data["force_upsampling"]
    sections: dict[str, dict[str, Any]] = {
        "actionformer": {
            **{key: model[key] for key in FROM_MODEL},
            **{key: data[key] for key in ("input_dim", "num_classes", "max_seq_len")},
            **{key: train[key] for key in ("cls_prior_prob", "head_empty_cls", "dropout", "droppath")},
        },
        "data": {
            "strict": False, "train_subset": _split(content, "train_split", "training", source),
            "test_subset": _split(content, "val_split", "validation", source), "file_prefix": data["file_prefix"] or "",
            "file_suffix": data["file_ext"], "fps": data["default_fps"], "feat_stride": data["feat_stride"],
            "num_frames": data["num_frames"], "fixed_length": data["max_seq_len"] if upsampled else None,
            "single_class": kind == "anet" and data["num_classes"] == 1, "max_length": data["max_seq_len"],
            "crop_ratio": data["crop_ratio"], "trunc_thresh": data["trunc_thresh"],
        },
        "training": {
            "epochs": opt["epochs"] + warmup, "warmup_epochs": warmup, "batch_size": parts["loader"]["batch_size"],
            "learning_rate": opt["learning_rate"], "weight_decay": opt["weight_decay"],
            "loss_norm": train["init_loss_norm"], "offset_weight": train["loss_weight"],
            "label_smoothing": train["label_smoothing"], "center_radius": train["center_sample_radius"],
        },
        "inference": {
            **{key: test[key] for key in FROM_TEST}, "nms": test["nms_method"], "multiclass": test["multiclass_nms"],
            "sigma": test["nms_sigma"], "max_segments": test["max_seg_num"],
        },
        "evaluation": {"tiou": TIOU[kind]} if kind in TIOU else {},
    }  # fmt: skip
    if train["clip_grad_l2norm"] > 0:
        sections["training"]["clip_norm"] = train["clip_grad_l2norm"]
    try:
        return config_from_dict(sections)
    except ConfigError as error:
        raise ConfigError(f"{source}, translated: {error}") from None


def _merged(content: Mapping[str, Any], section: str, source: str) -> dict[str, Any]:
    given = content.get(section) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{source}: {section} is {given!r:.60}, expected names and values")
    unknown = [key for key in given if key not in DEFAULTS[section]]
    if unknown and section in NETWORK:
        raise ConfigError(f"{source}: {section}.{unknown[0]}: not an option of ActionFormer; is it a fork's file?")
    return {**DEFAULTS[section], **{key: value for key, value in given.items() if key in DEFAULTS[section]}}


def _split(content: Mapping[str, Any], key: str, default: str, source: str) -> str:
    names = content.get(key, [default])
    if not (isinstance(names, (list, tuple)) and len(names) == 1 and isinstance(names[0], str)):
        raise ConfigError(f"{source}: {key} = {names!r:.60}: expected a list of one subset name")
    return names[0]

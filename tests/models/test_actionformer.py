from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tzn.config import InferenceConfig, TrainingConfig
from tzn.data.grid import TimeGrid
from tzn.errors import CheckpointError
from tzn.inference.localize import candidates, localize
from tzn.models.actionformer import ActionFormer
from tzn.models.actionformer_checkpoint import load_actionformer_checkpoint
from tzn.models.config import ActionFormerConfig
from tzn.training.objective import ActionFormerObjective

TINY = ["thumos_like", "anet_like", "ego4d_like", "conv_backbone"]
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def golden_config(original: dict) -> ActionFormerConfig:
    """Our configuration from the original's constructor arguments."""
    skip = {"train_cfg", "test_cfg", "max_buffer_len_factor", "fpn_start_level"}
    values = {k: _tuples(v) for k, v in original.items() if k not in skip}
    train = original["train_cfg"]
    extra = {k: _tuples(train[k]) for k in ("cls_prior_prob", "head_empty_cls", "dropout", "droppath")}
    return ActionFormerConfig(**values, **extra)


def tiny(goldens: Path, variant: str) -> tuple[ActionFormer, dict, dict[str, np.ndarray]]:
    info = json.loads((goldens / "full" / "model_tiny.json").read_text())["variants"][variant]
    arrays = np.load(goldens / "full" / "model_tiny.npz")
    mine = {k.removeprefix(f"{variant}/"): arrays[k] for k in arrays.files if k.startswith(f"{variant}/")}
    model = ActionFormer(golden_config(info["config"])).eval()
    model.load_state_dict({k.removeprefix("sd/"): torch.from_numpy(v) for k, v in mine.items() if k.startswith("sd/")})
    return model, info, mine


CASES = [
    (v, c) for v in TINY for c in ("full", "padded", "padded_garbage", "long") if (v, c) != ("conv_backbone", "long")
]


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_outputs_equal_the_original(goldens, variant, case):
    model, _, arrays = tiny(goldens, variant)
    features = torch.from_numpy(arrays[f"{case}/x"]).transpose(1, 2)
    mask = torch.from_numpy(arrays[f"{case}/mask"])[:, 0]
    with torch.no_grad():
        outputs = model(features, mask)
    for level in range(len(model.config.strides)):
        for name, found in (("cls", outputs.class_logits), ("off", outputs.offsets), ("fpn", outputs.features)):
            wanted = torch.from_numpy(arrays[f"{case}/{name}{level}"]).transpose(1, 2)
            torch.testing.assert_close(found[level], wanted, **TOLERANCE)
        assert torch.equal(outputs.masks[level], torch.from_numpy(arrays[f"{case}/mask{level}"])[:, 0])


def released(goldens: Path, name: str) -> tuple[ActionFormer, dict, dict[str, np.ndarray]]:
    info = json.loads((goldens / f"{name}.json").read_text())
    arrays = np.load(goldens / f"{name}.npz")
    config = ActionFormerConfig(
        input_dim=info["input_dim"], num_classes=info["num_classes"], embd_dim=info["embd_dim"], fpn_dim=info["embd_dim"],
        head_dim=info["embd_dim"], n_head=info["heads"], n_mha_win_size=info["window"], max_seq_len=info["max_seq_len"],
        backbone_arch=tuple(info["arch"]), regression_range=_tuples(info["regression_range"]),
        droppath=1e-9,  # the scales are there, no branch is dropped
    )  # fmt: skip
    model = ActionFormer(config).eval()
    weights = {k.removeprefix("weight/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("weight/")}
    model.load_state_dict(weights)
    return model, info, dict(arrays)


@pytest.mark.parametrize("case", ["full", "padded"])
@pytest.mark.parametrize("name", ["actionformer_w19", "actionformer_w9"])
def test_unpadded_inference_equals_the_padded_original(goldens, name, case):
    """Our padding is one coarse step; the original pads to its maximum length."""
    model, _, arrays = released(goldens, name)
    features = torch.from_numpy(arrays[f"{case}/input"]).T[None]
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    padded, padded_mask = model.padded(features, mask)
    assert padded.shape[1] <= model.config.original_length(features.shape[1])
    with torch.no_grad():
        outputs = model(padded, padded_mask)
    for level, valid in enumerate(outputs.masks):
        count = int(valid.sum())
        for key, found in (("cls_logits", outputs.class_logits), ("offsets", outputs.offsets)):
            wanted = torch.from_numpy(arrays[f"{case}/{key}{level}"]).T[:count]
            torch.testing.assert_close(found[level][0, :count], wanted, **TOLERANCE)


PADDED = {
    "wide heads": {"head_kernel_size": 5},
    "wider heads": {"head_kernel_size": 7, "head_num_layers": 3},
    "wide embedding": {"embd_kernel_size": 21},
    "wide embedding and heads": {"embd_kernel_size": 9, "head_kernel_size": 5, "backbone_arch": (3, 0, 2)},
    "global attention": {"n_mha_win_size": (5, -1, 3), "use_rel_pe": True},
    "positions": {"use_abs_pe": True},
    "no norms": {"embd_with_ln": False, "fpn_with_ln": False, "head_with_ln": False, "head_kernel_size": 1},
    "top-down": {"fpn_type": "fpn", "fpn_dim": 6},
    "top-down, wide heads": {"fpn_type": "fpn", "fpn_dim": 6, "head_kernel_size": 7, "embd_kernel_size": 5},
    "convolutions": {"backbone_type": "conv", "head_kernel_size": 5},
    "convolutions, wide embedding": {"backbone_type": "conv", "embd_kernel_size": 11, "backbone_arch": (1, 1, 2)},
    "scale of four": {"scale_factor": 4, "n_mha_win_size": (5, 5, 3)},
    "one level": {"backbone_arch": (2, 1, 0), "regression_range": ((0, 100),), "head_kernel_size": 5},
}


@pytest.mark.parametrize(("most", "lengths"), [(64, range(1, 41)), (720, (350, 351, 352, 353, 697, 698, 699, 700))])
@pytest.mark.parametrize("changes", PADDED.values(), ids=PADDED)
def test_our_padding_gives_what_the_longest_padding_gives(changes, most, lengths):
    """Lengths at every phase of the coarsest stride, those of one padded length in a batch, against the original's padding."""
    settings = {
        "input_dim": 3, "num_classes": 2, "embd_dim": 8, "fpn_dim": 8, "head_dim": 6, "n_head": 2, "n_mha_win_size": 5,
        "backbone_arch": (2, 1, 2), "max_seq_len": most, "head_num_layers": 2,
        "regression_range": ((0, 4), (4, 8), (8, 100)),
    }  # fmt: skip
    torch.manual_seed(0)
    model = ActionFormer(ActionFormerConfig(**(settings | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    features = torch.randn(max(lengths), 3, dtype=torch.float64)
    ours: dict[int, list[tuple[torch.Tensor, torch.Tensor, int]]] = {}
    for steps in lengths:
        given, mask = model.padded(features[None, :steps], torch.ones(1, steps, dtype=torch.bool))
        assert steps <= given.shape[1] <= model.config.original_length(steps)
        ours.setdefault(given.shape[1], []).append((given, mask, steps))
    for padded in ours.values():
        given, mask = (torch.cat([part[i] for part in padded]) for i in range(2))
        number = [part[2] for part in padded]
        long = max(model.config.original_length(steps) for steps in number)
        wide = torch.nn.functional.pad(given, (0, 0, 0, long - given.shape[1]))
        wide_mask = torch.nn.functional.pad(mask, (0, long - given.shape[1]))
        with torch.no_grad():
            found, wanted = model(given, mask), model(wide, wide_mask)
        for level, valid in enumerate(found.masks):
            for a, b in ((found.class_logits, wanted.class_logits), (found.offsets, wanted.offsets)):
                torch.testing.assert_close(a[level][valid], b[level][wanted.masks[level]], rtol=1e-9, atol=1e-9)


def test_keys_and_shapes_of_the_released_thumos_model(goldens):
    expected = json.loads((goldens / "actionformer_thumos_state_dict.json").read_text())
    expected = expected.get("state_dict", expected.get("keys", expected)) if isinstance(expected, dict) else expected
    model = ActionFormer(ActionFormerConfig(input_dim=2048, num_classes=20))
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    wanted = (
        {row[0]: row[1] for row in expected}
        if isinstance(expected, list)
        else {k: list(v) for k, v in expected.items()}
    )
    assert found == wanted
    assert sum(p.numel() for p in model.parameters()) == 29_251_612


def _settings(test: dict) -> InferenceConfig:
    same = ("pre_nms_thresh", "pre_nms_topk", "duration_thresh", "iou_threshold", "min_score", "voting_thresh")
    return InferenceConfig(
        **{name: test[name] for name in same}, max_segments=test["max_seg_num"], sigma=test["nms_sigma"],
        multiclass=test["multiclass_nms"], nms=test["nms_method"],
    )  # fmt: skip


def _same_detections(found, segments, scores, labels, voted: bool) -> None:
    def by_score(segments, scores, labels):
        return np.lexsort((segments[:, 0], labels, -np.round(scores, 4)))

    order, wanted = by_score(found.segments, found.scores, found.labels), by_score(segments, scores, labels)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_array_equal(found.labels[order], labels[wanted])
    np.testing.assert_allclose(found.segments[order], segments[wanted], atol=2e-3 if voted else 2e-4)


@pytest.mark.parametrize("case", ["full", "padded"])
@pytest.mark.parametrize("name", ["actionformer_w19", "actionformer_w9"])
def test_final_detections_equal_the_original(goldens, name, case):
    model, info, arrays = released(goldens, name)
    features = torch.from_numpy(arrays[f"{case}/input"]).T
    grid = TimeGrid.from_frames(4, 16, 30.0)
    found, _ = localize(model, features, grid, 1e4, _settings(info["test_cfg"]))
    expected = [arrays[f"{case}/result_{k}"] for k in ("segments", "scores", "labels")]
    _same_detections(found, *expected, voted=False)
    assert found.std is None


@pytest.mark.parametrize("variant", TINY)
def test_final_detections_of_every_variant_equal_the_original(goldens, variant):
    model, info, arrays = tiny(goldens, variant)
    meta, settings = info["infer"], _settings(info["config"]["test_cfg"])
    grid = TimeGrid.from_frames(meta["feat_stride"], meta["feat_num_frames"], meta["fps"])
    features = torch.from_numpy(arrays["infer/feats"]).T
    raw = candidates(model, features, settings)
    assert len(raw.scores) == meta["n_decoded"]
    found, _ = localize(model, features, grid, meta["duration"], settings)
    expected = [arrays[f"infer/{k}"] for k in ("segments", "scores", "labels")]
    _same_detections(found, *expected, voted=not settings.multiclass)


def _objective(model: ActionFormer, train: dict) -> ActionFormerObjective:
    config = TrainingConfig(
        loss_norm=train["init_loss_norm"], label_smoothing=train["label_smoothing"],
        offset_weight=train.get("loss_weight", 1.0), center_radius=train.get("center_sample_radius", 1.5),
    )  # fmt: skip
    return ActionFormerObjective(model.config, config).train()


@pytest.mark.parametrize("variant", TINY)
def test_losses_and_their_gradients_equal_the_original(goldens, variant):
    model, info, arrays = tiny(goldens, variant)
    objective = _objective(model, info["config"]["train_cfg"])
    features = torch.from_numpy(arrays["padded/x"]).transpose(1, 2)
    mask = torch.from_numpy(arrays["padded/mask"])[:, 0]
    segments = [torch.from_numpy(arrays[f"train/segments{b}"]) for b in range(2)]
    labels = [torch.from_numpy(arrays[f"train/labels{b}"]) for b in range(2)]
    with torch.no_grad():
        outputs = model(features, mask)
    leaves = [x.requires_grad_() for x in (*outputs.class_logits, *outputs.offsets)]
    for key in ("train/loss", "train/loss_second_call"):
        losses = objective(outputs, segments, labels, 0.0)
        found = [losses[k].item() for k in ("class", "offset", "loss")] + [float(objective.point_norm)]
        np.testing.assert_allclose(found, arrays[key], rtol=2e-5)
        if key == "train/loss":
            gradients = torch.autograd.grad(losses["loss"], leaves)
    count = len(outputs.class_logits)
    for level in range(count):
        np.testing.assert_allclose(gradients[level], arrays[f"train/grad_cls{level}"], atol=1e-6)
        np.testing.assert_allclose(gradients[count + level], arrays[f"train/grad_off{level}"], atol=1e-6)


@pytest.mark.parametrize("name", ["actionformer_w19", "actionformer_w9"])
def test_gradient_norms_of_a_training_step_equal_the_original(goldens, name):
    model, info, arrays = released(goldens, name)
    inputs = [torch.from_numpy(arrays[f"train/input{b}"]).T for b in range(2)]
    features = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
    mask = torch.arange(features.shape[1])[None] < torch.tensor([[len(x)] for x in inputs])
    segments = [torch.from_numpy(arrays[f"train/segments{b}"]) for b in range(2)]
    labels = [torch.from_numpy(arrays[f"train/labels{b}"]).long() for b in range(2)]
    losses = _objective(model, info)(model(*model.padded(features, mask)), segments, labels, 0.0)
    for key, wanted in (("class", "cls_loss"), ("offset", "reg_loss"), ("loss", "final_loss")):
        assert float(losses[key]) == pytest.approx(float(arrays[f"train/{wanted}"]), rel=2e-5)
    losses["loss"].backward()
    for parameter, norm in info["grad_norms"].items():
        found = float(dict(model.named_parameters())[parameter].grad.norm())
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), parameter


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_released_checkpoints_load(tmp_path, goldens, prefix):
    model, _, _ = tiny(goldens, "thumos_like")
    weights = {prefix + k: v for k, v in model.state_dict().items()}
    other = {k: v + 1 for k, v in weights.items()}
    content = {"epoch": 35, "state_dict": other, "state_dict_ema": weights, "optimizer": {"state": {}}, "scheduler": {}}
    torch.save(content, tmp_path / "epoch_034.pth.tar")
    loaded = load_actionformer_checkpoint(tmp_path / "epoch_034.pth.tar", model.config)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    raw = load_actionformer_checkpoint(tmp_path / "epoch_034.pth.tar", model.config, ema=False)
    assert not torch.equal(raw.cls_head.cls_head.conv.weight, model.cls_head.cls_head.conv.weight)


def test_checkpoints_that_do_not_fit_say_what_does_not(tmp_path, goldens):
    model, _, _ = tiny(goldens, "thumos_like")
    weights = dict(model.state_dict())
    weights["extra.weight"] = torch.zeros(1)
    weights["cls_head.cls_head.conv.bias"] = torch.zeros(9)
    del weights["backbone.embd.0.conv.weight"]
    torch.save({"state_dict_ema": weights}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        load_actionformer_checkpoint(tmp_path / "x.pth.tar", model.config)
    text = str(caught.value)
    assert "1 missing: backbone.embd.0.conv.weight" in text
    assert "1 not in this network: extra.weight" in text
    assert "cls_head.cls_head.conv.bias is (9,), expected (5,)" in text
    torch.save([1, 2], tmp_path / "y.pth.tar")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_actionformer_checkpoint(tmp_path / "y.pth.tar", model.config)


def test_every_parameter_gets_a_gradient_in_training():
    torch.manual_seed(0)
    config = ActionFormerConfig(
        input_dim=(5, 4), num_classes=3, embd_dim=(8, 8), n_head=2, n_mha_win_size=(5, -1, 3), backbone_arch=(1, 1, 2),
        max_seq_len=32, use_abs_pe=True, use_rel_pe=True, fpn_type="fpn", fpn_dim=12, head_dim=10, head_num_layers=2,
        regression_range=((0, 4), (4, 8), (8, 100)), droppath=0.1,
    )  # fmt: skip
    model = ActionFormer(config).train()
    features = torch.randn(4, 32, 9)
    mask = torch.arange(32)[None] < torch.tensor([[32], [20], [32], [7]])
    outputs = model(features * mask.unsqueeze(-1), mask)
    sum(x.square().sum() for x in (*outputs.class_logits, *outputs.offsets)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_mha_win_size": (5, 5)}, "one per level: 6"),
        ({"embd_dim": (256, 256)}, "expected as many widths as actionformer.input_dim"),
        ({"fpn_dim": 256}, "expected the width 512, which the identity neck keeps"),
        ({"fpn_type": "pan"}, "actionformer.fpn_type = 'pan': expected 'identity' or 'fpn'"),
        ({"backbone_type": "mamba"}, "actionformer.backbone_type = 'mamba'"),
        ({"n_head": 3}, "a width divisible by actionformer.n_head = 3"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ActionFormerConfig(**({"input_dim": 7, "num_classes": 3} | change))

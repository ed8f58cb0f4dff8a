from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tzn.models.actionformer import ActionFormer
from tzn.models.config import ActionFormerConfig

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
        ({"n_mha_win_size": (5, 5)}, "expected one per level: 6"),
        ({"embd_dim": (256, 256)}, "numbers differ"),
        ({"fpn_dim": 256}, "the identity neck keeps the width 512"),
        ({"fpn_type": "pan"}, "model.fpn_type = 'pan'"),
        ({"backbone_type": "mamba"}, "model.backbone_type = 'mamba'"),
        ({"n_head": 3}, "not divisible by model.n_head = 3"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ActionFormerConfig(**({"input_dim": 7, "num_classes": 3} | change))

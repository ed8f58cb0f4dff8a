"""The golden set inside the repository: own numbers, computed in float64 by the definitions of tzn.reference.

usage: TZN_BACKEND=reference python tests/goldens/make.py      (writes ops.npz and models.npz beside this file)

What stands in the files was right when it was written: made anew only when a definition changes on purpose, and then the
difference belongs into the commit message. Inputs are stored too, so nothing depends on a random generator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from oracle import block_weights, candidates, noisy_fields, random_masks  # noqa: E402

from tzn import ops, reference  # noqa: E402
from tzn.models import ActionFormer, ActionFormerConfig, TemporalZoomNet, TemporalZoomNetConfig  # noqa: E402

# Name of a case: (op, settings); arrays lie in ops.npz as "case/argument" and "case/out_i".
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gates": ("depth_gates", {"num_layers": 3}),
    "tokens": ("active_tokens", {"window": 7}),
    "attention-w5": ("local_attention", {"window": 5}),
    "attention-w19-wider-than-recording": ("local_attention", {"window": 19}),
    "attention-dilated": ("local_attention", {"window": 5, "dilation": 3}),
    "attention-shifted": ("local_attention", {"window": 5, "shifted": True}),
    "block": ("variable_depth_block", {}),
    "block-all-at-full-depth": ("variable_depth_block", {}),
    "distance": ("signed_distance", {"num_steps": 40, "radius": 6.0}),
    "crossings-crossing": ("boundary_crossings", {"estimator": "crossing"}),
    "crossings-median": ("boundary_crossings", {"estimator": "vote_median", "vote_window": 4}),
    "crossings-mean": ("boundary_crossings", {"estimator": "vote_mean", "vote_window": 3}),
    "candidates": ("select_candidates", {"min_score": 0.2, "topk": 9}),
    "soft": ("soft_nms", {"sigma": 0.5, "min_score": 0.01}),
    "linear": ("soft_nms", {"method": "linear", "iou_threshold": 0.3, "min_score": 0.05}),
    "hard": ("nms", {"iou_threshold": 0.4}),
    "batched": ("batched_nms", {"iou_threshold": 0.1, "min_score": 0.001, "max_seg_num": 40, "voting_thresh": 0.0}),
    "voted": (
        "batched_nms",
        {"iou_threshold": 0.1, "min_score": 0.001, "max_seg_num": 30, "multiclass": False, "voting_thresh": 0.7},
    ),
    "iou": ("segment_iou", {}),
}


def inputs() -> dict[str, dict[str, Tensor]]:
    """Arguments of every case by name."""
    generator = torch.Generator().manual_seed(20)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    mask, query = random_masks(2, 33, 0.4, (33, 21))
    tau = uniform(2, 33)

    def attention(steps: int, window: int, biases: int = 0) -> dict[str, Tensor]:
        q, k, v = (normal(2, 2, steps, 8) for _ in range(3))
        return {"q": q, "k": k, "v": v, "bias": normal(2, biases or window)}

    block = {f"weights.{name}": w for name, w in block_weights(12, 2, 5, 20)._asdict().items()}
    distance, scale = noisy_fields(2, 48)
    segments, scores, labels = candidates(60, dtype=torch.float64)
    many = {"segments": segments, "scores": scores}
    return {
        "gates": {"tau": tau[0]},
        "tokens": {"gate": torch.where(query, tau, 0.0), "mask": mask},
        "attention-w5": {**attention(33, 5), "mask": mask, "query_mask": query & mask},
        "attention-w19-wider-than-recording": attention(5, 19),
        "attention-dilated": {**attention(33, 5), "mask": mask},
        "attention-shifted": attention(17, 5, 9),
        "block": {"x": normal(2, 33, 12), "gate": torch.where(query, tau, 0.0), "mask": mask, **block},
        "block-all-at-full-depth": {"x": normal(1, 20, 12), "gate": torch.ones(1, 20, dtype=torch.float64), **block},
        "distance": {"boundaries": torch.tensor([[3.25, 17.5, 30.0], [8.0, torch.inf, torch.nan]], dtype=torch.float64)},
        **{
            f"crossings-{kind}": {"distance": distance, "scale": scale} for kind in ("crossing", "median", "mean")
        },
        "candidates": {"scores": uniform(28, 3), "level": torch.tensor([0] * 16 + [1] * 8 + [2] * 4)},
        "soft": many,
        "linear": many,
        "hard": many,
        "batched": {**many, "labels": labels},
        "voted": {**many, "labels": labels},
        "iou": {"a": segments[:7], "b": segments[7:20]},
    }  # fmt: skip


def call(function: Callable[..., Any], arguments: dict[str, Tensor], settings: dict[str, Any]) -> list[Tensor]:
    """Outputs of an op, public or definition, as a flat list; weights of a block come as one argument."""
    plain = {name: x for name, x in arguments.items() if not name.startswith("weights.")}
    weights = {name.split(".")[1]: x for name, x in arguments.items() if name.startswith("weights.")}
    if weights:
        plain["weights"] = reference.BlockWeights(**weights)  # type: ignore[assignment]
    positional = [plain.pop(name) for name in ("segments", "scores", "labels", "a", "b") if name in plain]
    out = function(*positional, **plain, **settings)
    return [out] if isinstance(out, Tensor) else list(out)


def deterministic(model: nn.Module) -> nn.Module:
    """Weights by a formula: a float64 network that is the same everywhere."""
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(model.state_dict().items())):
            if p.is_floating_point():
                k = torch.arange(p.numel(), dtype=torch.float64)
                wave = torch.sin(0.7 * k + 0.013 * k * k + i).reshape(p.shape)  # no two rows alike
                fan = max(p.numel() // p.shape[0], 1) if p.ndim else 1
                near_one = (p.ndim == 1 and name.endswith("weight")) or name.endswith(("scale", "std"))
                if name.endswith("offset_head.conv.bias"):
                    wave += 2  # a ReLU follows
                if name.endswith("logit.weight"):
                    wave *= 20  # depths of all kinds, with the bias below
                if name.endswith("logit.bias"):
                    wave += 15
                p.copy_(1 + 0.1 * wave if near_one else wave / fan**0.5)
    return model.double().eval()


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(name, float64 network, features ``[1, T, C]``)."""
    steps = torch.arange(57, dtype=torch.float64)[:, None]
    features = torch.sin(steps * torch.linspace(0.05, 1.1, 6, dtype=torch.float64) + torch.arange(6))[None]
    zoom = TemporalZoomNetConfig(
        input_dim=6, num_classes=3, width=16, num_heads=2, window=5, head_width=12, boundary_width=12, first_stride=2,
        num_levels=3, regression_ranges=((0, 4), (4, 8), (8, 10000)), refinement_layers=2, drop_path=0.0,
    )  # fmt: skip
    former = ActionFormerConfig(
        input_dim=6, num_classes=3, embd_dim=16, fpn_dim=16, head_dim=16, n_head=2, n_mha_win_size=5, max_seq_len=64,
        backbone_arch=(1, 1, 2), regression_range=((0, 4), (4, 8), (8, 10000)),
    )  # fmt: skip
    yield "temporal_zoom_net", deterministic(TemporalZoomNet(zoom)), features
    yield "actionformer", deterministic(ActionFormer(former)), features


def outputs(model: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Every floating output of a network by name."""
    with torch.no_grad():
        out = model(features, torch.ones(features.shape[:2], dtype=torch.bool))
    return dict(_floats("out", out))


def _floats(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, part in enumerate(value):
            yield from _floats(f"{name}_{i}", part)
    elif hasattr(value, "__dataclass_fields__"):
        for field in value.__dataclass_fields__:
            yield from _floats(f"{name}_{field}", getattr(value, field))


def main() -> None:
    arrays = {}
    for case, arguments in inputs().items():
        op, settings = SETTINGS[case]
        for name, x in arguments.items():
            arrays[f"{case}/{name}"] = x.numpy()
        # soft_nms and nms of the definition take the rule alone, the public functions check first.
        function = getattr(ops if op in ("soft_nms", "nms", "batched_nms", "boundary_crossings") else reference, op)
        for i, x in enumerate(call(function, arguments, settings)):
            arrays[f"{case}/out_{i}"] = x.numpy()
    np.savez_compressed(HERE / "ops.npz", **arrays)
    found = {f"{name}/{k}": x.numpy() for name, model, f in networks() for k, x in outputs(model, f).items()}
    np.savez_compressed(HERE / "models.npz", **found)
    for path in ("ops.npz", "models.npz"):
        print(path, (HERE / path).stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""Exported models, made once for all tests that want them: exporting takes longer than what is tested on the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_model
import torch

from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, config_to_dict
from tzn.detections import Detections
from tzn.export import export_localizer
from tzn.models import ActionFormer, ActionFormerConfig
from tzn.models.checkpoint import save_checkpoint

NAMES = ("a", "b", "c", "d")
DATA = {"feat_stride": 2, "num_frames": 2, "fps": 10}
# Every part of decoding has something to do: crossings far apart in score, quality of the ends, a limit.
INFERENCE = {"quality": 0.5, "max_segments": 60, "pre_nms_thresh": 0.05}


def small_checkpoint(path: Path) -> Path:
    """A random TemporalZoomNet whose norms move and stretch what they are given, so that nothing is zero by luck."""
    model = small_model.build()
    moved(model)
    return written(path, model)


def actionformer_checkpoint(path: Path, **changes) -> Path:
    torch.manual_seed(5)
    config = ActionFormerConfig(
        input_dim=7, num_classes=4, embd_dim=16, fpn_dim=16, head_dim=16, n_head=2, n_mha_win_size=5, max_seq_len=64,
        backbone_arch=(1, 1, 2), regression_range=((0, 4), (4, 8), (8, 10000)), **changes,
    )  # fmt: skip
    model = ActionFormer(config).eval()
    moved(model)
    with torch.no_grad():
        model.cls_head.cls_head.conv.bias.fill_(-1.0)
        model.cls_head.cls_head.conv.weight.mul_(4)
        model.reg_head.offset_head.conv.bias.fill_(2.0)
    return written(path, model)


def moved(model: torch.nn.Module) -> None:
    """Random norms and standardisation."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ in ("LayerNorm", "ChannelNorm"):
                module.bias.normal_(0, 0.5, generator=generator)
                module.weight.normal_(1, 0.2, generator=generator)
        model.feature_mean.normal_(0, 0.3, generator=generator)
        model.feature_std.uniform_(0.5, 2, generator=generator)


def written(path: Path, model) -> Path:
    experiment = config_to_dict(ExperimentConfig(model.config))
    experiment["data"] |= DATA
    experiment["inference"] |= INFERENCE
    save_checkpoint(path, model, config_to_dict(config_from_dict(experiment)), NAMES)
    return path


def features(steps: int, seed: int = 0) -> np.ndarray:
    """Slowly changing features ``[T, 7]``, so that there are segments to find."""
    noise = np.random.default_rng(seed).normal(size=(steps + 8, 7))
    smooth = np.stack([np.convolve(column, np.ones(9) / 3, mode="valid") for column in noise.T], axis=1)
    return smooth.astype(np.float32)


def same(a: Detections, b: Detections, at_least: int = 0) -> None:
    """Equal up to rounding; detections of nearly equal score may have changed places."""
    assert len(a) == len(b) >= at_least
    order = [np.lexsort((x.segments[:, 0].round(2), x.labels, -x.scores.round(3))) for x in (a, b)]
    (i, j) = order
    np.testing.assert_array_equal(a.labels[i], b.labels[j])
    np.testing.assert_allclose(a.scores[i], b.scores[j], atol=2e-5)
    np.testing.assert_allclose(a.segments[i], b.segments[j], atol=2e-3)
    assert (a.std is None) == (b.std is None)
    if a.std is not None:
        np.testing.assert_allclose(a.std[i], b.std[j], atol=1e-3)


class Exports:
    """Files by source and format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[tuple[str, str], Path] = {}

    def checkpoint(self, name: str) -> str | Path:
        if name == "hapt":
            return name
        path = self.folder / f"{name}.ckpt"
        if not path.exists():
            {"small": small_checkpoint, "actionformer": actionformer_checkpoint}[name](path)
        return path

    def file(self, name: str, to: str) -> Path:
        if (name, to) not in self.files:
            out = self.folder / f"{name}{'.aoti' if to == 'aoti' else ''}.{'onnx' if to == 'onnx' else 'pt2'}"
            self.files[name, to] = export_localizer(self.checkpoint(name), out, to=to)
        return self.files[name, to]

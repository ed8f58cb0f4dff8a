"""The networks that the benchmarks compare, all at THUMOS14 shape: 2048-d input, width 512, window 19, 20 classes.

Weights are random: time does not depend on them, except that every class of every point passes the score threshold, so
post-processing sees its worst case, ``pre_nms_topk`` candidates per pyramid level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.actionformer_slow import ActionFormerSlow
from benchmarks.peers.post_processing_slow import post_process
from tzn.config import InferenceConfig
from tzn.config_loading import load_config
from tzn.data.grid import TimeGrid
from tzn.inference.localize import localize
from tzn.models import ActionFormer, Localizer, TemporalZoomNet, TemporalZoomNetConfig, build_model
from tzn.models.temporal_zoom_net import Trunk
from tzn.profiling import count_flops

INPUT_DIM, CLASSES, LAYERS = 2048, 20, 3
CLUSTER = 64  # active tokens come in runs of this length, as actions do
GRID = TimeGrid.from_frames(feat_stride=4, num_frames=16, fps=30)
INFERENCE = InferenceConfig(pre_nms_topk=2000)

SLOW = "ActionFormer as published"
PORT = "ActionFormer on tzn"
COMPILED = "ActionFormer on tzn, torch.compile"
FULL = "TemporalZoomNet, every token at full depth"
SHARES = (0.75, 0.5, 0.25)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A row of the tables.

    Attributes:
        forward: features ``[B, T, 2048]`` and mask ``[B, T]`` to network outputs, heads everywhere.
        detect: the same inputs to final detections of every recording.
        gmac: multiply-adds (1e9) of ``forward`` on such a batch, padding included where it is computed.
        base: row that its savings refer to.
    """

    name: str
    forward: Callable[[Tensor, Tensor], object]
    detect: Callable[[Tensor, Tensor], object] | None
    gmac: Callable[[Tensor, Tensor], float]
    base: str


def share_name(share: float) -> str:
    return f"TemporalZoomNet, mean depth {share:g}"


def contenders(device: str = "cpu", *, compiled: bool) -> list[Contender]:
    """All rows, on ``device``; ``compiled``: also ActionFormer under ``torch.compile`` (about a minute per new shape)."""
    published = actionformer().to(device)
    slow = ActionFormerSlow(published)
    rows = [
        Contender(
            SLOW,
            lambda x, m: slow(*slow.padded(x, m)),
            lambda x, m: detect_slowly(slow, x, m),
            lambda x, m: gmac_of(published, *slow.padded(x, m)),
            SLOW,
        ),
        of_localizer(PORT, published, SLOW),
    ]  # fmt: skip
    if compiled:
        network = torch.compile(published, dynamic=False)
        rows.append(dataclasses.replace(rows[-1], name=COMPILED, forward=lambda x, m: network(*published.padded(x, m)),
                                        detect=None))  # fmt: skip
    rows.append(
        of_localizer("ActionFormer on tzn, no full-rate blocks (control)", actionformer(stem=0).to(device), PORT)
    )
    rows.append(of_localizer(FULL, temporal_zoom_net(1.0).to(device), FULL))
    rows += [of_localizer(share_name(share), temporal_zoom_net(share).to(device), FULL) for share in SHARES]
    for layers in (2, 1):
        name = f"TemporalZoomNet, {layers} of {LAYERS} refinement layers for all (control)"
        rows.append(of_localizer(name, temporal_zoom_net(1.0, layers).to(device), FULL))
    return rows


def of_localizer(name: str, model: Localizer, base: str) -> Contender:
    def forward(features: Tensor, mask: Tensor) -> object:
        return model(*model.padded(features, mask)) if isinstance(model, ActionFormer) else model(features, mask)

    def detect(features: Tensor, mask: Tensor) -> object:
        duration = float(GRID.to_seconds(features.shape[1]))
        return [localize(model, x[keep], GRID, duration, INFERENCE) for x, keep in zip(features, mask, strict=True)]

    return Contender(name, forward, detect, lambda x, m: gmac_of(model, x, m), base)


def gmac_of(model: Localizer, features: Tensor, mask: Tensor) -> float:
    return count_flops(model, (features, mask)).gmac


def detect_slowly(slow: ActionFormerSlow, features: Tensor, mask: Tensor) -> object:
    return post_process(slow(*slow.padded(features, mask)), slow.model.config.strides, INFERENCE)


def actionformer(stem: int = 2) -> ActionFormer:
    torch.manual_seed(0)
    config = load_config("configs/actionformer_thumos14_i3d.yaml").model
    embedding, _, branch = config.backbone_arch
    model = build_model(dataclasses.replace(config, backbone_arch=(embedding, stem, branch)))
    assert isinstance(model, ActionFormer)
    return model.eval()


def temporal_zoom_net(share: float, layers: int = LAYERS) -> TemporalZoomNet:
    """A network in which ``share`` of the tokens has tau = 1 and the others tau = 0."""
    torch.manual_seed(0)
    config = TemporalZoomNetConfig(input_dim=INPUT_DIM, num_classes=CLASSES, refinement_layers=layers)
    return ClusteredDepth(config, share).eval()


class ClusteredDepth(TemporalZoomNet):
    """Tokens have the depth of :func:`clustered_depth` in place of what the predictor says."""

    def __init__(self, config: TemporalZoomNetConfig, share: float) -> None:
        super().__init__(config)
        self.share = share

    def trunk(self, features: Tensor, mask: Tensor, **_: object) -> Trunk:
        tau = clustered_depth(self.share, mask.shape[1]).expand(mask.shape[0], -1).contiguous().to(mask.device)
        return super().trunk(features, mask, tau=tau)


def clustered_depth(share: float, steps: int) -> Tensor:
    """tau ``[1, T]``: 1 for ``share`` of the tokens, in clusters spread over the recording; else 0."""
    clusters = -(-steps // CLUSTER)
    chosen = torch.linspace(0, clusters - 1, max(round(share * clusters), 1)).round().long()
    tau = torch.zeros(clusters, CLUSTER)
    tau[chosen] = 1.0
    return tau.flatten()[None, :steps]


def batch(size: int, steps: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random features ``[B, T, 2048]`` and a full mask."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(size, steps, INPUT_DIM, generator=generator)
    return features.to(device), torch.ones(size, steps, dtype=torch.bool, device=device)

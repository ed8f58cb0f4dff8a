"""Third stage: features in, final detections out, at THUMOS14 shape (2048 channels, width 512, 20 classes).

Rows: ActionFormer as published (eager, float32 with TF32 as its program sets it, suppression on the CPU after a copy), our
port, the port compiled, and TemporalZoomNet with a mean depth of 1, 0.75, 0.5 and 0.25; ours in TF32 and in 16 bits, launch
by launch and as one CUDA graph. "saved": saved time over saved multiply-adds, against the same network at full depth.
Weights are random, so every class of every point is a candidate: the worst case for suppression.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.stage import Stage, clustered_gate, stage
from benchmarks.lib import parity
from benchmarks.lib.contenders import CLASSES, INFERENCE, INPUT_DIM, LAYERS
from benchmarks.peers.actionformer_slow import ActionFormerSlow
from benchmarks.peers.post_processing_slow import candidates, suppressed
from tzn.inference.fixed import GraphedDetector, detect
from tzn.models import ActionFormer, ActionFormerConfig, Localizer, TemporalZoomNet, TemporalZoomNetConfig
from tzn.models.temporal_zoom_net import Trunk
from tzn.profiling import count_flops

SHARES = (1.0, 0.75, 0.5, 0.25)


def sizes(s: Stage) -> dict[str, Any]:
    return s.pick(
        {"input_dim": INPUT_DIM, "num_classes": CLASSES},
        {"input_dim": 8, "num_classes": 2},
    )


def actionformer(s: Stage) -> ActionFormer:
    torch.manual_seed(0)
    small = {"embd_dim": 16, "fpn_dim": 16, "head_dim": 16, "n_head": 2, "n_mha_win_size": 5, "max_seq_len": 64}
    return ActionFormer(ActionFormerConfig(**sizes(s), **s.pick({}, small))).eval().to(s.device)


def temporal_zoom_net(s: Stage, share: float, batch: int, steps: int) -> TemporalZoomNet:
    """A network in which ``share`` of the tokens has tau = 1 and the others tau = 0, on the device beforehand."""
    torch.manual_seed(0)
    small = {"width": 16, "num_heads": 2, "window": 5, "head_width": 8, "boundary_width": 8}
    config = TemporalZoomNetConfig(**sizes(s), refinement_layers=LAYERS, **s.pick({}, small))
    return GivenDepth(config, clustered_gate(batch, steps, share, s.device)).eval().to(s.device)


class GivenDepth(TemporalZoomNet):
    """Tokens have the depth ``tau`` ``[B, T]`` in place of what the predictor says."""

    def __init__(self, config: TemporalZoomNetConfig, tau: Tensor) -> None:
        super().__init__(config)
        self.tau = tau  # no buffer: it keeps its precision

    def trunk(self, features: Tensor, mask: Tensor, **_: object) -> Trunk:
        return super().trunk(features, mask, tau=self.tau)


def times(s: Stage, model: Localizer, features: Tensor, mask: Tensor) -> dict[str, float]:
    """Milliseconds from features to detections, launch by launch and as one graph."""
    config = settings(s)
    inputs = model.padded(features, mask) if isinstance(model, ActionFormer) else (features, mask)
    logits = model(*inputs).class_logits
    wanted = parity.by_definition(lambda: model(*inputs).class_logits)
    for ours, right in zip(*((x if isinstance(x, list) else [x]) for x in (logits, wanted)), strict=True):
        parity.same("class logits", ours, right, rtol=3e-2, atol=3e-2 * float(right.abs().max()))
    found = {"milliseconds": s.milliseconds(lambda: detect(model, features, mask, config))}
    if s.dry:
        return {**found, "graph_milliseconds": found["milliseconds"]}
    graphed = GraphedDetector(model, *features.shape[:2], config, features.dtype)
    graphed(features, mask)
    found["graph_milliseconds"] = s.milliseconds(graphed.graph.replay)
    network = s.graphed(lambda: model(*inputs))
    found["network_milliseconds"] = s.milliseconds(network)
    return found


def settings(s: Stage) -> Any:
    return dataclasses.replace(INFERENCE, **s.pick({}, {"pre_nms_topk": 10, "max_segments": 5}))


def published(s: Stage, model: ActionFormer, features: Tensor, mask: Tensor) -> dict[str, float]:
    slow, config = ActionFormerSlow(model), settings(s)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def network() -> Any:
        return slow(*slow.padded(features, mask))

    def run() -> object:
        outputs = network()
        parts = [candidates(outputs, model.config.strides, config, index) for index in range(features.shape[0])]
        return [suppressed(*(x.cpu() for x in part), config) for part in parts]

    run()
    given = model(*model.padded(features, mask))
    for theirs, ours, keep in zip(network().class_logits, given.class_logits, given.masks, strict=True):
        steps = int(keep[0].sum())
        parity.same("class logits", theirs[:, :steps], ours[:, :steps], rtol=2e-2, atol=2e-2 * float(ours.abs().max()))
    return {"milliseconds": wall_milliseconds(s, run), "network_milliseconds": s.milliseconds(network)}


def wall_milliseconds(s: Stage, run: Callable[[], object], rounds: int = 5) -> float:
    """Median wall time of something that ends on the host."""
    found = []
    for _ in range(s.pick(rounds, 1)):
        begin = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(found)


def inputs(s: Stage, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    features = torch.randn(batch, steps, sizes(s)["input_dim"], device=s.device)
    return features, torch.ones(batch, steps, dtype=torch.bool, device=s.device)


def lowered(s: Stage, model: Localizer, low: bool) -> Localizer:
    if not low:
        return model
    return copy.deepcopy(model).to(s.low)


def cell(s: Stage, batch: int, steps: int) -> None:
    features, mask = inputs(s, batch, steps)
    what = {"batch": batch, "steps": steps}
    port = actionformer(s)
    s.guarded({**what, "row": "ActionFormer as published"}, lambda: published(s, port, features, mask))
    for low in s.pick((True, False), (True,)):
        kind = {"precision": "16 bits" if low else "TF32"}
        given = features.to(s.low) if low else features
        model = lowered(s, port, low)
        s.guarded({**what, "row": "ActionFormer on tzn", **kind}, lambda m=model, g=given: times(s, m, g, mask))
        full: dict[str, float] = {}
        for share in s.pick(SHARES, (1.0, 0.25)):
            zoom = temporal_zoom_net(s, share, batch, steps)

            def run(zoom: TemporalZoomNet = zoom, low: bool = low, given: Tensor = given, share: float = share,
                    full: dict[str, float] = full) -> dict[str, float]:  # fmt: skip
                found = times(s, lowered(s, zoom, low), given, mask)
                found["gmac"] = count_flops(zoom, (features, mask)).gmac
                if share == 1:
                    full.update(found)
                elif full:
                    saved, work = (1 - found[key] / full[key] for key in ("graph_milliseconds", "gmac"))
                    found["saved"] = saved / work
                return found

            s.guarded({**what, "row": f"TemporalZoomNet, mean depth {share:g}", **kind}, run)


def compiled(s: Stage, batch: int, steps: int) -> None:
    """The port's network under ``torch.compile``; last, because compiling takes a minute."""
    features, mask = inputs(s, batch, steps)
    model = lowered(s, actionformer(s), True)
    assert isinstance(model, ActionFormer)
    given = model.padded(features.to(s.low), mask)

    def run() -> dict[str, float]:
        network = s.compiled(model)
        return {"network_milliseconds": s.milliseconds(s.graphed(lambda: network(*given)))}

    what = {"batch": batch, "steps": steps, "row": "ActionFormer on tzn, torch.compile", "precision": "16 bits"}
    s.guarded(what, run)


def main() -> None:
    s = stage("end_to_end", __doc__)
    torch.set_float32_matmul_precision("high")
    with torch.no_grad():
        shapes = s.pick([(1, 2304), (1, 9216), (8, 2304), (8, 9216)], [(1, 128)])
        cell(s, *shapes[0])
        compiled(s, *shapes[0])
        for batch, steps in shapes[1:]:
            cell(s, batch, steps)


if __name__ == "__main__":
    main()

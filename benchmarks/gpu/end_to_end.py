"""Features in, final detections out, at THUMOS14 shape (2048 channels, width 512, 20 classes).

Rows: TemporalZoomNet with a mean depth of 1, 0.75, 0.5 and 0.25, the same with its blocks in a boundary stream at 1 and 0.25,
our port of ActionFormer, ActionFormer as published (eager, float32 with TF32 as its program sets it, suppression on the CPU
after a copy), and the port compiled; ours in 16 bits at every shape first, then in TF32, launch by launch and as one CUDA
graph. "saved": saved time over saved multiply-adds, against the same network at full depth; multiply-adds are counted once for
a length and a depth.
Weights are random, so every class of every point is a candidate: the worst case for suppression.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.stage import Case, Stage, clustered_gate, stage
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


BLOCKS: dict[bool, dict[str, int]] = {  # of the stream, or before the pyramid
    False: {"refinement_layers": LAYERS},
    True: {"refinement_layers": 0, "zoom_layers": 4, "embedding_stride": 2, "first_stride": 2},
}


def temporal_zoom_net(s: Stage, share: float, batch: int, steps: int, stream: bool) -> TemporalZoomNet:
    """A network in which ``share`` of the tokens has tau = 1 and the others tau = 0, on the device beforehand."""
    torch.manual_seed(0)
    small = {"width": 16, "num_heads": 2, "window": 5, "head_width": 8, "boundary_width": 8}
    config = TemporalZoomNetConfig(**sizes(s), **BLOCKS[stream], **s.pick({}, small))
    return GivenDepth(config, clustered_gate(batch, steps, share, s.device)).eval().to(s.device)


class GivenDepth(TemporalZoomNet):
    """Tokens have the depth ``tau`` ``[B, T]`` in place of what the predictor says."""

    def __init__(self, config: TemporalZoomNetConfig, tau: Tensor) -> None:
        super().__init__(config)
        self.tau = tau  # no buffer: it keeps its precision

    def trunk(self, features: Tensor, mask: Tensor, *, last_exit: bool = False, **_: object) -> Trunk:
        return super().trunk(features, mask, tau=self.tau, last_exit=last_exit)


def times(s: Stage, model: Localizer, features: Tensor, mask: Tensor) -> dict[str, float]:
    """Milliseconds from features to detections, launch by launch and as one graph; of the network alone as a graph."""
    config = settings(s)
    inputs = model.padded(features, mask) if isinstance(model, ActionFormer) else (features, mask)

    def logits() -> list[Tensor]:
        found = model(*inputs).class_logits
        return found if isinstance(found, list) else [found]

    s.same("class logits", logits, lambda: parity.by_definition(logits), rtol=3e-2, atol=3e-2)
    found = {"milliseconds": s.milliseconds(lambda: detect(model, features, mask, config))}
    if not s.on_gpu:
        return {**found, "graph_milliseconds": found["milliseconds"]}
    graphed = GraphedDetector(model, *features.shape[:2], config, features.dtype)
    graphed(features, mask)
    found["graph_milliseconds"] = s.replayed(graphed.graph.replay)
    found["cold_graph_milliseconds"] = s.milliseconds(graphed.graph.replay)
    found["network_milliseconds"] = s.replayed(s.graph_of(logits))
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


@cache
def gmac(dry: bool, share: float, steps: int, stream: bool) -> float:
    """Multiply-adds (1e9) of one recording, counted once: they do not depend on the precision and grow with the batch."""
    s = Stage("count", Path(), dry, 0.0)
    zoom = temporal_zoom_net(s, share, 1, steps, stream)
    return count_flops(zoom, inputs(s, 1, steps)).gmac


@torch.no_grad()
def published_row(s: Stage, batch: int, steps: int) -> dict[str, float]:
    return published(s, actionformer(s), *inputs(s, batch, steps))


@torch.no_grad()
def port_row(s: Stage, batch: int, steps: int, low: bool) -> dict[str, float]:
    torch.set_float32_matmul_precision("high")
    features, mask = inputs(s, batch, steps)
    return times(s, lowered(s, actionformer(s), low), features.to(s.low) if low else features, mask)


@torch.no_grad()
def zoom_row(
    s: Stage, batch: int, steps: int, low: bool, share: float, full: dict[str, float], stream: bool = False
) -> dict[str, float]:
    """``full``: filled by the row of full depth, which comes first."""
    torch.set_float32_matmul_precision("high")
    features, mask = inputs(s, batch, steps)
    zoom = lowered(s, temporal_zoom_net(s, share, batch, steps, stream), low)
    found = times(s, zoom, features.to(s.low) if low else features, mask)
    if s.compiling:
        return found
    found["gmac"] = batch * gmac(s.dry, share, steps, stream)
    if share == 1:
        full.update(found)
    elif full:
        saved, work = (1 - found[key] / full[key] for key in ("graph_milliseconds", "gmac"))
        found["saved"] = saved / work
    return found


@torch.no_grad()
def compiled_row(s: Stage, batch: int, steps: int) -> dict[str, float]:
    """The port's network under ``torch.compile``."""
    features, mask = inputs(s, batch, steps)
    model = lowered(s, actionformer(s), True)
    assert isinstance(model, ActionFormer)
    given = model.padded(features.to(s.low), mask)
    network = s.compiled(model)

    def run() -> object:
        return network(*given)

    return {"network_milliseconds": s.replayed(s.graph_of(run)) if s.on_gpu else s.milliseconds(run)}


def programmatic_row(s: Stage, batch: int, steps: int) -> dict[str, float]:
    """Full depth in 16 bits, each kernel started while the one before still runs (`tzn.kernels._launch`)."""
    with mock.patch.dict(os.environ, {"TZN_PDL": "1"}):
        return zoom_row(s, batch, steps, True, 1.0, {})


def shapes(s: Stage) -> list[dict[str, int]]:
    return [{"batch": b, "steps": t} for b, t in s.pick([(1, 2304), (1, 9216), (8, 2304), (8, 9216)], [(1, 128)])]


def own_cases(s: Stage, low: bool) -> list[Case]:
    """Ours at every shape. Kernels depend on the class of the number of rows only: two shapes and a depth compile them all."""
    kind = {"precision": "16 bits" if low else "TF32"}
    found = []
    for at in shapes(s):
        full: dict[str, float] = {}
        first = at["batch"] == 1
        for share in s.pick(SHARES, (1.0, 0.25)):
            what = {**at, "row": f"TemporalZoomNet, mean depth {share:g}", **kind}
            run = partial(zoom_row, s, **at, low=low, share=share, full=full)
            found.append(Case(what, run, compiles=first and share == 1))
        what = {**at, "row": "ActionFormer on tzn", **kind}
        found.append(Case(what, partial(port_row, s, **at, low=low), compiles=first))
    return found


def published_cases(s: Stage) -> list[Case]:
    return [
        Case({**at, "row": "ActionFormer as published"}, partial(published_row, s, **at), compiles=False)
        for at in shapes(s)
    ]


def stream_cases(s: Stage) -> list[Case]:
    """Blocks behind the pyramid, at full rate, and an exit after each, in 16 bits."""
    found = []
    for at in shapes(s)[:2]:
        full: dict[str, float] = {}
        for share in (1.0, 0.25):
            what = {**at, "row": f"TemporalZoomNet, boundary stream, mean depth {share:g}", "precision": "16 bits"}
            run = partial(zoom_row, s, **at, low=True, share=share, full=full, stream=True)
            found.append(Case(what, run, compiles=share == 1))
    return found


def programmatic_cases(s: Stage) -> list[Case]:
    what = {"row": "TemporalZoomNet, mean depth 1, programmatic launches", "precision": "16 bits"}
    return [Case({**at, **what}, partial(programmatic_row, s, **at)) for at in shapes(s)[:1]]


def compiled_cases(s: Stage) -> list[Case]:
    what = {"row": "ActionFormer on tzn, torch.compile", "precision": "16 bits"}
    return [Case({**at, **what}, partial(compiled_row, s, **at), compiles=False) for at in shapes(s)[:1]]


GROUPS = [
    ("16 bits", partial(own_cases, low=True)),
    ("stream", stream_cases),
    ("programmatic", programmatic_cases),
    ("published", published_cases),
    ("TF32", partial(own_cases, low=False)),
    ("compiled", compiled_cases),
]


def main() -> int:
    s = stage("end_to_end", __doc__)
    return s.run([group for group in GROUPS if not (s.dry and group[0] == "TF32")])


if __name__ == "__main__":
    sys.exit(main())

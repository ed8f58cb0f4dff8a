"""Every kernel and gradient at real sizes against its definition in float64, memory poisoned: the cheap and the critical first.

The error may be twice that of eager PyTorch in the same dtype (tests/oracle.py), TF32_SLACK times with three TF32 products
in the place of a float32 one. What fails here is not believed anywhere else: the stages that time things compare again.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.stage import WIDTH, WINDOW, Case, Stage, clustered_gate, stage
from benchmarks.lib.contenders import CLASSES, LAYERS
from tests.oracle import TF32_SLACK, assert_as_good_as_eager
from tzn import ops, reference
from tzn.kernels import _launch as launch
from tzn.models import TemporalZoomNet, TemporalZoomNetConfig
from tzn.nn import BoundaryDistanceHead, VariableDepthBlock
from tzn.nn.conv import ConvTower
from tzn.nn.pyramid import Pyramid, TopDown
from tzn.nn.zoom import BoundaryStream
from tzn.reference.nms import best_picks

OK = {"result": "ok"}


def compare(
    s: Stage, op: str, run: Callable[..., Tensor], wanted: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor
) -> dict[str, str]:
    """Output and gradients of ``run`` against ``wanted`` in float64, measured by ``wanted`` in the inputs' dtype."""

    def results(function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        out = function(*leaves)
        found = torch.autograd.grad(out, leaves, upstream.to(out.dtype), allow_unused=True)
        return [out.detach()] + [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    given = results(run, inputs, grad)
    if s.compiling:
        return OK
    again = results(run, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True)), "two runs differ"
    eager = results(wanted, inputs, grad)
    exact = results(wanted, [x.double() for x in inputs], grad.double())
    slack = TF32_SLACK[op] if grad.dtype == torch.float32 else 2.0
    for a, b, c in zip(given, eager, exact, strict=True):
        assert_as_good_as_eager(a, b, c, slack)
    return OK


def valid_steps(s: Stage, batch: int, steps: int) -> Tensor:
    """The second of two recordings ends early."""
    lengths = torch.tensor([[steps], [steps * 3 // 4]], device=s.device)[:batch]
    return torch.arange(steps, device=s.device) < lengths


def attention(s: Stage, dtype: torch.dtype, width: int, share: float, batch: int = 2) -> dict[str, str]:
    steps, heads = s.pick(2304, 40), s.pick(max(WIDTH // width, 1), 2)
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(batch, heads, steps, width, device=s.device).to(dtype) for _ in range(4))
    bias = torch.randn(heads, WINDOW, device=s.device).to(dtype)
    mask, query = valid_steps(s, batch, steps), clustered_gate(batch, steps, share, s.device) > 0

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.local_attention(q, k, v, WINDOW, mask=mask, query_mask=query, bias=bias)

    def wanted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return reference.local_attention(q, k, v, WINDOW, mask=mask, query_mask=query, bias=bias)

    return compare(s, "attention", run, wanted, [q, k, v, bias], grad)


def block_inputs(s: Stage, dtype: torch.dtype, share: float, batch: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    """[x, gate, weights...], mask, upstream gradient."""
    steps, width = s.pick((2304, WIDTH), (40, 32))
    torch.manual_seed(0)
    module = VariableDepthBlock(width, s.pick(4, 2), WINDOW).to(s.device)
    weights = [(w + 0.1 * torch.randn_like(w)).detach().to(dtype) for w in module.weights()]
    x, grad = (torch.randn(batch, steps, width, device=s.device).to(dtype) for _ in range(2))
    gate = clustered_gate(batch, steps, share, s.device) * torch.rand(batch, steps, device=s.device)
    return [x, gate.to(dtype), *weights], valid_steps(s, batch, steps), grad


def block(s: Stage, dtype: torch.dtype, share: float, batch: int = 2) -> dict[str, str]:
    inputs, mask, grad = block_inputs(s, dtype, share, batch)

    def run(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
        return ops.variable_depth_block(x, gate, ops.BlockWeights(*weights), mask=mask)

    def wanted(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
        return reference.variable_depth_block(x, gate, ops.BlockWeights(*weights), mask=mask)

    return compare(s, "block", run, wanted, inputs, grad)


def compiled_block(s: Stage) -> dict[str, str]:
    """One graph with gradients under ``torch.compile``: the same numbers as eager."""
    inputs, mask, grad = block_inputs(s, torch.float32, 0.5)

    def run(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
        return ops.variable_depth_block(x, gate, ops.BlockWeights(*weights), mask=mask)

    leaves = [t.requires_grad_() for t in inputs]
    plain = torch.autograd.grad(run(*leaves), leaves, grad)
    traced = torch.autograd.grad(s.compiled(run)(*leaves), leaves, grad)
    for a, b in zip(traced, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    return OK


def large_tensors(s: Stage) -> dict[str, str]:
    """More than 2^31 elements: the last rows equal those computed alone."""
    heads, width, steps = 2, s.pick(128, 16), s.pick(2**23 + 4096, 300)
    q, k, v = (torch.empty(1, heads, steps, width, dtype=s.low, device=s.device) for _ in range(3))
    if not s.compiling:
        for x in (q, k, v):
            x.normal_()
    with torch.no_grad():
        out = ops.local_attention(q, k, v, WINDOW)
        tail = 200
        alone = ops.local_attention(*(x[:, :, -tail:].contiguous() for x in (q, k, v)), WINDOW)
    if not s.compiling:
        inner = slice(WINDOW, tail)
        torch.testing.assert_close(out[:, :, -tail:][:, :, inner], alone[:, :, inner], rtol=2e-2, atol=2e-2)
    return OK


class PyramidAndTopDown(nn.Module):
    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        given = {"first_stride": 4, "num_levels": 3}
        self.pyramid = Pyramid(width, heads, WINDOW, mlp_ratio=4, drop_path=0, **given)
        self.top_down = TopDown(width, out, **given)

    def forward(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        points, _, levels, masks = self.pyramid.points(x, mask)
        return [points, self.top_down(x, mask, levels, masks)]


class WholeNetwork(nn.Module):
    """All that inference reads of a network, with its budget dial turned."""

    def __init__(self, width: int, heads: int, narrow: int) -> None:
        super().__init__()
        small = {"num_levels": 2, "regression_ranges": ((0, 4), (4, 10000)), "refinement_layers": 1, "window": 5}
        changes = {"refinement_layers": LAYERS} if width == WIDTH else small
        config = TemporalZoomNetConfig(
            input_dim=width, num_classes=CLASSES, width=width, num_heads=heads, head_width=narrow, boundary_width=narrow,
            **changes,  # type: ignore[arg-type]
        )  # fmt: skip
        self.network = TemporalZoomNet(config)

    def forward(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        points = self.network.points(x, mask, budget=0.6)
        fields = [] if points.fields is None else points.fields()
        return [x for x in (points.scores, points.depth, *points.offsets(), *fields) if x is not None]


def fused_layers(s: Stage, name: str, dtype: torch.dtype) -> dict[str, str]:
    """Layers as one launch each, against the same modules operator by operator."""
    batch, steps = s.pick((2, 2304), (2, 37))
    torch.manual_seed(0)
    module, inputs = FUSED[name](*s.pick((WIDTH, 4, WIDTH // 2), (32, 2, 16)))
    module = module.to(s.device).eval().to(dtype)
    mask = valid_steps(s, batch, steps)
    x = (torch.randn(batch, steps, inputs, device=s.device) * mask.unsqueeze(-1)).to(dtype)

    @torch.no_grad()
    def results(of: torch.dtype, backend: str | None) -> list[Tensor]:
        run = module if of == dtype else copy.deepcopy(module).to(of)
        with mock.patch.dict("os.environ", {} if backend is None else {"TZN_BACKEND": backend}):
            found = run(x.to(of), mask)
        return [found] if isinstance(found, Tensor) else list(found)

    given = results(dtype, None)
    if s.compiling:
        return OK
    again = results(dtype, None)
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True)), "two runs differ"
    eager, exact = results(dtype, "reference"), results(torch.float64, "reference")
    slack = TF32_SLACK["block"] if dtype == torch.float32 else 2.0
    for a, b, c in zip(given, eager, exact, strict=True):
        assert_as_good_as_eager(a, b, c, slack)
    return OK


class Hidden(ConvTower):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.hidden(x, mask)


class Stream(BoundaryStream):
    """A boundary stream alone, at depths that are given: another rounding must not switch a step."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__(
            wide,
            wide,
            2,
            layers=3,
            num_heads=heads,
            window=WINDOW,
            mlp_ratio=2.0,
            stem_layers=2,
            radius=6.0,
            threshold=1.0,
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(0)
        gates = torch.rand(*mask.shape, 3, generator=generator) * (
            torch.rand(*mask.shape, 3, generator=generator) < 0.5
        )
        exits = super().forward(x, 0 * x, mask, gates=gates.to(x.device), last_only=True).exits
        return tuple(field.contiguous() for field in exits[-1])


FUSED: dict[str, Callable[[int, int, int], tuple[nn.Module, int]]] = {
    "convolutions of whole rows": lambda wide, heads, narrow: (Hidden(wide, narrow, 3, layers=2), wide),
    "convolutions of wide rows": lambda wide, heads, narrow: (Hidden(wide, max(wide, 300), 3, layers=1), wide),
    "boundary head": lambda wide, heads, narrow: (BoundaryDistanceHead(narrow, 2, narrow, 2), narrow),
    "pyramid and top-down path": lambda wide, heads, narrow: (PyramidAndTopDown(wide, heads, narrow), wide),
    "boundary stream": lambda wide, heads, narrow: (Stream(wide, heads), wide),
    "network": lambda wide, heads, narrow: (WholeNetwork(wide, heads, narrow), wide),
}


def placed_picks(s: Stage, ties: bool) -> dict[str, str]:
    """The best picks of all classes in exactly the order of a stable sort."""
    from tzn.kernels import nms as kernels

    each, capacity = s.pick((200, 200), (9, 20))
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(2, CLASSES, each, generator=generator)
    score = ((score * 50).round() / 50 if ties else score).sort(2, descending=True).values
    score[:, ::3, each // 2 :] = -torch.inf  # classes that ran out of candidates
    index = torch.randint(1000, score.shape, generator=generator, dtype=torch.int32)
    segments = torch.rand(2, 1000, 2, generator=generator)
    given = kernels.best_picks(*(x.to(s.device) for x in (index, score, segments)), capacity)
    if not s.compiling:
        wanted, wanted_score = best_picks(index, score, capacity)
        there = wanted_score > -torch.inf
        assert torch.equal(given[1].cpu(), wanted_score), "scores differ"
        assert torch.equal(given[0].cpu()[there], wanted[there].long()), "other picks"
        assert torch.equal(given[3].cpu(), there.sum(1)), "another number of picks"
    return OK


def crossings(s: Stage, estimator: str) -> dict[str, str]:
    fields, steps = s.pick((16, 18432), (2, 60))
    torch.manual_seed(0)
    boundaries = torch.rand(fields, steps // 20).sort(1).values * steps
    distance = reference.signed_distance(boundaries.double(), steps, 8.0) + 0.3 * torch.randn(fields, steps)
    scale = 0.2 + torch.rand(fields, steps, dtype=torch.float64)
    given = ops.boundary_crossings(distance.to(s.device), scale.to(s.device), estimator=estimator)
    if not s.compiling:
        wanted = reference.boundary_crossings(distance, scale, estimator=estimator)
        for a, b in zip(given, wanted, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)
    return OK


def selection(s: Stage, steps: int, tied: bool) -> dict[str, str]:
    """Exactly the definition's entries, also where many scores are equal."""
    sizes = [steps >> level for level in range(6)]
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    scores = torch.rand(sum(sizes), 20, generator=torch.Generator().manual_seed(0))
    scores = (scores * 50).round() / 50 if tied else scores
    limit = {"min_score": 0.001, "topk": s.pick(2000, 30)}
    given = ops.select_candidates(scores.to(s.device), level.to(s.device), **limit)
    if not s.compiling:
        for a, b in zip(given, reference.select_candidates(scores, level, **limit), strict=True):
            assert torch.equal(a.cpu(), b), "other entries than the definition's"
    return OK


def suppression(s: Stage, method: str, number: int) -> dict[str, str]:
    """Picks are exactly those of the definition; voting is as good as eager's."""
    generator = torch.Generator().manual_seed(number)
    start = 2304 * torch.rand(number, generator=generator)
    segments = torch.stack([start, start + 1 + 40 * torch.rand(number, generator=generator)], dim=1)
    scores, labels = torch.rand(number, generator=generator), torch.randint(20, (number,), generator=generator)
    for multiclass in (True, False):
        rule = {"method": method, "multiclass": multiclass, "sigma": 0.5, "voting_thresh": 0.0 if multiclass else 0.75}
        wanted = reference.batched_nms(segments, scores, labels, 0.1, 0.001, 200, per_class_voting=False, **rule)
        moved = (x.to(s.device) for x in (segments, scores, labels))
        given = ops.batched_nms(
            *moved, 0.1, 0.001, 200, method="linear" if method == "linear" else "gaussian",
            use_soft_nms=method != "hard", multiclass=multiclass, sigma=0.5, voting_thresh=rule["voting_thresh"],
        )  # fmt: skip
        torch.testing.assert_close(given[1].cpu(), wanted[1], rtol=0, atol=0)
        assert torch.equal(given[2].cpu(), wanted[2]), "labels differ"
        torch.testing.assert_close(
            given[0].cpu(), wanted[0], rtol=0 if multiclass else 1e-5, atol=0 if multiclass else 1e-3
        )
    return OK


def whole_inference(s: Stage, graph: bool) -> dict[str, str]:
    """Fixed capacity, or its CUDA graph, against inference recording by recording."""
    from tests.small_model import GRID, build
    from tzn.config import InferenceConfig
    from tzn.inference.fixed import GraphedDetector, detect
    from tzn.inference.localize import localize

    steps = s.pick(2304, 48)
    model = build().to(s.device)
    config = InferenceConfig(pre_nms_topk=s.pick(2000, 30), max_segments=s.pick(200, 20))
    features = torch.randn(1, steps, 7, generator=torch.Generator().manual_seed(0)).to(s.device)
    mask = torch.ones(1, steps, dtype=torch.bool, device=s.device)
    found = detect(model, features, mask, config)
    if graph:
        replayed = GraphedDetector(model, 1, steps, config)(features)
        assert torch.equal(replayed.segments, found.segments), "the CUDA graph gives other segments"
        assert torch.equal(replayed.scores, found.scores), "the CUDA graph gives other scores"
    elif not s.compiling:
        wanted, _ = localize(model, features[0], GRID, 1e9, config)
        ours = found.recording(0, GRID, 1e9)
        torch.testing.assert_close(torch.from_numpy(ours.scores), torch.from_numpy(wanted.scores), rtol=1e-3, atol=1e-4)
    return OK


def programmatic(s: Stage, graph: bool) -> dict[str, str]:
    """Programmatic launches against launches that wait for the end of the one before: nothing may differ."""
    from tests.small_model import build
    from tzn.config import InferenceConfig
    from tzn.inference.fixed import GraphedDetector, detect

    steps = s.pick(2304, 48)
    model, config = build().to(s.device), InferenceConfig(pre_nms_topk=s.pick(2000, 30), max_segments=s.pick(200, 20))
    features = torch.randn(1, steps, 7, generator=torch.Generator().manual_seed(1)).to(s.device)
    mask = torch.ones(1, steps, dtype=torch.bool, device=s.device)
    wanted = detect(model, features, mask, config)
    with mock.patch.dict(os.environ, {"TZN_PDL": "1"}):
        run = GraphedDetector(model, 1, steps, config) if graph else partial(detect, model, mask=mask, config=config)
        for _ in range(s.pick(50, 1)):  # a kernel that is too early is so now and then
            found = run(features=features)
            if not s.compiling:
                for a, b in zip(found, wanted, strict=True):
                    assert a is b is None or torch.equal(a, b), "programmatic launches give another result"
    return OK


def persistent(s: Stage, share: float | None) -> dict[str, str]:
    """Programs that take many tiles against one program a tile: nothing may differ."""
    shipped, width, steps = launch.default_config, s.pick(WIDTH, 16), s.pick(18432, 40)
    module = VariableDepthBlock(width, s.pick(4, 2), WINDOW).eval().to(s.device).to(s.low)
    x = torch.randn(1, steps, width, device=s.device).to(s.low)
    gate = None if share is None else clustered_gate(1, steps, share, s.device)
    mask = torch.arange(steps, device=s.device)[None] < steps - steps // 7

    def run(**given: int) -> Tensor:
        def config(arch: str, kernel: str, dtype: torch.dtype, rows: int) -> dict[str, int]:
            return {**shipped(arch, kernel, dtype, rows), **(given if kernel in launch.PERSISTENT else {})}

        with torch.no_grad(), mock.patch.object(launch, "default_config", config):
            return module(x, mask, gate)  # type: ignore[no-any-return]

    with mock.patch.object(launch, "multiprocessors", (lambda device: 2) if s.dry else launch.multiprocessors):
        wanted, found = run(BLOCK_M=s.pick(64, 16)), run(BLOCK_M=s.pick(64, 16), PER_SM=1)
    assert s.compiling or torch.equal(wanted, found), "programs that take many tiles give another result"
    return OK


def nms_of(number: int, dry: int) -> Callable[[Stage], list[Case]]:
    def cases(s: Stage) -> list[Case]:
        count = s.pick(number, dry)
        return [
            Case({"op": "nms", "method": m, "candidates": count}, lambda m=m: suppression(s, m, count), compiles=False)
            for m in ("gaussian", "linear", "hard")
        ]

    return cases


def crossing_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": "boundary_crossings", "estimator": e}, lambda e=e: crossings(s, e))
        for e in ("vote_median", "vote_mean", "crossing")
    ]


def selection_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": "select_candidates", "steps": steps, "tied": tied}, lambda n=steps, t=tied: selection(s, n, t))
        for steps in s.pick((2304, 18432), (64,))
        for tied in (False, True)
    ]


def pick_cases(s: Stage) -> list[Case]:
    return [Case({"op": "picks placed", "tied": ties}, lambda t=ties: placed_picks(s, t)) for ties in (False, True)]


def layer_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": name, "dtype": str(d).removeprefix("torch.")}, lambda n=name, d=d: fused_layers(s, n, d))
        for d in dtypes(s)[:2]
        for name in FUSED
    ]


def detection_cases(s: Stage) -> list[Case]:
    found = [Case({"op": "detect"}, lambda: whole_inference(s, graph=False))]
    if not s.dry:
        found.append(Case({"op": "detect, as a CUDA graph"}, lambda: whole_inference(s, graph=True), compiles=False))
    return found


def programmatic_cases(s: Stage) -> list[Case]:
    name = "detect, programmatic launches"
    found = [Case({"op": name}, lambda: programmatic(s, graph=False))]
    if not s.dry:
        found.append(Case({"op": f"{name}, as a CUDA graph"}, lambda: programmatic(s, graph=True), compiles=False))
    return found


def persistent_cases(s: Stage) -> list[Case]:
    return [
        Case({"op": "block, persistent grid", "active": str(share)}, lambda a=share: persistent(s, a))
        for share in s.pick((None, 1.0, 0.1), (None, 0.5))
    ]


def addressing_cases(s: Stage) -> list[Case]:
    return [Case({"op": "attention of more than 2^31 elements"}, lambda: large_tensors(s))]


def flagship_cases(s: Stage) -> list[Case]:
    """One recording in 16 bits: the tiles that inference at T = 2304 runs on."""
    name = str(s.low).removeprefix("torch.")
    return [
        Case(
            {"op": op, "dtype": name, "batch": 1, "active": share},
            lambda f=function, r=rest, a=share: f(s, s.low, *r, a, batch=1),
            compiles=share in (1.0, 0.5),  # 0.25 launches what 1 launches
        )
        for op, function, rest in (("block", block, ()), ("attention", attention, s.pick((128,), (16,))))
        for share in s.pick((1.0, 0.25), (0.5,))
    ]


def dtypes(s: Stage) -> tuple[torch.dtype, ...]:
    return s.pick((torch.bfloat16, torch.float32, torch.float16), (torch.float16, torch.float32))


def block_cases(s: Stage) -> list[Case]:
    return [
        Case(
            {"op": "block", "dtype": str(d).removeprefix("torch."), "active": a},
            lambda d=d, a=a: block(s, d, a),
            compiles=a in (1.0, 0.5),
        )
        for d in dtypes(s)
        for a in s.pick((1.0, 0.25), (0.5,))
    ]


def attention_cases(s: Stage) -> list[Case]:
    return [
        Case(
            {"op": "attention", "dtype": str(d).removeprefix("torch."), "width": w, "active": a},
            lambda d=d, w=w, a=a: attention(s, d, w, a),
            compiles=a in (1.0, 0.5),
        )
        for d in dtypes(s)
        for w in s.pick((128, 64, 32, 256), (16,))
        for a in s.pick((1.0, 0.25), (0.5,))
    ]


def compiled_cases(s: Stage) -> list[Case]:
    return [Case({"op": "compiled block"}, lambda: compiled_block(s), compiles=False)]


GROUPS = [
    ("nms", nms_of(2000, 30)),
    ("crossings", crossing_cases),
    ("selection", selection_cases),
    ("picks", pick_cases),
    ("detection", detection_cases),
    ("addressing", addressing_cases),
    ("flagship", flagship_cases),
    ("layers", layer_cases),
    ("programmatic", programmatic_cases),
    ("persistent", persistent_cases),
    ("block", block_cases),
    ("attention", attention_cases),
    ("many candidates", nms_of(12000, 40)),
    ("compiled", compiled_cases),
]


def main() -> int:
    s = stage("parity", __doc__)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return s.run(GROUPS)


if __name__ == "__main__":
    sys.exit(main())

"""First stage: every kernel and gradient at real sizes against its definition in float64, memory poisoned.

The error may be twice that of eager PyTorch in the same dtype (tests/oracle.py). Exits with 1 where anything fails; the
stages that time things are worth nothing then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.stage import WIDTH, WINDOW, Stage, clustered_gate, stage
from tests.oracle import assert_as_good_as_eager
from tzn import ops, reference
from tzn.nn import VariableDepthBlock


def compare(run: Callable[..., Tensor], wanted: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    """Output and gradients of ``run`` against ``wanted`` in float64, measured by ``wanted`` in the inputs' dtype."""

    def results(function: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        out = function(*leaves)
        found = torch.autograd.grad(out, leaves, upstream.to(out.dtype), allow_unused=True)
        return [out.detach()] + [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]

    given = results(run, inputs, grad)
    again = results(run, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True)), "two runs differ"
    eager = results(wanted, inputs, grad)
    exact = results(wanted, [x.double() for x in inputs], grad.double())
    for a, b, c in zip(given, eager, exact, strict=True):
        assert_as_good_as_eager(a, b, c)


def attention(s: Stage, dtype: torch.dtype, width: int, share: float) -> dict[str, str]:
    batch, steps, heads = s.pick((2, 2304), (2, 40)) + (s.pick(max(WIDTH // width, 1), 2),)
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(batch, heads, steps, width, device=s.device).to(dtype) for _ in range(4))
    bias = torch.randn(heads, WINDOW, device=s.device).to(dtype)
    mask = torch.arange(steps, device=s.device) < torch.tensor([[steps], [steps * 3 // 4]], device=s.device)
    query = clustered_gate(batch, steps, share, s.device) > 0

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.local_attention(q, k, v, WINDOW, mask=mask, query_mask=query, bias=bias)

    def wanted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return reference.local_attention(q, k, v, WINDOW, mask=mask, query_mask=query, bias=bias)

    compare(run, wanted, [q, k, v, bias], grad)
    return {"result": "ok"}


def block_inputs(s: Stage, dtype: torch.dtype, share: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """[x, gate, weights...], mask, upstream gradient."""
    batch, steps, width = s.pick((2, 2304, WIDTH), (2, 40, 32))
    torch.manual_seed(0)
    module = VariableDepthBlock(width, s.pick(4, 2), WINDOW).to(s.device)
    weights = [(w + 0.1 * torch.randn_like(w)).detach().to(dtype) for w in module.weights()]
    x, grad = (torch.randn(batch, steps, width, device=s.device).to(dtype) for _ in range(2))
    mask = torch.arange(steps, device=s.device) < torch.tensor([[steps], [steps * 3 // 4]], device=s.device)
    gate = clustered_gate(batch, steps, share, s.device) * torch.rand(batch, steps, device=s.device)
    return [x, gate.to(dtype), *weights], mask, grad


def block(s: Stage, dtype: torch.dtype, share: float) -> dict[str, str]:
    inputs, mask, grad = block_inputs(s, dtype, share)

    def run(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
        return ops.variable_depth_block(x, gate, ops.BlockWeights(*weights), mask=mask)

    def wanted(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
        return reference.variable_depth_block(x, gate, ops.BlockWeights(*weights), mask=mask)

    compare(run, wanted, inputs, grad)
    return {"result": "ok"}


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
    return {"result": "ok"}


def large_tensors(s: Stage) -> dict[str, str]:
    """More than 2^31 elements: the last rows equal those computed alone."""
    heads, width, steps = 2, s.pick(128, 16), s.pick(2**23 + 4096, 300)
    q, k, v = (torch.empty(1, heads, steps, width, dtype=s.low, device=s.device).normal_() for _ in range(3))
    with torch.no_grad():
        out = ops.local_attention(q, k, v, WINDOW)
        tail = 200
        alone = ops.local_attention(*(x[:, :, -tail:].contiguous() for x in (q, k, v)), WINDOW)
    inner = slice(WINDOW, tail)
    torch.testing.assert_close(out[:, :, -tail:][:, :, inner], alone[:, :, inner], rtol=2e-2, atol=2e-2)
    return {"result": "ok"}


def crossings(s: Stage, estimator: str) -> dict[str, str]:
    fields, steps = s.pick((16, 18432), (2, 60))
    torch.manual_seed(0)
    boundaries = torch.rand(fields, steps // 20).sort(1).values * steps
    distance = reference.signed_distance(boundaries.double(), steps, 8.0) + 0.3 * torch.randn(fields, steps)
    scale = 0.2 + torch.rand(fields, steps, dtype=torch.float64)
    wanted = reference.boundary_crossings(distance, scale, estimator=estimator)
    given = ops.boundary_crossings(distance.to(s.device), scale.to(s.device), estimator=estimator)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)
    return {"result": "ok"}


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
    return {"result": "ok"}


def whole_inference(s: Stage) -> dict[str, str]:
    """Fixed capacity, and its CUDA graph, against inference recording by recording."""
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
    wanted, _ = localize(model, features[0], GRID, 1e9, config)
    ours = found.recording(0, GRID, 1e9)
    torch.testing.assert_close(torch.from_numpy(ours.scores), torch.from_numpy(wanted.scores), rtol=1e-3, atol=1e-4)
    if not s.dry:
        replayed = GraphedDetector(model, 1, steps, config)(features)
        assert torch.equal(replayed.segments, found.segments), "the CUDA graph gives other segments"
        assert torch.equal(replayed.scores, found.scores), "the CUDA graph gives other scores"
    return {"result": "ok"}


def main() -> int:
    s = stage("parity", __doc__)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    dtypes = s.pick((torch.bfloat16, torch.float32, torch.float16), (torch.float16, torch.float32))
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for share in s.pick((1.0, 0.25), (0.5,)):
            s.guarded({"op": "block", "dtype": name, "active": share}, lambda d=dtype, a=share: block(s, d, a))
            for width in s.pick((128, 64, 32, 256), (16,)):
                what = {"op": "attention", "dtype": name, "width": width, "active": share}
                s.guarded(what, lambda d=dtype, w=width, a=share: attention(s, d, w, a))
    for estimator in ("vote_median", "vote_mean", "crossing"):
        s.guarded({"op": "boundary_crossings", "estimator": estimator}, lambda e=estimator: crossings(s, e))
    for method in ("gaussian", "linear", "hard"):
        for number in s.pick((2000, 12000), (30,)):
            s.guarded(
                {"op": "nms", "method": method, "candidates": number}, lambda m=method, n=number: suppression(s, m, n)
            )
    s.guarded({"op": "detect"}, lambda: whole_inference(s))
    s.guarded({"op": "attention of more than 2^31 elements"}, lambda: large_tensors(s))
    s.guarded({"op": "compiled block"}, lambda: compiled_block(s))
    failed = [row for row in s.rows if "error" in row]
    print(f"{len(s.rows)} checks, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

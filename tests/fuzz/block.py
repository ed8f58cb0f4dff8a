"""The variable-depth block: inactive rows bit for bit, active rows and gradients against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compare import all_ordinary, answer, assert_near, assert_same, double
from inputs import FLOATS, Random
from torch import Tensor

from tzn import ops, reference


def _weights(rng: Random, width: int, heads: int, window: int, hidden: int, dtype: torch.dtype) -> ops.BlockWeights:
    shapes = {
        "query_weight": (width, width), "query_bias": (width,), "key_value_weight": (2 * width, width),
        "key_value_bias": (2 * width,), "position_bias": (heads, window), "output_weight": (width, width),
        "output_bias": (width,), "up_weight": (hidden, width), "up_bias": (hidden,), "down_weight": (width, hidden),
        "down_bias": (width,), "norm1_weight": (width,), "norm1_bias": (width,), "norm2_weight": (width,),
        "norm2_bias": (width,),
    }  # fmt: skip
    made = {n: rng.normal(*shapes[n]) / (width**0.5 if len(shapes[n]) == 2 else 1) for n in ops.BlockWeights._fields}
    return ops.BlockWeights(**{n: x.to(dtype) for n, x in made.items()})


def block_arguments(rng: Random) -> dict[str, Any]:
    batch, steps, heads = rng.size(3), rng.size(60), rng.integer(1, 3)
    width, dtype = heads * rng.integer(1, 12), rng.choice(FLOATS)
    gate = rng.uniform(batch, steps, dtype=dtype) * rng.mask(batch, steps)
    return {
        "x": rng.normal(batch, steps, width, dtype=dtype), "gate": rng.maybe(lambda: gate),
        "weights": _weights(rng, width, heads, 2 * rng.size(9) + 1, rng.integer(1, 20), dtype),
        "mask": rng.maybe(lambda: rng.mask(batch, steps)),
    }  # fmt: skip


def _active(a: dict[str, Any]) -> Tensor:
    active = torch.ones(a["x"].shape[:2], dtype=torch.bool) if a["gate"] is None else a["gate"] > 0
    return active if a["mask"] is None else active & a["mask"]


@answer(lambda a: ops.variable_depth_block(**a))
def variable_depth_block(a: dict[str, Any], out: Any, rng: Random) -> None:
    _check(a, out, rng, gradients=True)


def whole_block_arguments(rng: Random) -> dict[str, Any]:
    """Of the dtypes that packages are compiled in."""
    a = block_arguments(rng)
    wide = a["x"].dtype if a["x"].dtype in (torch.float32, torch.float64) else torch.float32
    given = {n: a[n] if a[n] is None else a[n].to(wide) for n in ("x", "gate")}
    return {**a, **given, "weights": ops.BlockWeights(*(w.to(wide) for w in a["weights"]))}


@answer(lambda a: torch.ops.tzn_native.variable_depth_block(a["x"], a["gate"], list(a["weights"]), a["mask"]))
def whole_block(a: dict[str, Any], out: Any, rng: Random) -> None:
    """The registered op that compiled packages call."""
    _check(a, out, rng, gradients=False)


def _check(a: dict[str, Any], out: Tensor, rng: Random, *, gradients: bool) -> None:
    assert out.shape == a["x"].shape and out.dtype == a["x"].dtype
    still = ~_active(a)
    assert_same(out.detach()[still], a["x"].detach()[still], "inactive rows")
    alike = all(w.dtype == out.dtype for w in (*a["weights"], *([] if a["gate"] is None else [a["gate"]])))
    if alike and all_ordinary(a["x"], a["gate"], a["weights"]) and out.dtype in (torch.float32, torch.float64):
        x, gate, weights = double(a["x"]), double(a["gate"]), double(a["weights"])
        wanted = reference.variable_depth_block(x, gate, weights, mask=a["mask"])
        # LayerNorm of a row of equal numbers divides rounding by sqrt(eps).
        assert_near(out, wanted, "out", size=1000 * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0))
        if gradients and rng.chance(0.5):
            _check_gradients(a, wanted)


def _check_gradients(a: dict[str, Any], wanted: Tensor) -> None:
    seed = torch.linspace(-1, 1, max(wanted.numel(), 1), dtype=torch.float64)[: wanted.numel()].view(wanted.shape)

    def found(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        x, *weights = (change(y).detach().clone().requires_grad_() for y in (a["x"], *a["weights"]))
        gate = None if a["gate"] is None else change(a["gate"]).detach().clone().requires_grad_()
        out = function(x, gate, ops.BlockWeights(*weights), mask=a["mask"])
        leaves = [x, *weights] + ([] if gate is None else [gate])
        return list(torch.autograd.grad(out, leaves, seed.to(out.dtype), allow_unused=True))

    given, exact = (
        found(ops.variable_depth_block, lambda y: y),
        found(reference.variable_depth_block, torch.Tensor.double),
    )
    for name, g, e in zip(("x", *ops.BlockWeights._fields, "gate"), given, exact, strict=False):
        if e is None:  # it had no part in the definition's result
            assert g is None or not g.any(), f"gradient of {name}"
        else:
            assert g is not None, f"gradient of {name}"
            assert_near(g, e, f"gradient of {name}", size=3000 * max(1.0, float(e.abs().max()) if e.numel() else 1.0))

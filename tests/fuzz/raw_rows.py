"""The registered ops around a block's products: LayerNorm of gathered rows, gated residuals, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from block import whole_block, whole_block_arguments
from compare import all_ordinary, answer, assert_near, double, elsewhere
from inputs import Random
from raw_attention import Arguments, Check, native
from torch import Tensor


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _stream(rng: Random) -> tuple[Arguments, int, torch.dtype]:
    """The residual stream and an index into it, how many rows it picks, and the dtype of accumulation."""
    rows, width = rng.size(90), max(rng.size(40), 2)
    x = rng.normal(rows, width, dtype=rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16)))
    index = rng.maybe(lambda: rng.mask(rows).nonzero().squeeze(1))
    return {"x": x, "index": index}, rows if index is None else len(index), _accumulated(x.dtype)


def _weights(rng: Random, width: int, dtype: torch.dtype) -> Arguments:
    return {"weight": rng.normal(width, dtype=dtype), "bias": rng.normal(width, dtype=dtype), "eps": 1e-5}


def _norm_arguments(rng: Random) -> Arguments:
    a, chosen, compute = _stream(rng)
    return {**a, **_weights(rng, a["x"].shape[1], compute), "capacity": chosen + rng.size(5)}


def _gated_norm_arguments(rng: Random) -> Arguments:
    a, chosen, compute = _stream(rng)
    rows, width = a["x"].shape
    gated = {
        "branch": rng.normal(chosen, width, dtype=a["x"].dtype),
        "gate": rng.maybe(lambda: rng.uniform(rows, dtype=compute)),
    }
    return {**a, **gated, **_weights(rng, width, compute), "capacity": chosen + rng.size(5)}


def _scatter_arguments(rng: Random) -> Arguments:
    a, chosen, compute = _stream(rng)
    rows, width = a["x"].shape
    y, branch = (rng.normal(chosen, width, dtype=a["x"].dtype) for _ in range(2))
    return {**a, "y": y, "branch": branch, "gate": rng.maybe(lambda: rng.uniform(rows, dtype=compute))}


def _norm_backward_arguments(rng: Random) -> Arguments:
    a, chosen, compute = _stream(rng)
    rows, width = a["x"].shape
    mean = _picked(a["x"].to(compute), a["index"])
    stats = torch.stack([mean.mean(1), (mean.var(1, correction=0) + 1e-5).rsqrt()], 1)
    dx = rng.normal(rows, width, dtype=a["x"].dtype)
    grad, weight = rng.normal(chosen, width, dtype=a["x"].dtype), rng.normal(width, dtype=compute)
    return {"grad": grad, **a, "weight": weight, "stats": stats, "dx": dx}


def _gate_backward_arguments(rng: Random) -> Arguments:
    a, chosen, compute = _stream(rng)
    (rows, width), gather = a["x"].shape, rng.chance(0.5)
    grad = a["x"] if gather else rng.normal(chosen, width, dtype=a["x"].dtype)
    branch, gate = rng.normal(chosen, width, dtype=a["x"].dtype), rng.uniform(rows, dtype=compute)
    return {"grad": grad, "index": a["index"], "branch": branch, "gate": gate, "gather": gather}


def _picked(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x[index]


def _comparable(a: Arguments) -> bool:
    return not elsewhere(a) and all_ordinary(*(x for x in a.values() if isinstance(x, Tensor)))


def _gated(a: Arguments, start: Tensor) -> Tensor:
    gate = 1.0 if a["gate"] is None else _picked(double(a["gate"]), a["index"])[:, None]
    return double(start) + gate * double(a["branch"])


def _check_norm(a: Arguments, rows: Tensor, out: Tensor) -> None:
    """Where rows vary: a row of equal numbers is divided by its rounding errors. Rows past the chosen ones are nobody's."""
    eps = a["eps"]
    assert len(out) == a["capacity"]
    out = out[: len(rows)]
    if isinstance(eps, float) and 1e-6 <= eps <= 1 and rows.numel() and bool((rows.std(1) > 0.1).all()):
        wanted = F.layer_norm(rows, rows.shape[1:], double(a["weight"]), double(a["bias"]), eps)
        assert_near(out, wanted, "out", size=100)


def _gather_layer_norm(a: Arguments) -> Check:
    out, _ = native("gather_layer_norm", a)
    return lambda rng: _check_norm(a, _picked(double(a["x"]), a["index"]), out) if _comparable(a) else None


@answer(lambda a: native("gated_add_layer_norm", a))
def _gated_add_layer_norm(a: Arguments, out: Any, rng: Random) -> None:
    y, out, _ = out
    if _comparable(a):
        wanted = _gated(a, _picked(a["x"], a["index"]))
        assert_near(y[: len(wanted)], wanted, "y", size=100)
        _check_norm(a, double(y[: len(wanted)]), out)


@answer(lambda a: native("gated_scatter", a))
def _gated_scatter(a: Arguments, out: Any, rng: Random) -> None:
    if _comparable(a):
        changed = _gated(a, a["y"])
        wanted = changed if a["index"] is None else double(a["x"]).index_copy(0, a["index"], changed)
        assert_near(out, wanted, "out", size=100)


def _layer_norm_backward(a: Arguments) -> Check:
    before = a["dx"].clone() if isinstance(a["dx"], Tensor) else None
    dweight, dbias = native("layer_norm_backward", a)

    def check(rng: Random) -> None:
        if before is None or not _comparable(a) or not all_ordinary(before):
            return
        grad, stats = double(a["grad"]), double(a["stats"])
        normal = (_picked(double(a["x"]), a["index"]) - stats[:, :1]) * stats[:, 1:]
        assert_near(dweight, (grad * normal).sum(0), "dweight", size=1e4 * float(normal.abs().sum() + 1))
        assert_near(dbias, grad.sum(0), "dbias", size=float(grad.abs().sum() + 1))
        along = grad * double(a["weight"])
        slope = (along * normal).mean(1, keepdim=True)
        change = stats[:, 1:] * (along - along.mean(1, keepdim=True) - normal * slope)
        index = torch.arange(len(before)) if a["index"] is None else a["index"]
        wanted = double(before).index_add(0, index, change)
        size = 1e4 * float(change.abs().max() + normal.abs().max() ** 2 + 1) if change.numel() else 1.0
        assert_near(a["dx"], wanted, "dx", size=size)

    return check


@answer(lambda a: native("gate_backward", a))
def _gate_backward(a: Arguments, out: Any, rng: Random) -> None:
    dbranch, dgate = out
    if _comparable(a):
        grad = _picked(double(a["grad"]), a["index"]) if a["gather"] else double(a["grad"])
        assert_near(dbranch, grad * _picked(double(a["gate"]), a["index"])[:, None], "dbranch", size=100)
        terms = grad * double(a["branch"])
        assert_near(dgate, terms.sum(1), "dgate", size=float(terms.abs().sum() + 1))


def _conv3_arguments(rng: Random) -> Arguments:
    batch, steps, channels, out = rng.size(4), rng.size(40), rng.size(20), max(rng.size(40), 2)
    normed = rng.choice((False, True))
    return {
        "x": rng.normal(batch, steps, channels), "weight": rng.normal(out, 3 * channels),
        "bias": rng.maybe(lambda: rng.normal(out)), "norm_weight": rng.normal(out) if normed else None,
        "norm_bias": rng.normal(out) if normed else None, "mask": rng.maybe(lambda: rng.mask(batch, steps)), "eps": 1e-5,
    }  # fmt: skip


@answer(lambda a: native("conv3", a))
def _conv3(a: Arguments, out: Any, rng: Random) -> None:
    assert out.shape == (*a["x"].shape[:2], len(a["weight"]))
    if not all_ordinary(a["x"], a["weight"], a["bias"], a["norm_weight"], a["norm_bias"]) or not 1e-6 <= a["eps"] <= 1:
        return
    padded = F.pad(double(a["x"]), (0, 0, 1, 1))
    stacked = torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], dim=-1)
    if not stacked.numel() or not a["weight"].numel():
        return
    wanted = F.linear(stacked, double(a["weight"]), double(a["bias"]))
    size = float(F.linear(stacked.abs(), double(a["weight"]).abs()).max() + 1)
    if a["norm_weight"] is not None:
        if not bool((wanted.std(-1, correction=0) > 0.1).all()):
            return  # a row of equal numbers is divided by its rounding errors
        wanted = F.relu(
            F.layer_norm(wanted, wanted.shape[-1:], double(a["norm_weight"]), double(a["norm_bias"]), a["eps"])
        )
    keep = 1 if a["mask"] is None else a["mask"].unsqueeze(-1)
    assert_near(out, wanted * keep, "out", size=100 * size)


DIAL = ("least", "settled", "ramp", "low", "high")


def _exit_arguments(rng: Random) -> Arguments:
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    batch, steps, width, columns = rng.size(4), rng.size(40), max(rng.size(40), 2), 3 * rng.size(4)
    compute, vector = _accumulated(dtype), lambda n: rng.normal(n, dtype=_accumulated(dtype))
    gate = rng.maybe(lambda: rng.uniform(batch, steps) * rng.mask(batch, steps))
    return {
        "h": rng.normal(batch, steps, width, dtype=dtype), "norm_weight": vector(width), "norm_bias": vector(width),
        "eps": 1e-5, "weight": rng.normal(columns, width, dtype=compute), "bias": vector(columns),
        "raw": rng.normal(batch * steps, columns), "mask": rng.mask(batch, steps), "gate": gate,
        "next": rng.maybe(lambda: rng.normal(batch, steps)), "moved": rng.maybe(lambda: rng.normal(batch)),
        "least": 0.05, "settled": 0.3, "ramp": 1.4, "low": 0.1, "high": 0.3, "full": rng.chance(0.2),
    }  # fmt: skip


def _read_exit(a: Arguments) -> Check:
    before = a["raw"].clone() if isinstance(a["raw"], Tensor) else None
    running = native("read_exit", a)

    def check(rng: Random) -> None:
        usual = [a[name] for name in DIAL] == [0.05, 0.3, 1.4, 0.1, 0.3] and a["eps"] == 1e-5
        given = {name: x for name, x in a.items() if name not in ("raw", "next")}
        if before is None or not usual or elsewhere(a) or not all_ordinary(before, given):
            return
        if not a["h"].numel() or not before.numel():
            return
        if not bool((double(a["h"]).std(-1, correction=0) > 0.1).all()):
            return  # a row of equal numbers is divided by its rounding errors
        norm = F.layer_norm(double(a["h"]), a["h"].shape[-1:], double(a["norm_weight"]), double(a["norm_bias"]), 1e-5)
        read = F.linear(norm.flatten(0, 1), double(a["weight"]), double(a["bias"]))
        size = float(F.linear(norm.flatten(0, 1).abs(), double(a["weight"]).abs()).sum(1).max() + 1)
        gate = (a["mask"] if a["gate"] is None else a["gate"]).double()
        raw = read if a["gate"] is None else double(before) + gate.flatten().unsqueeze(1) * read
        assert_near(a["raw"], raw, "raw", size=100 * size)
        if a["next"] is None:
            assert running == 0
            return
        assert running == int((a["next"] != 0).sum())
        _, spread, reach = raw.unflatten(0, a["mask"].shape).chunk(3, dim=-1)
        moved = 0 if a["moved"] is None else double(a["moved"]).reshape(-1, 1, 1)
        unsure = 0.5 + ((F.softplus(spread) + 0.05).log() - 0.3 + moved) / 1.4
        both = ((reach.sigmoid() - 0.1) / 0.2).clamp(0, 1) * unsure.clamp(0, 1)
        assert_near(a["next"], gate if a["full"] else gate * both.amax(-1), "next", size=300 * size)

    return check


RAW_ROWS: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "native.gather_layer_norm": (_norm_arguments, _gather_layer_norm),
    "native.gated_add_layer_norm": (_gated_norm_arguments, _gated_add_layer_norm),
    "native.layer_norm_backward": (_norm_backward_arguments, _layer_norm_backward),
    "native.gated_scatter": (_scatter_arguments, _gated_scatter),
    "native.gate_backward": (_gate_backward_arguments, _gate_backward),
    "native.conv3": (_conv3_arguments, _conv3),
    "native.read_exit": (_exit_arguments, _read_exit),
    "native.variable_depth_block": (whole_block_arguments, whole_block),
}

"""Oracles of windowed attention: rows that read nothing but ordinary numbers must be right, gradients too."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from compare import all_ordinary, assert_near, double, ordinary
from inputs import FLOATS, Random
from torch import Tensor

from tzn import reference


def dense_arguments(rng: Random) -> dict[str, Any]:
    batch, heads, steps, width = rng.size(3), rng.size(4), rng.size(80), max(rng.size(40), 1)
    dtype, window = rng.choice(FLOATS), 2 * rng.size(12) + 1
    q, k, v = (rng.normal(batch, heads, steps, width, dtype=dtype) for _ in range(3))
    return {
        "q": q, "k": k, "v": v, "window": window, "mask": rng.maybe(lambda: rng.mask(batch, steps)),
        "query_mask": rng.maybe(lambda: rng.mask(batch, steps)),
        "bias": rng.maybe(lambda: rng.normal(heads, window, dtype=rng.choice((dtype, torch.float32)))),
    }  # fmt: skip


def public_arguments(rng: Random) -> dict[str, Any]:
    """With dilation, shifted windows, and recordings one after the other."""
    a = dense_arguments(rng)
    if rng.chance(0.5):
        a["dilation"], a["shifted"] = rng.integer(1, 4), rng.chance(0.5)
    if rng.chance(0.4):
        tokens = rng.size(80)
        cuts = torch.sort(torch.randint(tokens + 1, (rng.size(4),), generator=rng.torch)).values
        bounds = torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([tokens])])
        a["cu_seqlens"], a["mask"] = bounds.to(rng.choice((torch.int32, torch.int64))), None
        heads, width, dtype = a["q"].shape[1], a["q"].shape[3], a["q"].dtype
        a |= {n: rng.normal(tokens, heads, width, dtype=dtype) for n in "qkv"}
        a["query_mask"] = rng.maybe(lambda: rng.mask(tokens))
    if a["bias"] is not None and a.get("shifted"):
        a["bias"] = rng.normal(a["bias"].shape[0], 2 * a["window"] - 1, dtype=a["bias"].dtype)
    return a


def check_public(a: dict[str, Any], out: Tensor) -> None:
    if not {"dilation", "shifted", "cu_seqlens"} & a.keys():
        check_dense(a, out)
    elif all_ordinary(*(a[n] for n in ("q", "k", "v", "bias"))):
        window = a["window"] if a["bias"] is not None or a.get("shifted") else widest(a["window"], out.numel(), None)
        if window > 10_000:
            return  # the definition has no room for it
        exact = reference.local_attention(
            **{**a, **{n: double(a[n]) for n in ("q", "k", "v", "bias")}, "window": window}
        )
        eager = os.environ.get("TZN_BACKEND") == "reference" or a.get("shifted")
        assert_near(out, exact, "out", size=1 + scores_size(a["q"], a["k"]), inner=out.dtype if eager else None)


def packed_arguments(rng: Random) -> dict[str, Any]:
    """Queries of one or several recordings on one time axis with gaps."""
    keys, heads, width = rng.size(90), max(rng.size(4), 1), max(rng.size(40), 1)
    window, dtype = 2 * rng.size(12) + 1, rng.choice(FLOATS)
    position = torch.randint(1, 4, (keys,), generator=rng.torch).cumsum(0)
    slot = rng.mask(keys).nonzero().squeeze(1)
    q = rng.normal(len(slot), heads, width, dtype=dtype)
    k, v = (rng.normal(keys, heads, width, dtype=dtype) for _ in range(2))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "q": q, "k": k, "v": v, "window": window, "slot": slot, "position": position,
        "bias": rng.maybe(lambda: rng.normal(heads, window, dtype=compute)),
    }  # fmt: skip


def widest(window: int, steps: int, bias: Tensor | None) -> int:
    """A window that reaches as far, small enough for the definition."""
    return window if bias is not None else min(window, 2 * steps + 1)


def right_rows(a: dict[str, Any]) -> Tensor:
    """``[B, T]``: rows whose result depends on ordinary numbers only."""
    batch, _, steps, _ = a["q"].shape
    everything = torch.ones(batch, steps, dtype=torch.bool)
    valid = everything if a["mask"] is None else a["mask"]
    wanted = valid if a["query_mask"] is None else valid & a["query_mask"]
    bad_key = ~(ordinary(a["k"]).all(3) & ordinary(a["v"]).all(3)).all(1) & valid
    radius = min(a["window"] // 2, steps)
    near = F.max_pool1d(bad_key.float()[:, None], 2 * radius + 1, 1, radius)[:, 0] > 0 if bad_key.numel() else bad_key
    return ~wanted | (~near & ordinary(a["q"]).all(3).all(1))


def tidy(x: Tensor) -> Tensor:
    """Float64 with zeros for what is not ordinary: the definition multiplies masked values by 0, and 0 * inf is NaN."""
    return torch.where(ordinary(x), x.detach().double(), 0.0)


def check_dense(a: dict[str, Any], out: Tensor) -> None:
    """Forward against the definition in float64, row by row."""
    if a["bias"] is not None and not all_ordinary(a["bias"]):
        return
    eager = os.environ.get("TZN_BACKEND") == "reference"
    if eager and not all_ordinary(a["q"], a["k"], a["v"]):
        return  # its tiles multiply a neighbour's inf by 0
    window = widest(a["window"], a["q"].shape[2], a["bias"])
    exact = reference.local_attention(
        *(tidy(a[n]) for n in "qkv"), window, mask=a["mask"], query_mask=a["query_mask"], bias=double(a["bias"])
    )
    right = right_rows(a)[:, None, :, None].expand(out.shape)
    spread = 1 + scores_size(a["q"], a["k"])
    assert_near(
        torch.where(right, out.detach(), 0),
        torch.where(right, exact, 0.0),
        "out",
        size=spread,
        inner=out.dtype if eager else None,
    )


def scores_size(q: Tensor, k: Tensor) -> float:
    """How large the scores get: their rounding decides the precision of the result."""
    if not q.numel() or not k.numel():
        return 0.0
    return float(tidy(q).norm(dim=-1).max() * tidy(k).norm(dim=-1).max()) / q.shape[-1] ** 0.5


def packed_exact(a: dict[str, Any]) -> Tensor:
    """Every query against every key with a mask: nothing shared with what is tested."""
    q, k, v = (a[n].double() for n in "qkv")
    apart = a["position"][None] - a["position"][a["slot"]][:, None]  # [A, S]
    allowed = apart.abs() <= a["window"] // 2
    scores = torch.einsum("ahd,shd->has", q, k) / q.shape[2] ** 0.5
    if a["bias"] is not None:
        scores = scores + a["bias"].double()[:, (apart + a["window"] // 2).clamp(0, a["window"] - 1)]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("has,shd->ahd", weights, v)

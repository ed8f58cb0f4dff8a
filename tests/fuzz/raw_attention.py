"""The registered attention ops, forward and backward, dense and packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention import check_dense, dense_arguments, packed_arguments, packed_exact, scores_size
from compare import all_ordinary, assert_near, double, elsewhere
from inputs import Random

from tzn import reference

Arguments = dict[str, Any]
Check = Callable[[Random], None]


def native(op: str, a: Arguments) -> Any:
    return getattr(torch.ops.tzn_native, op)(*a.values())


def _local_arguments(rng: Random) -> Arguments:
    a = dense_arguments(rng)
    compute = torch.float64 if a["q"].dtype == torch.float64 else torch.float32
    a["bias"] = None if a["bias"] is None else a["bias"].to(compute)
    return {**a, "out": torch.empty_like(a["q"])}


def _local_attention(a: Arguments) -> Check:
    native("local_attention", a)
    return lambda rng: None if elsewhere(a) else check_dense(a, a["out"])


def _with_gradients(a: Arguments) -> Arguments:
    """Adds the incoming gradient in front, and where to write the others at the end."""
    rows = {n: torch.empty_like(a[n[1:]]) for n in ("dq", "dk", "dv")}
    grad = torch.ones_like(a["q"]) * torch.linspace(-1, 1, max(a["q"].shape[-1], 1)).to(a["q"].dtype)
    dbias = None if a["bias"] is None else torch.empty_like(a["bias"])
    return {"grad": grad, **{n: x for n, x in a.items() if n != "out"}, **rows, "dbias": dbias}


def _packed_attention(a: Arguments) -> Check:
    native("packed_local_attention", a)

    def check(rng: Random) -> None:
        if not elsewhere(a) and all_ordinary(*(a[n] for n in ("q", "k", "v", "bias"))):
            assert_near(a["out"], packed_exact(a), "out", size=1 + scores_size(a["q"], a["k"]))

    return check


def _attention_backward(op: str, exact: Callable[[Arguments], torch.Tensor]) -> Callable[[Arguments], Check]:
    names = ["q", "k", "v", "bias"]

    def call(a: Arguments) -> Check:
        native(op, a)

        def check(rng: Random) -> None:
            if elsewhere(a) or not all_ordinary(*(a[n] for n in (*names, "grad"))):
                return
            used = [n for n in names if a[n] is not None]
            leaves = {n: double(a[n]).clone().requires_grad_() for n in used}
            found = torch.autograd.grad(
                exact({**a, **leaves}), list(leaves.values()), double(a["grad"]), allow_unused=True
            )
            for name, wanted in zip(used, found, strict=True):
                if a[f"d{name}"] is not None:
                    wanted = torch.zeros_like(leaves[name]) if wanted is None else wanted
                    terms = 1 + a["q"].numel() / max(a["q"].shape[-1], 1)
                    size = (1 + scores_size(a["q"], a["k"])) * (terms if name == "bias" else a["window"] + 1)
                    assert_near(a[f"d{name}"], wanted, f"d{name}", size=size)

        return check

    return call


def _dense_exact(a: Arguments) -> torch.Tensor:
    window = a["window"] if a["bias"] is not None else min(a["window"], 2 * a["q"].shape[2] + 1)
    return reference.local_attention(
        a["q"], a["k"], a["v"], window, mask=a["mask"], query_mask=a["query_mask"], bias=a["bias"]
    )


def _packed_arguments(rng: Random) -> Arguments:
    a = packed_arguments(rng)
    return {**a, "out": torch.empty_like(a["q"])}


RAW_ATTENTION: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "native.local_attention": (_local_arguments, _local_attention),
    "native.local_attention_backward": (
        lambda rng: _with_gradients(_local_arguments(rng)),
        _attention_backward("local_attention_backward", _dense_exact),
    ),
    "native.packed_local_attention": (_packed_arguments, _packed_attention),
    "native.packed_local_attention_backward": (
        lambda rng: _with_gradients(_packed_arguments(rng)),
        _attention_backward("packed_local_attention_backward", packed_exact),
    ),
}

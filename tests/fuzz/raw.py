"""The registered ops ``torch.ops.tzn_native.*``, called as nobody should: they check what they index with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention import check_dense, dense_arguments, packed_arguments, packed_exact, scores_size
from compare import all_ordinary, assert_near, assert_same, double, elsewhere
from inputs import Random
from public import assert_scores, candidates, field_arguments, gate_arguments, median_may_jump

from tzn import reference
from tzn.ops import dispatch, native_nms
from tzn.reference.nms import vote_segments

Arguments = dict[str, Any]
Check = Callable[[Random], None]
METHODS = ("gaussian", "linear", "hard", "remove")
ESTIMATORS = list(dispatch.ESTIMATORS)


def native(op: str, a: Arguments) -> Any:
    return getattr(torch.ops.tzn_native, op)(*a.values())


def _active_tokens(a: Arguments) -> Check:
    out = native("active_tokens", a)

    def check(rng: Random) -> None:
        if not elsewhere(a):
            window = min(a["window"], 2 * a["gate"].shape[1] + 1)
            assert_same(out, reference.active_tokens(a["gate"], window, a["mask"]), "tokens")

    return check


def _crossing_arguments(rng: Random) -> Arguments:
    a = field_arguments(rng)
    return {
        "distance": a["distance"], "scale": a["scale"], "mask": a["mask"],
        "estimator": ESTIMATORS.index(a["estimator"]), "window": a["vote_window"], "min_slope": a["min_slope"],
    }  # fmt: skip


def _boundary_crossings(a: Arguments) -> Check:
    out = native("boundary_crossings", a)

    def check(rng: Random) -> None:
        positive = not elsewhere(a) and all_ordinary(a["distance"], a["scale"]) and bool((a["scale"] > 1e-3).all())
        if positive and not median_may_jump(a["scale"], ESTIMATORS[a["estimator"]]):
            wanted = reference.boundary_crossings(
                a["distance"], a["scale"], estimator=ESTIMATORS[a["estimator"]], vote_window=a["window"],
                min_slope=a["min_slope"], mask=a["mask"],
            )  # fmt: skip
            assert torch.equal(out[3], wanted.count)
            for given, exact in zip(out[:3], wanted[:3], strict=True):
                assert_near(given, exact, "crossings", size=1000)

    return check


def _selection_arguments(rng: Random) -> Arguments:
    points = rng.size(60)
    level = torch.randint(4, (points,), generator=rng.torch)
    dtype = rng.choice((torch.float32, torch.float64))
    return {"scores": rng.uniform(points, rng.size(5), dtype=dtype), "level": level, "min_score": 0.3, "topk": rng.size(9)}


def _select_candidates(a: Arguments) -> Check:
    out = native("select_candidates", a)

    def check(rng: Random) -> None:
        if not elsewhere(a) and a["topk"] > 0 and not a["scores"].isnan().any():
            wanted = reference.select_candidates(a["scores"], a["level"], min_score=a["min_score"], topk=a["topk"])
            assert_same(out, wanted, "candidates")

    return check


def _suppress_arguments(rng: Random) -> Arguments:
    segments, scores, labels = candidates(rng, rng.choice((torch.float32, torch.float64)))
    return {
        "segments": segments, "scores": scores, "labels": rng.maybe(lambda: labels), "method": rng.integer(0, 3),
        "iou_threshold": rng.python.random(), "sigma": 0.5, "min_score": 0.01, "above": rng.choice((0.0, 0.3)),
        "total": rng.size(40),
    }  # fmt: skip


def _one_group(a: Arguments, keep: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks among the candidates ``keep`` by the definition: index and score."""
    segments, scores = a["segments"][keep], a["scores"][keep]
    if METHODS[a["method"]] == "remove":
        index = reference.nms(segments, scores, a["iou_threshold"], max_seg_num=total)
        return keep[index], scores[index]
    index, score = reference.soft_nms(
        segments, scores, iou_threshold=a["iou_threshold"], sigma=a["sigma"], min_score=a["min_score"],
        method=METHODS[a["method"]], max_seg_num=total,
    )  # fmt: skip
    return keep[index], score


def _comparable(a: Arguments) -> bool:
    """Whether the definition gives the same picks: plain candidates, settings without NaN."""
    settings = [a[n] for n in ("iou_threshold", "sigma", "min_score", "above")]
    plain = a["sigma"] > 1e-30 and all(s >= 0 for s in settings)
    return plain and all_ordinary(a["segments"]) and native_nms.serves(*(a[n].flatten(0, -2) if n == "segments" else a[n].flatten() for n in ("segments", "scores")))  # noqa: E501


def _suppress_segments(a: Arguments) -> Check:
    index, score = native("suppress_segments", a)

    def check(rng: Random) -> None:
        if elsewhere(a):
            return
        count = a["scores"].shape[0]
        assert len(index.unique()) == len(index) and ((index >= 0) & (index < count)).all()
        if not _comparable(a):
            return
        assert (score[1:] <= score[:-1]).all()
        if a["labels"] is None:
            keep = ((a["scores"] > a["above"]) | (a["above"] <= 0)).nonzero().squeeze(1)
            wanted = _one_group(a, keep, a["total"])
            assert_same(index, wanted[0], "picks")
            assert_scores(score, wanted[1])

    return check


def _group_arguments(rng: Random) -> Arguments:
    rows, number, groups = rng.size(3), rng.size(70), max(rng.size(4), 1)
    parts = [candidates(rng, torch.float32, number) for _ in range(rows)]
    segments, scores, labels = (torch.stack(x) if rows else None for x in (zip(*parts, strict=True) if rows else (0, 0, 0)))
    if not rows:
        segments, scores, labels = torch.zeros(0, number, 2), torch.zeros(0, number), torch.zeros(0, number)
    counts = torch.randint(number + 1, (rows,), generator=rng.torch)
    return {
        "segments": segments, "scores": scores, "labels": rng.maybe(lambda: labels.int()),
        "counts": rng.maybe(lambda: counts), "groups": groups, "capacity": rng.size(20), "method": rng.integer(0, 3),
        "iou_threshold": rng.python.random(), "sigma": 0.5, "min_score": 0.01, "above": 0.0,
    }  # fmt: skip


def _suppress_groups(a: Arguments) -> Check:
    index, score, made = native("suppress_groups", a)

    def check(rng: Random) -> None:
        if elsewhere(a):
            return
        number = a["scores"].shape[1]
        place = torch.arange(a["capacity"]).expand(index.shape)
        assert torch.equal(index >= 0, place < made[..., None]) and (index < number).all()
        assert ((score == -torch.inf) == (index < 0)).all() and (made <= a["capacity"]).all()
        if not _comparable(a) or not a["capacity"]:
            return
        used = torch.full((len(index),), number) if a["counts"] is None else a["counts"]
        labels = torch.zeros(a["scores"].shape) if a["labels"] is None else a["labels"]
        for r in range(index.shape[0]):
            one = {**a, "segments": a["segments"][r], "scores": a["scores"][r]}
            for g in range(min(index.shape[1], 8)):
                chosen = (labels[r] == g) & (torch.arange(number) < used[r])
                if a["above"] > 0:
                    chosen &= one["scores"] > a["above"]
                wanted = _one_group(one, chosen.nonzero().squeeze(1), a["capacity"])
                assert_same((index[r, g, : made[r, g]].long(), score[r, g, : made[r, g]]), wanted, "picks")

    return check


def _plain_candidates(a: Arguments) -> Check:
    plain = native("plain_candidates", a)

    def check(rng: Random) -> None:
        served = a["scores"].dtype in (torch.float32, torch.float64)
        finite = served and bool(a["segments"].isfinite().all() and a["scores"].isfinite().all() and (a["scores"] >= 0).all())
        assert finite or not plain
        assert plain or not (finite and all_ordinary(a["segments"]))

    return check


def _vote_arguments(rng: Random) -> Arguments:
    dtype, groups = rng.choice((torch.float32, torch.float64)), rng.chance(0.5)
    kept, _, kept_labels = candidates(rng, dtype, rng.size(20))
    segments, scores, labels = candidates(rng, dtype)
    return {
        "kept": kept, "segments": segments, "scores": scores, "threshold": rng.choice((0.0, 0.3, 0.75)),
        "kept_group": kept_labels if groups else None, "group": labels if groups else None,
    }  # fmt: skip


def _vote_segments(a: Arguments) -> Check:
    out = native("vote_segments", a)

    def check(rng: Random) -> None:
        if elsewhere(a) or not len(a["scores"]) or not (a["scores"] > 0.01).all():
            return
        if not all_ordinary(a["kept"], a["segments"], a["scores"]):
            return
        if (a["segments"][:, 1] >= a["segments"][:, 0]).all() and (a["kept"][:, 1] >= a["kept"][:, 0]).all():
            groups = a["kept_group"], a["group"]
            wanted = vote_segments(a["kept"], a["segments"], a["scores"], a["threshold"], *groups)
            assert_near(out, wanted, "votes", size=1000)

    return check


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


RAW: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "native.active_tokens": (gate_arguments, _active_tokens),
    "native.boundary_crossings": (_crossing_arguments, _boundary_crossings),
    "native.select_candidates": (_selection_arguments, _select_candidates),
    "native.suppress_segments": (_suppress_arguments, _suppress_segments),
    "native.suppress_groups": (_group_arguments, _suppress_groups),
    "native.plain_candidates": (
        lambda rng: dict(zip(("segments", "scores"), candidates(rng, rng.choice((torch.float32, torch.float64))), strict=False)),
        _plain_candidates,
    ),
    "native.vote_segments": (_vote_arguments, _vote_segments),
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

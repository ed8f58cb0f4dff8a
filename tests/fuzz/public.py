"""Every function of ``tzn.ops`` with random arguments, and what its answer must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from attention import check_public, public_arguments
from block import block_arguments, variable_depth_block
from compare import all_ordinary, answer, assert_near, assert_same, double, elsewhere, ordinary
from inputs import FLOATS, Random
from torch import Tensor

from tzn import ops, reference
from tzn.reference.nms import METHODS, VOTE_WEIGHTS

Arguments = dict[str, Any]
Check = Callable[[Random], None]


def gate_arguments(rng: Random) -> Arguments:
    batch, steps = rng.size(3), rng.size(70)
    gate = rng.uniform(batch, steps, dtype=rng.choice(FLOATS)) * rng.mask(batch, steps)
    return {"gate": gate, "window": 2 * rng.size(12) + 1, "mask": rng.maybe(lambda: rng.mask(batch, steps))}


def field_arguments(rng: Random) -> Arguments:
    """Noisy distance fields with several crossings."""
    fields, steps, dtype = rng.size(3), rng.size(70), rng.choice((torch.float32, torch.float64))
    boundaries = steps * rng.uniform(fields, rng.size(8)).sort(dim=1).values
    distance = reference.signed_distance(boundaries, steps, 12.0) + 0.8 * rng.normal(fields, steps)
    return {
        "distance": distance.to(dtype), "scale": (0.2 + rng.uniform(fields, steps)).to(dtype),
        "estimator": rng.choice(("vote_median", "vote_mean", "crossing")), "vote_window": rng.integer(1, 6),
        "min_slope": 0.1, "mask": rng.maybe(lambda: rng.mask(fields, steps)),
    }  # fmt: skip


def median_may_jump(scale: Tensor, estimator: str) -> bool:
    """Whether scales repeat, so that half of the weight may lie on either side, up to rounding: any median will do."""
    return estimator == "vote_median" and scale.numel() > 0 and len(scale.unique()) < scale.numel()


def assert_crossings(given: ops.Crossings, wanted: ops.Crossings) -> None:
    """Equal; but rounding decides the order of boundaries at the same place, as wide votes find them."""
    assert torch.equal(given.count, wanted.count)
    assert_near(given.position, wanted.position, "position", size=1000)
    apart = bool((wanted.position.diff(dim=1).nan_to_num(1.0, 1.0) > 1e-3).all())
    for ours, true, name in ((given.std, wanted.std, "std"), (given.slope, wanted.slope, "slope")):
        ours, true = (ours, true) if apart else (ours.sort(dim=1).values, true.sort(dim=1).values)
        assert_near(ours, true, name, size=1000)


def candidates(rng: Random, dtype: torch.dtype, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, some of no length and some equal; scores, some equal; labels of a few classes."""
    count = rng.size(150) if count is None else count
    start = 50 * rng.uniform(count, dtype=dtype)
    length = 10 * rng.uniform(count, dtype=dtype) * rng.mask(count)
    if rng.chance(0.3):
        start, length = start.round(), length.round()
    scores = rng.uniform(count, dtype=dtype)
    scores = (scores * 8).round() / 8 if rng.chance(0.3) else scores
    return torch.stack([start, start + length], 1), scores, torch.randint(4, (count,), generator=rng.torch)


def assert_scores(given: Tensor, wanted: Tensor) -> None:
    """Equal bit by bit but in float64, where two exponential functions may differ in the last place."""
    if given.dtype == torch.float64:
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=0, equal_nan=True)
    else:
        assert_same(given, wanted, "scores")


def assert_picks(index: Tensor, score: Tensor, wanted: Tensor, wanted_score: Tensor) -> None:
    """The same candidates in the same order, but for those in float64 whose scores differ in rounding alone."""
    if torch.equal(index, wanted) or score.dtype != torch.float64:
        return assert_same(index, wanted, "picks")
    assert index.shape == wanted.shape, "picks"
    for place in (index != wanted).nonzero().squeeze(1).tolist():
        there = (wanted == index[place]).nonzero().squeeze(1)
        # Not there: of two that tie, the one that is not picked may decay below the least score. All scores are compared too.
        if len(there):
            given = wanted_score[there]
            torch.testing.assert_close(given, score[place : place + 1], rtol=1e-12, atol=0, msg=lambda m: f"picks: {m}")


@answer(lambda a: ops.soft_nms(**a))
def _soft_nms(a: Arguments, out: Any, rng: Random) -> None:
    index, score = out
    wanted = reference.soft_nms(**a)
    assert_scores(score, wanted[1])
    assert_picks(index, score, *wanted)


def _as_reference(name: str) -> Callable[[Arguments], Check]:
    """Calls the op; the check calls the definition with the same arguments."""

    def call(a: Arguments) -> Check:
        out = getattr(ops, name)(**a)

        def check(rng: Random) -> None:
            if not elsewhere(a):
                assert_same(out, getattr(reference, name)(**a), name)

        return check

    return call


@answer(lambda a: ops.active_tokens(**a))
def _active_tokens(a: Arguments, out: Any, rng: Random) -> None:
    window = min(a["window"], 2 * a["gate"].shape[1] + 1)
    assert_same(out, reference.active_tokens(a["gate"], window, a["mask"]), "tokens")


@answer(lambda a: ops.depth_gates(**a))
def _depth_gates(a: Arguments, out: Any, rng: Random) -> None:
    layer = torch.arange(a["num_layers"], dtype=torch.float64)
    wanted = (a["num_layers"] * a["tau"].detach().double()[..., None] - layer).clamp(0, 1)
    size = a["num_layers"] * torch.finfo(out.dtype).eps / torch.finfo(torch.float32).eps
    assert_near(out, wanted, "gates", size=size, inner=torch.float32)


def _distance(name: str) -> Callable[[Arguments], Check]:
    def call(a: Arguments) -> Check:
        out = getattr(ops, name)(**a)

        def check(rng: Random) -> None:
            places = next(iter(a.values()))
            if elsewhere(a) or places.dtype not in (torch.float32, torch.float64) or a["num_steps"] > 10_000:
                return
            places = (places.flatten() if name == "region_distance" else places).detach().double()
            places = torch.where(places.isfinite(), places, torch.inf)
            apart = (torch.arange(a["num_steps"]).double()[:, None] - places[..., None, :]).abs()
            nearest = torch.cat([apart, torch.full_like(apart[..., :0].sum(-1, keepdim=True), torch.inf)], -1).amin(-1)
            assert_near(out.abs(), nearest.clamp(max=a["radius"]), "size of the distance", size=a["num_steps"] + 1)

        return check

    return call


@answer(lambda a: ops.boundary_crossings(**a))
def _boundary_crossings(a: Arguments, out: Any, rng: Random) -> None:
    tame = not elsewhere(a) and all_ordinary(a["distance"], a["scale"]) and bool((a["scale"] > 1e-3).all())
    if tame and not median_may_jump(a["scale"], a["estimator"]):
        wanted = reference.boundary_crossings(**a)
        assert_crossings(out, wanted)


def _selection_arguments(rng: Random) -> Arguments:
    points = rng.size(60)
    level = torch.randint(4, (points,), generator=rng.torch)
    scores = rng.uniform(points, rng.size(5), dtype=rng.choice(FLOATS))
    return {"scores": scores, "level": level, "min_score": 0.3, "topk": max(rng.size(9), 1)}


def _padded_selection_arguments(rng: Random) -> Arguments:
    points, levels = rng.size(40), rng.integer(1, 4)
    level = torch.randint(levels, (points,), generator=rng.torch).sort().values
    scores = rng.uniform(rng.size(3), points, rng.size(4), dtype=rng.choice(FLOATS))
    given = rng.choice([levels, level.bincount(minlength=levels).tolist()])
    return {"scores": scores, "level": level, "levels": given, "min_score": 0.3, "topk": max(rng.size(9), 1)}


@answer(lambda a: ops.select_candidates_padded(**a))
def _select_candidates_padded(a: Arguments, out: Any, rng: Random) -> None:
    if a["scores"].isnan().any():
        return
    for r in range(len(a["scores"])):
        wanted = reference.select_candidates(a["scores"][r], a["level"], min_score=a["min_score"], topk=a["topk"])
        there = out.score[r] != -torch.inf
        assert_same([x[r][there] for x in out], list(wanted), "candidates")
        assert not out.point[r][~there].any() and (out.label[r][~there] == -1).all()


def _crossings(rng: Random, dtype: torch.dtype) -> ops.Crossings:
    places = rng.size(9)
    count = torch.tensor([rng.size(places)])
    position = (60 * rng.uniform(1, places, dtype=dtype)).sort().values
    position[:, int(count) :] = torch.inf
    return ops.Crossings(position, rng.uniform(1, places, dtype=dtype), torch.ones(1, places, dtype=dtype), count)


def _decode_arguments(rng: Random) -> Arguments:
    count, dtype, both = rng.size(40), rng.choice((torch.float32, torch.float64)), rng.chance(0.7)
    offset = 10 * rng.uniform(count, 2, dtype=dtype)
    return {
        "position": 60 * rng.uniform(count, dtype=dtype), "offset": offset,
        "offset_std": 3 * rng.uniform(count, 2, dtype=dtype), "starts": _crossings(rng, dtype) if both else None,
        "ends": _crossings(rng, dtype) if both else None, "snap_sigmas": 3.0,
    }  # fmt: skip


@answer(lambda a: ops.decode_segments(**a))
def _decode_segments(a: Arguments, out: Any, rng: Random) -> None:
    tables = [table.position for table in (a["starts"], a["ends"]) if table is not None]
    if not all(bool((p[..., :-1] <= p[..., 1:]).all()) for p in tables):
        return  # of crossings in disorder any may be taken for the nearest
    for ours, true, name in zip(out, reference.decode_segments(**a), ("segments", "std"), strict=True):
        assert_near(ours, true, name, size=100)


def _pair_arguments(rng: Random) -> Arguments:
    dtype = rng.choice((torch.float32, torch.float64))
    scores = rng.uniform(rng.size(60), rng.size(5), dtype=dtype)
    return {
        "starts": _crossings(rng, dtype), "ends": _crossings(rng, dtype), "class_scores": scores,
        "max_ends": max(rng.size(5), 1), "topk": max(rng.size(30), 1),
    }  # fmt: skip


@answer(lambda a: ops.segment_iou(**a))
def _segment_iou(a: Arguments, out: Any, rng: Random) -> None:
    same = a["a"].dtype == a["b"].dtype
    if not elsewhere(a) and same and all_ordinary(a["a"], a["b"]) and out.dtype in (torch.float32, torch.float64):
        wanted = reference.segment_iou(double(a["a"]), double(a["b"]), a["kind"])
        long = (a["a"][:, 1] - a["a"][:, 0] > 1)[:, None] & (a["b"][:, 1] - a["b"][:, 0] > 1)[None]
        assert out.shape == wanted.shape
        assert_near(out[long], wanted[long], "iou", size=100)
        assert ((out.detach() <= 1 + 1e-6) | out.isnan()).all()


def _suppression(kind: str) -> Callable[[Random], Arguments]:
    def make(rng: Random) -> Arguments:
        segments, scores, labels = candidates(rng, rng.choice(FLOATS))
        common = {"segments": segments, "scores": scores, "iou_threshold": rng.python.random(), "min_score": 0.01}
        cap = {"max_seg_num": rng.choice((0, 1, 20, 500))}
        overlap = rng.choice(("iou", "diou"))
        if kind == "nms":
            return {**common, **cap, "overlap": overlap}
        soft = {"sigma": rng.choice((0.1, 0.5, 2.0)), "method": rng.choice(("gaussian", "linear", "zero"))}
        if kind == "soft_nms":
            return {**common, **cap, **soft}
        flags = {n: rng.chance(0.5) for n in ("use_soft_nms", "multiclass", "per_class_voting")}
        if flags["use_soft_nms"]:
            overlap = "iou"
        found = {
            **common, **cap, **soft, **flags, "labels": labels, "voting_thresh": rng.choice((0.0, 0.5, 0.9)),
            "overlap": overlap, "vote_weight": rng.choice(VOTE_WEIGHTS), "return_index": rng.chance(0.5),
        }  # fmt: skip
        if kind == "batched_nms_many":
            found["max_seg_num"] = max(found["max_seg_num"], 1)
            cuts = torch.sort(torch.randint(len(labels) + 1, (rng.size(4),), generator=rng.torch)).values
            ends = torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([len(labels)])])
            found["counts"] = ends.diff()
        return found

    return make


def _kind(a: Arguments) -> str:
    return a["method"] if a["use_soft_nms"] else {"iou": "hard", "diou": "diou"}[a["overlap"]]


def _batched(name: str) -> Callable[[Arguments], Check]:
    def call(a: Arguments) -> Check:
        out = getattr(ops, name)(**a)

        def check(rng: Random) -> None:
            if elsewhere(a):
                return
            same = {n: x for n, x in a.items() if n not in ("use_soft_nms", "method", "overlap", "return_index")}
            parts = [same] if name == "batched_nms" else list(_recordings(same))
            wanted = [reference.batched_nms(**part, method=_kind(a)) for part in parts]
            segments, scores, labels = (
                torch.cat([w[i] for w in wanted]) if wanted else a[n][:0]
                for i, n in enumerate(("segments", "scores", "labels"))
            )
            assert_same(out[2], labels, "labels")
            assert len(out) == (3 if name == "batched_nms" else 4) + bool(a["return_index"])
            if a["return_index"]:
                assert_same(a["labels"][out[-1]], labels, "labels of the picks")
            if name == "batched_nms":
                assert_scores(out[1], scores)
            else:
                assert out[3].tolist() == [len(w[1]) for w in wanted]
            if a["segments"].dtype in (torch.float32, torch.float64) and bool(ordinary(a["segments"]).all()):
                assert_near(out[0], segments, "segments", size=1000)

        return check

    return call


def _padded_arguments(rng: Random) -> Arguments:
    recordings, number = rng.size(3), rng.size(60)
    dtype = rng.choice((torch.float32, torch.float32, torch.float64))
    parts = [candidates(rng, dtype, number) for _ in range(max(recordings, 1))]
    segments, scores, labels = (torch.stack(x)[:recordings] for x in zip(*parts, strict=True))
    scores = torch.where(rng.mask(recordings, number), scores, -torch.inf)
    return {
        "segments": segments, "scores": scores, "labels": labels, "classes": rng.integer(1, 4),
        "capacity": rng.integer(1, 40), "method": rng.choice((*METHODS, "none")), "multiclass": rng.chance(0.5),
        "iou_threshold": rng.python.random(), "sigma": 0.5, "min_score": 0.01, "voting_thresh": rng.choice((0.0, 0.5)),
        "vote_weight": rng.choice(VOTE_WEIGHTS), "per_class_voting": rng.chance(0.5),
    }  # fmt: skip


@answer(lambda a: ops.nms_padded(**a))
def _nms_padded(a: Arguments, out: Any, rng: Random) -> None:
    if not len(out.num_kept):
        return
    there = torch.arange(a["capacity"]) < out.num_kept[:, None]
    assert torch.equal(out.score != -torch.inf, there) or bool(a["scores"].isnan().any())
    assert (out.index[~there] == 0).all() and (out.label[~there] == -1).all() and not out.segments[~there].any()
    if not all_ordinary(a["segments"], torch.where(a["scores"] == -torch.inf, 0.0, a["scores"])):
        return
    if a["segments"].dtype != a["scores"].dtype:
        return
    rule = {n: a[n] for n in ("iou_threshold", "min_score", "sigma", "method", "multiclass")}
    if not all(a[n] >= 0 for n in ("iou_threshold", "min_score", "sigma")) or not a["sigma"] > 1e-30:
        return
    if bool((a["segments"][..., 1] < a["segments"][..., 0]).any() or (a["scores"].clamp(min=-1) == -0.5).any()):
        return
    for r in range(len(there)):
        mine = (a["scores"][r] > -torch.inf).nonzero().squeeze(1)
        if a["multiclass"] and a["method"] != "none":
            mine = mine[(a["labels"][r, mine] >= 0) & (a["labels"][r, mine] < a["classes"])]
        segments, scores, labels = (a[n][r, mine] for n in ("segments", "scores", "labels"))
        number = int(out.num_kept[r])
        if a["method"] == "none":
            assert_same(out.score[r, :number], scores.sort(descending=True)[0][: a["capacity"]], "scores")
        elif (scores >= 0).all():
            wanted = reference.batched_nms(
                segments, scores, labels, max_seg_num=a["capacity"], voting_thresh=0.0, **rule
            )
            assert_same(out.label[r, :number], wanted[2].to(out.label.dtype), "labels")
            assert_scores(out.score[r, :number], wanted[1])
            if a["voting_thresh"] == 0:
                assert_same(out.segments[r, :number], wanted[0], "segments")


def _recordings(a: Arguments) -> Iterable[Arguments]:
    lists = ("segments", "scores", "labels")
    for part in zip(*(a[n].split(a["counts"].tolist()) for n in lists), strict=True):
        yield {n: x for n, x in a.items() if n != "counts"} | dict(zip(lists, part, strict=True))


def _local_attention(a: Arguments) -> Check:
    out = ops.local_attention(**a)
    return lambda rng: None if elsewhere(a) else check_public(a, out)


def _two_lists(rng: Random) -> Arguments:
    dtype = rng.choice(FLOATS)
    a, b = (candidates(rng, dtype, rng.size(30))[0] for _ in range(2))
    return {"a": a, "b": b, "kind": rng.choice(("iou", "diou"))}


PUBLIC: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "active_tokens": (gate_arguments, _active_tokens),
    "batched_nms": (_suppression("batched_nms"), _batched("batched_nms")),
    "batched_nms_many": (_suppression("batched_nms_many"), _batched("batched_nms_many")),
    "boundary_crossings": (field_arguments, _boundary_crossings),
    "decode_segments": (_decode_arguments, _decode_segments),
    "depth_gates": (
        lambda rng: {
            "tau": rng.uniform(rng.size(3), rng.size(20), dtype=rng.choice(FLOATS)),
            "num_layers": rng.integer(1, 8),
        },
        _depth_gates,
    ),
    "local_attention": (public_arguments, _local_attention),
    "nms": (_suppression("nms"), _as_reference("nms")),
    "pair_segments": (_pair_arguments, _as_reference("pair_segments")),
    "region_distance": (
        lambda rng: {
            "segments": candidates(rng, torch.float32, rng.size(9))[0],
            "num_steps": rng.size(60),
            "radius": 8.0,
        },
        _distance("region_distance"),
    ),
    "segment_iou": (_two_lists, _segment_iou),
    "nms_padded": (_padded_arguments, _nms_padded),
    "select_candidates": (_selection_arguments, _as_reference("select_candidates")),
    "select_candidates_padded": (_padded_selection_arguments, _select_candidates_padded),
    "signed_distance": (
        lambda rng: {
            "boundaries": 60 * rng.uniform(rng.size(3), rng.size(9)),
            "num_steps": rng.size(60),
            "radius": 8.0,
        },
        _distance("signed_distance"),
    ),
    "soft_nms": (_suppression("soft_nms"), _soft_nms),
    "variable_depth_block": (block_arguments, variable_depth_block),
}

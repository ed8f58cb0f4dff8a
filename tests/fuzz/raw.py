"""The registered ops ``torch.ops.tzn_native.*``, called as nobody should: they check what they index with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compare import all_ordinary, answer, assert_near, assert_same, elsewhere
from inputs import Random
from public import (
    assert_crossings,
    assert_picks,
    assert_scores,
    candidates,
    field_arguments,
    gate_arguments,
    median_may_jump,
)
from raw_attention import RAW_ATTENTION, Arguments, Check, native
from raw_rows import RAW_ROWS
from torch import Tensor

from tzn import reference
from tzn.ops._backend import LAYOUT
from tzn.reference.boundary_crossings import ESTIMATORS
from tzn.reference.nms import HARD, METHODS, VOTE_WEIGHTS, vote_segments


@answer(lambda a: native("active_tokens", a))
def _active_tokens(a: Arguments, out: Any, rng: Random) -> None:
    window = min(a["window"], 2 * a["gate"].shape[1] + 1)
    assert_same(out, reference.active_tokens(a["gate"], window, a["mask"]), "tokens")


def _crossing_arguments(rng: Random) -> Arguments:
    a = field_arguments(rng)
    return {
        "distance": a["distance"], "scale": a["scale"], "mask": a["mask"],
        "estimator": ESTIMATORS.index(a["estimator"]), "window": a["vote_window"], "min_slope": a["min_slope"],
    }  # fmt: skip


@answer(lambda a: native("boundary_crossings", a))
def _boundary_crossings(a: Arguments, out: Any, rng: Random) -> None:
    positive = not elsewhere(a) and all_ordinary(a["distance"], a["scale"]) and bool((a["scale"] > 1e-3).all())
    if positive and not median_may_jump(a["scale"], ESTIMATORS[a["estimator"]]):
        wanted = reference.boundary_crossings(
            a["distance"], a["scale"], estimator=ESTIMATORS[a["estimator"]], vote_window=a["window"],
            min_slope=a["min_slope"], mask=a["mask"],
        )  # fmt: skip
        assert_crossings(reference.Crossings(*out), wanted)


def _selection_arguments(rng: Random) -> Arguments:
    points = rng.size(60)
    level = torch.randint(4, (points,), generator=rng.torch)
    dtype = rng.choice((torch.float32, torch.float64))
    return {
        "scores": rng.uniform(points, rng.size(5), dtype=dtype),
        "level": level,
        "min_score": 0.3,
        "topk": rng.size(9),
    }


@answer(lambda a: native("select_candidates", a))
def _select_candidates(a: Arguments, out: Any, rng: Random) -> None:
    if a["topk"] > 0 and not a["scores"].isnan().any():
        wanted = reference.select_candidates(a["scores"], a["level"], min_score=a["min_score"], topk=a["topk"])
        assert_same(out, wanted, "candidates")


def _rule(rng: Random) -> Arguments:
    return {
        "method": rng.integer(0, 4), "iou_threshold": rng.python.random(), "sigma": 0.5, "min_score": 0.01,
        "above": rng.choice((0.0, 0.3)),
    }  # fmt: skip


def _counts(rng: Random, number: int) -> Tensor:
    """Of several recordings that lie one after the other."""
    cuts = torch.sort(torch.randint(number + 1, (rng.size(4),), generator=rng.torch)).values
    return torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([number])]).diff()


def _recording_arguments(rng: Random) -> Arguments:
    segments, scores, labels = candidates(rng, rng.choice((torch.float32, torch.float64)))
    return {
        "segments": segments, "scores": scores, "labels": rng.maybe(lambda: labels),
        "counts": rng.maybe(lambda: _counts(rng, len(scores))), **_rule(rng), "total": rng.size(40),
    }  # fmt: skip


def _one_group(a: Arguments, keep: Tensor, labels: Tensor | None, total: int) -> tuple[Tensor, Tensor]:
    """Picks among the candidates ``keep`` by the definition: index and score."""
    method = METHODS[a["method"]]
    if a["above"] > 0:
        keep = keep[a["scores"][keep] > a["above"]]
    index, score = reference.suppress(
        a["segments"][keep], a["scores"][keep], None if labels is None else labels[keep], method=method,
        iou_threshold=a["iou_threshold"], sigma=a["sigma"], min_score=0.0 if method in HARD else a["min_score"],
        max_seg_num=total,
    )  # fmt: skip
    return keep[index], score


def _comparable(a: Arguments) -> bool:
    """Whether the definition gives the same picks: plain candidates, settings without NaN."""
    settings = [a[n] for n in ("iou_threshold", "sigma", "min_score", "above")]
    if not (a["sigma"] > 1e-30 and all(s >= 0 for s in settings) and all_ordinary(a["segments"])):
        return False
    return bool(torch.ops.tzn_native.plain_candidates(a["segments"].reshape(-1, 2), a["scores"].flatten()))


@answer(lambda a: native("suppress_recordings", a))
def _suppress_recordings(a: Arguments, out: Any, rng: Random) -> None:
    index, score, kept, num_kept = out
    sizes = [len(a["scores"])] if a["counts"] is None else a["counts"].tolist()
    assert len(num_kept) == len(sizes) and int(num_kept.sum()) == len(index) == len(score)
    assert len(index.unique()) == len(index)
    assert_same(kept, a["segments"][index], "segments")
    parts = zip(index.split(num_kept.tolist()), score.split(num_kept.tolist()), strict=True)
    for size, end, (own, picked) in zip(sizes, torch.tensor([0, *sizes]).cumsum(0)[1:].tolist(), parts, strict=True):
        assert ((own >= end - size) & (own < end)).all()
        if _comparable(a):
            assert (picked[1:] <= picked[:-1]).all()
            wanted = _one_group(a, torch.arange(end - size, end), a["labels"], a["total"])
            assert_scores(picked, wanted[1])
            assert_picks(own, picked, *wanted)


def _group_arguments(rng: Random) -> Arguments:
    rows, number, groups = rng.size(3), rng.size(70), max(rng.size(4), 1)
    parts = [candidates(rng, torch.float32, number) for _ in range(rows)]
    segments, scores, labels = (
        torch.stack(x) if rows else None for x in (zip(*parts, strict=True) if rows else (0, 0, 0))
    )
    if not rows:
        segments, scores, labels = torch.zeros(0, number, 2), torch.zeros(0, number), torch.zeros(0, number)
    counts = torch.randint(number + 1, (rows,), generator=rng.torch)
    return {
        "segments": segments, "scores": scores, "labels": rng.maybe(lambda: labels.int()),
        "counts": rng.maybe(lambda: counts), "groups": groups, "capacity": rng.size(20), **_rule(rng),
    }  # fmt: skip


@answer(lambda a: native("suppress_groups", a))
def _suppress_groups(a: Arguments, out: Any, rng: Random) -> None:
    index, score, made = out
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
            wanted = _one_group(one, chosen.nonzero().squeeze(1), None, a["capacity"])
            assert_same((index[r, g, : made[r, g]].long(), score[r, g, : made[r, g]]), wanted, "picks")


@answer(lambda a: native("plain_candidates", a))
def _plain_candidates(a: Arguments, out: Any, rng: Random) -> None:
    plain = out
    served = a["scores"].dtype in (torch.float32, torch.float64)
    finite = served and bool(
        a["segments"].isfinite().all() and a["scores"].isfinite().all() and (a["scores"] >= 0).all()
    )
    assert finite or not plain
    forward = served and bool((a["segments"][:, 1] >= a["segments"][:, 0]).all())
    assert plain or not (finite and forward and all_ordinary(a["segments"]))


def _vote_arguments(rng: Random) -> Arguments:
    dtype, groups, many = rng.choice((torch.float32, torch.float64)), rng.chance(0.5), rng.chance(0.5)
    kept, _, kept_labels = candidates(rng, dtype, rng.size(20))
    segments, scores, labels = candidates(rng, dtype)
    kept_counts, counts = (_counts(rng, len(x)) for x in (kept, segments))
    number = min(len(kept_counts), len(counts))
    kept_counts, counts = (
        torch.cat([x[: number - 1], x[number - 1 :].sum(0, keepdim=True)]) for x in (kept_counts, counts)
    )
    return {
        "kept": kept, "kept_counts": kept_counts if many else torch.tensor([len(kept)]), "segments": segments,
        "scores": scores, "counts": counts if many else None, "threshold": rng.choice((0.0, 0.3, 0.75)),
        "kept_group": kept_labels if groups else None, "group": labels if groups else None, "weight": rng.integer(0, 1),
    }  # fmt: skip


@answer(lambda a: native("vote_segments", a))
def _vote_segments(a: Arguments, out: Any, rng: Random) -> None:
    if not (a["scores"] > 0.01).all() or not all_ordinary(a["kept"], a["segments"], a["scores"]):
        return
    if not all((x[:, 1] >= x[:, 0]).all() for x in (a["segments"], a["kept"])):
        return
    sizes = [len(a["scores"])] if a["counts"] is None else a["counts"].tolist()
    split = [None if a[n] is None else a[n].split(sizes) for n in ("segments", "scores", "group")]
    own = [None if a[n] is None else a[n].split(a["kept_counts"].tolist()) for n in ("kept", "kept_group")]
    found = out.split(a["kept_counts"].tolist())
    for r in range(len(sizes)):
        kept, kept_group, segments, scores, group = (None if x is None else x[r] for x in (*own, *split))
        if len(scores):
            wanted = vote_segments(
                kept, segments, scores, a["threshold"], kept_group, group, weight=VOTE_WEIGHTS[a["weight"]]
            )
            assert_near(found[r], wanted, "votes", size=1000)


def _decode_arguments(rng: Random) -> Arguments:
    recordings, count = rng.size(3), rng.size(40)
    dtype = rng.choice((torch.float32, torch.float64))

    def table() -> tuple[Tensor, ...]:
        places = rng.size(9)
        found = torch.randint(places + 1, (recordings,), generator=rng.torch)
        position = (60 * rng.uniform(recordings, places, dtype=dtype)).sort().values
        past = torch.arange(places) >= found[:, None]
        return position.masked_fill(past, torch.inf), rng.uniform(recordings, places, dtype=dtype), found

    both = rng.chance(0.7)
    return {
        "position": 60 * rng.uniform(recordings, count, dtype=dtype),
        "offset": 10 * rng.uniform(recordings, count, 2, dtype=dtype),
        "offset_std": 3 * rng.uniform(recordings, count, 2, dtype=dtype), "starts": table() if both else (),
        "ends": table() if both else (), "snap_sigmas": 3.0,
    }  # fmt: skip


@answer(lambda a: native("decode_segments", a))
def _decode_segments(a: Arguments, out: Any, rng: Random) -> None:
    segments, std = out
    tables = a["starts"], a["ends"]
    floats = [a[n] for n in ("position", "offset", "offset_std")] + [t[1] for t in tables if len(t)]
    if elsewhere(a) or not all_ordinary(*floats, a["snap_sigmas"]) or not all((x >= 0).all() for x in floats[2:]):
        return
    if not all(_ascending(*t) for t in tables if len(t)):
        return
    if any(len(t) == 0 for t in tables) and not all(len(t) == 0 for t in tables):
        return  # the definition wants both or none
    for r in range(len(segments)):
        alone = [None if not len(t) else reference.Crossings(t[0][r : r + 1], t[1][r : r + 1], t[1], t[2][r : r + 1])
                 for t in tables]  # fmt: skip
        wanted = reference.decode_segments(
            *(a[n][r] for n in ("position", "offset", "offset_std")), *alone, snap_sigmas=a["snap_sigmas"]
        )
        assert_near(segments[r], wanted.segments, "segments", size=100)
        assert_near(std[r], wanted.std, "std", size=100)


def _ascending(position: Tensor, std: Tensor, count: Tensor) -> bool:
    inside = torch.arange(position.shape[1]) < count[:, None]
    rising = position.masked_fill(~inside, torch.inf).sort().values.equal(position.masked_fill(~inside, torch.inf))
    return rising and bool((count >= 0).all()) and bool((count <= position.shape[1]).all())


@answer(lambda a: native("layout", {}))
def _layout(a: Arguments, out: Any, rng: Random) -> None:
    number = out
    assert number == LAYOUT


RAW: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "native.active_tokens": (gate_arguments, _active_tokens),
    "native.boundary_crossings": (_crossing_arguments, _boundary_crossings),
    "native.select_candidates": (_selection_arguments, _select_candidates),
    "native.suppress_recordings": (_recording_arguments, _suppress_recordings),
    "native.suppress_groups": (_group_arguments, _suppress_groups),
    "native.plain_candidates": (
        lambda rng: dict(
            zip(("segments", "scores"), candidates(rng, rng.choice((torch.float32, torch.float64))), strict=False)
        ),
        _plain_candidates,
    ),
    "native.vote_segments": (_vote_arguments, _vote_segments),
    "native.decode_segments": (_decode_arguments, _decode_segments),
    "native.layout": (lambda rng: {"nothing": None}, _layout),
    **RAW_ATTENTION,
    **RAW_ROWS,
}

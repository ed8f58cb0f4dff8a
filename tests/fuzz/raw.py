"""The registered ops ``torch.ops.tzn_native.*``, called as nobody should: they check what they index with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from compare import all_ordinary, assert_near, assert_same, elsewhere
from inputs import Random
from public import (
    assert_crossings,
    assert_scores,
    candidates,
    decode_arguments,
    field_arguments,
    gate_arguments,
    median_may_jump,
)
from raw_attention import RAW_ATTENTION, Arguments, Check, native
from raw_rows import RAW_ROWS

from tzn import reference
from tzn.reference.boundary_crossings import ESTIMATORS
from tzn.reference.nms import HARD, METHODS, VOTE_WEIGHTS, vote_segments


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
            assert_crossings(reference.Crossings(*out), wanted)

    return check


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


def _select_candidates(a: Arguments) -> Check:
    out = native("select_candidates", a)

    def check(rng: Random) -> None:
        if not elsewhere(a) and a["topk"] > 0 and not a["scores"].isnan().any():
            wanted = reference.select_candidates(a["scores"], a["level"], min_score=a["min_score"], topk=a["topk"])
            assert_same(out, wanted, "candidates")

    return check


def _recording_arguments(rng: Random) -> Arguments:
    segments, scores, labels = candidates(rng, rng.choice((torch.float32, torch.float64)))
    return {
        "segments": segments, "scores": scores, "labels": rng.maybe(lambda: labels),
        "counts": rng.maybe(lambda: _counts(rng, len(scores))), "method": rng.integer(0, 4),
        "iou_threshold": rng.python.random(), "sigma": 0.5, "min_score": 0.01, "above": rng.choice((0.0, 0.3)),
        "total": rng.size(40),
    }  # fmt: skip


def _counts(rng: Random, number: int) -> torch.Tensor:
    cuts = torch.sort(torch.randint(number + 1, (rng.size(4),), generator=rng.torch)).values
    return torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([number])]).diff()


def _suppress_recordings(a: Arguments) -> Check:
    index, score, made = native("suppress_recordings", a)

    def check(rng: Random) -> None:
        if elsewhere(a):
            return
        number = a["scores"].shape[0]
        counts = torch.tensor([number]) if a["counts"] is None else a["counts"]
        assert len(made) == len(counts) and int(made.sum()) == len(index) == len(score)
        assert len(index.unique()) == len(index) and ((index >= 0) & (index < number)).all()
        if not _comparable(a):
            return
        first, labels = 0, torch.zeros(number) if a["labels"] is None else a["labels"]
        for count, own, picked in zip(
            counts.tolist(), index.split(made.tolist()), score.split(made.tolist()), strict=True
        ):
            assert (picked[1:] <= picked[:-1]).all()
            keep = ((a["scores"] > a["above"]) | (a["above"] <= 0)).nonzero().squeeze(1)
            keep = keep[(keep >= first) & (keep < first + count)]
            # Of every class the first picks of the definition: all of them unless `total` ended it.
            for label in labels[keep].unique()[:8]:
                mine = labels[own] == label
                wanted = _one_group(a, keep[labels[keep] == label], 0)
                found = int(mine.sum())
                assert found == len(wanted[0]) or len(own) == a["total"] > 0
                assert_same(own[mine], wanted[0][:found], "picks")
                assert_scores(picked[mine], wanted[1][:found])
            first += count

    return check


def _one_group(a: Arguments, keep: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks among the candidates ``keep`` by the definition: index and score."""
    segments, scores, method = a["segments"][keep], a["scores"][keep], METHODS[a["method"]]
    if method in HARD:
        overlap = "diou" if method == "diou" else "iou"
        index = reference.nms(segments, scores, a["iou_threshold"], max_seg_num=total, overlap=overlap)
        return keep[index], scores[index]
    index, score = reference.soft_nms(
        segments, scores, iou_threshold=a["iou_threshold"], sigma=a["sigma"], min_score=a["min_score"],
        method=method, max_seg_num=total,
    )  # fmt: skip
    return keep[index], score


def _comparable(a: Arguments) -> bool:
    """Whether the definition gives the same picks: plain candidates, settings without NaN."""
    settings = [a[n] for n in ("iou_threshold", "sigma", "min_score", "above")]
    segments, scores = a["segments"].reshape(-1, 2), a["scores"].flatten()
    return (
        a["sigma"] > 1e-30
        and all(s >= 0 for s in settings)
        and all_ordinary(segments)
        and bool(torch.ops.tzn_native.plain_candidates(segments, scores))
    )


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
        "counts": rng.maybe(lambda: counts), "groups": groups, "capacity": rng.size(20), "method": rng.integer(0, 4),
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
        finite = served and bool(
            a["segments"].isfinite().all() and a["scores"].isfinite().all() and (a["scores"] >= 0).all()
        )
        assert finite or not plain
        assert plain or not (finite and all_ordinary(a["segments"]))

    return check


def _vote_arguments(rng: Random) -> Arguments:
    dtype, groups = rng.choice((torch.float32, torch.float64)), rng.chance(0.5)
    kept, _, kept_labels = candidates(rng, dtype, rng.size(20))
    segments, scores, labels = candidates(rng, dtype)
    several = rng.chance(0.3)  # recordings; else one
    counts = _counts(rng, len(scores)) if several else None
    cuts = torch.sort(torch.randint(len(kept) + 1, (len(counts) - 1,), generator=rng.torch)).values if several else None
    whole = torch.tensor([len(kept)])
    kept_counts = torch.cat([torch.zeros(1, dtype=torch.long), cuts, whole]).diff() if several else whole
    return {
        "kept": kept, "kept_counts": kept_counts, "segments": segments, "scores": scores, "counts": counts,
        "threshold": rng.choice((0.0, 0.3, 0.75)), "kept_group": kept_labels if groups else None,
        "group": labels if groups else None, "weight": rng.integer(0, 1),
    }  # fmt: skip


def _vote_segments(a: Arguments) -> Check:
    out = native("vote_segments", a)

    def check(rng: Random) -> None:
        if elsewhere(a) or not len(a["scores"]) or not (a["scores"] > 0.01).all():
            return
        if not all_ordinary(a["kept"], a["segments"], a["scores"]):
            return
        if not all((x[:, 1] >= x[:, 0]).all() for x in (a["segments"], a["kept"])):
            return
        counts = a["kept_counts"].tolist(), [len(a["scores"])] if a["counts"] is None else a["counts"].tolist()
        names = ("kept", "kept_group"), ("segments", "scores", "group")
        first = [0, 0]
        for sizes in zip(*counts, strict=True):
            part = {
                n: None if a[n] is None else a[n][f : f + size]
                for f, size, group in zip(first, sizes, names, strict=True) for n in group
            }  # fmt: skip
            wanted = vote_segments(
                part["kept"], part["segments"], part["scores"], a["threshold"], part["kept_group"], part["group"],
                weight=VOTE_WEIGHTS[a["weight"]],
            )  # fmt: skip
            found, voted = out[first[0] : first[0] + sizes[0]], wanted.isfinite().all(1)
            if sizes[1]:  # nobody votes in an empty recording
                assert found[~voted].isnan().all(), "no length, no votes"
                assert_near(found[voted], wanted[voted], "votes", size=1000)
            first = [f + size for f, size in zip(first, sizes, strict=True)]

    return check


def _decode_arguments(rng: Random) -> Arguments:
    a = decode_arguments(rng)
    row = {n: a[n][None] for n in ("position", "offset", "offset_std")}
    tables = {n: () if a[n] is None else (a[n].position, a[n].std, a[n].count) for n in ("starts", "ends")}
    return {**row, **tables, "snap_sigmas": a["snap_sigmas"]}


def _decode_segments(a: Arguments) -> Check:
    segments, std = native("decode_segments", a)

    def check(rng: Random) -> None:
        if not elsewhere(a):
            assert segments.shape == std.shape == a["offset"].shape

    return check


RAW: dict[str, tuple[Callable[[Random], Arguments], Callable[[Arguments], Check]]] = {
    "native.active_tokens": (gate_arguments, _active_tokens),
    "native.boundary_crossings": (_crossing_arguments, _boundary_crossings),
    "native.select_candidates": (_selection_arguments, _select_candidates),
    "native.decode_segments": (_decode_arguments, _decode_segments),
    "native.suppress_recordings": (_recording_arguments, _suppress_recordings),
    "native.suppress_groups": (_group_arguments, _suppress_groups),
    "native.plain_candidates": (
        lambda rng: dict(
            zip(("segments", "scores"), candidates(rng, rng.choice((torch.float32, torch.float64))), strict=False)
        ),
        _plain_candidates,
    ),
    "native.vote_segments": (_vote_arguments, _vote_segments),
    **RAW_ATTENTION,
    **RAW_ROWS,
}

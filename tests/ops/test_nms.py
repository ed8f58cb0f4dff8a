from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from oracle import candidates

from tzn import ops, reference
from tzn.reference.nms import soft_nms_loop, vote_segments

pytestmark = pytest.mark.not_interpreted("there is no Triton kernel for it")


def _batched(case: dict, segments, scores, labels):
    """On the back end of the test, without the public function's checks: golden cases hold inverted segments."""
    index, score, kept, _ = torch.ops.tzn.nms(
        segments, scores, labels, None, "gaussian" if case["soft"] else "hard", case["multiclass"],
        case["iou_threshold"], case["sigma"], case["min_score"], max(case["max_seg_num"], 0), case["voting_thresh"],
        "score_iou", False,
    )  # fmt: skip
    cut = slice(case["max_seg_num"] if case["max_seg_num"] <= 0 else None)
    return kept[cut], score[cut], labels[index][cut]


def _same(out, expected, voted: bool) -> None:
    """Equal values in order of score; candidates of equal score in any order."""
    segments, scores, labels = (np.asarray(x) for x in out)
    wanted_segments, wanted_scores, wanted_labels = expected
    assert len(scores) == len(wanted_scores)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6, rtol=0)
    order = np.lexsort((segments[:, 1], segments[:, 0], labels, -np.round(scores, 5)))
    wanted_order = np.lexsort(
        (wanted_segments[:, 1], wanted_segments[:, 0], wanted_labels, -np.round(wanted_scores, 5))
    )
    tolerance = 2e-3 if voted else 1e-6
    np.testing.assert_array_equal(labels[order], wanted_labels[wanted_order])
    np.testing.assert_allclose(segments[order], wanted_segments[wanted_order], atol=tolerance, rtol=1e-6)


def test_goldens_of_batched_nms(goldens: Path):
    cases, arrays = json.loads((goldens / "nms.json").read_text()), np.load(goldens / "nms.npz")
    assert len(cases) == 40
    for case in cases:
        name = case["name"]
        given_arrays = [torch.from_numpy(arrays[f"{name}/{k}"]) for k in ("segments", "scores", "labels")]
        expected = [arrays[f"{name}/out_{k}"] for k in ("segments", "scores", "labels")]
        public = ops.batched_nms(
            *given_arrays, case["iou_threshold"], case["min_score"], case["max_seg_num"], use_soft_nms=case["soft"],
            multiclass=case["multiclass"], sigma=case["sigma"], voting_thresh=case["voting_thresh"],
        )  # fmt: skip
        _same(public, expected, voted=not case["multiclass"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["linear", "zero", "hard"])
def test_overlaps_around_the_threshold(method, dtype):
    """Pairs, each of a class of its own, that overlap by 0.3 give or take a few steps of 1e-4, the threshold between two."""
    count = 81
    shares = 0.3 + 1e-4 * (torch.arange(count, dtype=torch.float64) - count // 2 + 0.5)
    longer = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(count, 2)
    segments = torch.cat([longer, torch.stack([torch.zeros_like(shares), shares], 1)]).to(dtype)
    scores = torch.cat([torch.full((count,), 0.9), torch.linspace(0.5, 0.8, count)]).to(dtype)
    labels = torch.arange(count).repeat(2)
    soft = {"use_soft_nms": method != "hard", "method": method if method != "hard" else "gaussian"}
    _, found, of_class = ops.batched_nms(segments, scores, labels, 0.3, 0.0, 2 * count, **soft)
    overlaps = shares >= 0.3
    assert int(overlaps.sum()) == count // 2 + 1
    if method == "linear":
        wanted = torch.where(overlaps, scores[count:].double() * (1 - shares), scores[count:].double())
    else:
        wanted = scores[count:].double()[~overlaps]
    order = of_class.argsort(stable=True)
    lower = found[order][found[order] != scores[0]].double()
    if method == "zero":  # what overlaps stays, with a score of 0
        lower = lower[lower > 0]
    torch.testing.assert_close(lower, wanted, rtol=0, atol=3e-6)


def _full_cases(goldens: Path, op: str, ties: bool = False):
    arrays = np.load(goldens / "full" / "nms.npz")
    content = json.loads((goldens / "full" / "nms_cases.json").read_text())
    for case in content["cases"] if isinstance(content, dict) else content:
        if case["op"] == op and case["ties"] == ties:  # unstable sorts make the order of ties arbitrary
            prefix = f"c{case['id']:03d}_"
            yield case, {k[len(prefix) :]: arrays[k] for k in arrays.files if k.startswith(prefix)}


@pytest.mark.parametrize(("op", "least"), [("raw_softnms", 26), ("raw_nms", 6)])
def test_goldens_of_one_class(goldens: Path, op, least):
    seen = 0
    for case, a in _full_cases(goldens, op):
        p = {"sigma": 1.0, "min_score": 0.0} | case["params"]
        method = ("zero", "linear", "gaussian")[p["method"]] if op == "raw_softnms" else "hard"
        index, score, _, _ = torch.ops.tzn.nms(
            torch.from_numpy(a["in_segs"]), torch.from_numpy(a["in_scores"]), None, None, method, False,
            p["iou_threshold"], p["sigma"], p["min_score"], 0, 0.0, "score_iou", False,
        )  # fmt: skip
        np.testing.assert_array_equal(index, a["out_inds"], err_msg=case["name"])
        if op == "raw_softnms":
            np.testing.assert_allclose(score, a["out_scores"], atol=1e-6, err_msg=case["name"])
        seen += 1
    assert seen >= least


def test_goldens_of_batched_nms_with_edge_cases(goldens: Path):
    """Caps of 0 and -1, inverted and zero-length segments, NaN votes: the definition reproduces them all."""
    seen = 0
    for case, a in _full_cases(goldens, "batched_nms"):
        p = dict(case["params"], soft=case["params"]["use_soft_nms"])
        out = _batched(
            p, *(torch.from_numpy(a[k]) for k in ("in_segs", "in_scores")), torch.from_numpy(a["in_cls"]).long()
        )
        _same(out, (a["out_segs"], a["out_scores"], a["out_cls"]), voted=not p["multiclass"])
        seen += 1
    assert seen >= 54


def test_golden_with_tied_scores(goldens: Path):
    """Which of two equals comes first is arbitrary, and decides which of them decays: compare scores by class only."""
    for case, a in _full_cases(goldens, "batched_nms", ties=True):
        if case["name"] == "e_ties_soft_mc":
            p = dict(case["params"], soft=True)
            given_arrays = [torch.from_numpy(a[k]) for k in ("in_segs", "in_scores", "in_cls")]
            _, scores, labels = _batched(p, *given_arrays)
            for c in np.unique(a["out_cls"]):
                np.testing.assert_allclose(scores[labels == c], a["out_scores"][a["out_cls"] == c], atol=1e-6)
            return
    pytest.fail("the golden case is gone")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=0, max_size=14),
    st.sampled_from(["gaussian", "linear", "zero"]),
    st.integers(0, 10_000),
)
def test_soft_nms_equals_a_plain_loop(starts_and_lengths, method, seed):
    segments = np.array([(s, s + n) for s, n in starts_and_lengths], dtype=np.float64).reshape(-1, 2)
    scores = np.random.default_rng(seed).permutation(len(segments)) / 20 + 0.03
    index, score = ops.soft_nms(
        torch.from_numpy(segments),
        torch.from_numpy(scores),
        sigma=0.4,
        min_score=0.01,
        method=method,
        iou_threshold=0.3,
    )
    expected = soft_nms_loop(
        segments.tolist(), scores.tolist(), sigma=0.4, min_score=0.01, method=method, iou_threshold=0.3
    )
    assert index.tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(score, [s for _, s in expected], rtol=1e-12)


@pytest.mark.parametrize("soft", [True, False])
def test_classes_side_by_side_equal_classes_one_by_one(soft):
    segments, scores, labels = candidates(300, 7)
    out = ops.batched_nms(segments, scores, labels, 0.3, 0.001, 60, use_soft_nms=soft)
    parts = []
    for c in range(7):
        mine = labels == c
        part = ops.batched_nms(segments[mine], scores[mine], labels[mine], 0.3, 0.001, 60, use_soft_nms=soft)
        parts.append(part)
    score = torch.cat([p[1] for p in parts])
    order = score.argsort(descending=True)[:60]
    torch.testing.assert_close(out[1], score[order], rtol=0, atol=0)
    assert torch.equal(out[0], torch.cat([p[0] for p in parts])[order])
    assert torch.equal(out[2], torch.cat([p[2] for p in parts])[order])


@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_a_score_at_the_limit_stays(method):
    segments, scores, _ = candidates(3, seed=1)
    segments[:] = torch.tensor([0.0, 10.0])
    segments[:, 1] += torch.arange(3)
    low = ops.soft_nms(segments, scores, min_score=0.0, method=method)[1][-1]
    assert 0 < low < scores.min()
    for limit, kept in ((float(low), 3), (float(low) * (1 + 1e-5), 2)):
        assert len(ops.soft_nms(segments, scores, min_score=limit, method=method)[0]) == kept


def test_early_stop_changes_nothing():
    segments, scores, labels = candidates(500, 3, seed=4)
    few = ops.batched_nms(segments, scores, labels, 0.1, 0.001, 20)
    many = ops.batched_nms(segments, scores, labels, 0.1, 0.001, 10_000)
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b[:20])


def test_voting_is_the_weighted_mean_of_overlapping_candidates():
    segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [50.0, 60.0]])
    scores = torch.tensor([0.9, 0.6, 0.5])
    labels = torch.zeros(3, dtype=torch.long)
    out, _, _ = ops.batched_nms(segments, scores, labels, 0.1, 0.001, 1, multiclass=False, voting_thresh=0.7)
    weights = torch.tensor([0.9 * 1.0, 0.6 * 0.9])
    expected = (weights[:, None] * segments[:2]).sum(0) / weights.sum()
    torch.testing.assert_close(out[0], expected)
    per_class, _, _ = ops.batched_nms(
        segments, scores, torch.tensor([0, 1, 0]), 0.1, 0.001, 1, voting_thresh=0.7, per_class_voting=True
    )
    torch.testing.assert_close(per_class[0], segments[0])  # the other candidate is of another class


@pytest.mark.parametrize("weight", ["score_iou", "score"])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_votes_are_weighted_as_asked(weight, per_class, dtype):
    segments, scores, labels = candidates(120, 3, seed=6, dtype=dtype)
    settings_ = {"multiclass": per_class, "per_class_voting": per_class}
    kept, _, _, index = ops.batched_nms(
        segments, scores, labels, 0.1, 0.001, 15, voting_thresh=0.4, vote_weight=weight, return_index=True, **settings_
    )
    classes = (labels[index], labels) if per_class else (None, None)
    exact = vote_segments(segments[index].double(), segments.double(), scores.double(), 0.4, *classes, weight=weight)
    torch.testing.assert_close(kept.double(), exact, rtol=1e-5, atol=1e-4)


def test_padded_picks_are_those_of_one_recording_at_a_time():
    segments, scores, labels = (
        torch.stack(x) for x in zip(*(candidates(60, 3, seed=s) for s in range(2)), strict=True)
    )
    scores[1, 40:] = -torch.inf  # shorter
    for multiclass, method in ((True, "gaussian"), (False, "linear"), (True, "hard"), (True, "none")):
        picks = ops.nms_padded(
            segments, scores, labels, 3, 20, method=method, multiclass=multiclass, iou_threshold=0.3,
            voting_thresh=0.0 if multiclass else 0.5,
        )  # fmt: skip
        for row, count in enumerate((60, 40)):
            own = segments[row, :count], scores[row, :count], labels[row, :count]
            number = int(picks.num_kept[row])
            assert (picks.score[row, number:] == -torch.inf).all() and (picks.label[row, number:] == -1).all()
            if method == "none":
                assert torch.equal(picks.score[row], own[1].sort(descending=True)[0][:20])
                continue
            kept, score, label, index = ops.batched_nms(
                *own, 0.3, 0.001, 20, method != "hard", multiclass, 0.5, 0.5,
                method="linear" if method == "linear" else "gaussian", return_index=True,
            )  # fmt: skip
            assert picks.index[row, :number].tolist() == index.tolist()
            torch.testing.assert_close(picks.segments[row, :number], kept)
            torch.testing.assert_close(picks.score[row, :number], score)
            assert picks.label[row, :number].tolist() == label.tolist()


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_candidates(count):
    segments, scores, labels = candidates(count, 2)
    for soft in (True, False):
        out = ops.batched_nms(segments, scores, labels, 0.1, 0.001, 10, use_soft_nms=soft)
        assert [len(x) for x in out] == [count] * 3


def test_non_contiguous_input_is_left_alone():
    segments, scores, labels = candidates(50, 3)
    wide = torch.stack([segments, segments], 2).transpose(1, 2)[:, 0]
    before = wide.clone(), scores.clone()
    out = ops.batched_nms(wide, scores, labels, 0.1, 0.001, 50)
    assert torch.equal(wide, before[0]) and torch.equal(scores, before[1])
    for a, b in zip(out, ops.batched_nms(segments, scores, labels, 0.1, 0.001, 50), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": torch.zeros(3, 3)}, "segments: got shape"),
        ({"segments": torch.tensor([[2.0, 1.0]] * 3)}, "segments: got a segment with end < start"),
        ({"scores": torch.tensor([0.1, float("nan"), 0.2])}, "scores: got NaN"),
        ({"scores": torch.zeros(2)}, "scores: got shape"),
        ({"labels": torch.zeros(3)}, "labels: got torch.float32"),
        ({"iou_threshold": -0.1}, "iou_threshold: got -0.1"),
        ({"sigma": 0.0}, "sigma: got 0.0"),
        ({"method": "cubic"}, "method: got 'cubic'"),
    ],
    ids=lambda x: x.split(":")[0] if isinstance(x, str) else "",
)
def test_clear_errors(change, message):
    arguments = {
        "segments": torch.tensor([[0.0, 1.0]] * 3), "scores": torch.ones(3), "labels": torch.zeros(3, dtype=torch.long),
        "iou_threshold": 0.1, "min_score": 0.001, "max_seg_num": 5,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.batched_nms(**arguments)


def _diou(a: Sequence[float], b: Sequence[float]) -> float:
    overlap = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    union = (a[1] - a[0]) + (b[1] - b[0]) + 2e-6 - overlap
    hull = max(a[1], b[1]) - min(a[0], b[0]) + 1e-6
    return overlap / union - (((a[0] + a[1]) - (b[0] + b[1])) / 2 / hull) ** 2


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9])
def test_diou_suppression_is_that_of_a_loop_over_pairs(threshold):
    segments, scores, _ = candidates(80, dtype=torch.float64)
    wanted: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(_diou(segments[i].tolist(), segments[j].tolist()) < threshold for j in wanted):
            wanted.append(i)
    assert ops.nms(segments, scores, threshold, overlap="diou").tolist() == wanted
    assert 1 <= len(wanted) <= 80


def test_diou_keeps_neighbours_that_iou_drops():
    segments = torch.tensor(
        [[0.0, 10.0], [4.0, 14.0], [1.0, 9.0]]
    )  # IoU 0.43 and centre 4 of 14 away; IoU 0.8, same centre
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert ops.nms(segments, scores, 0.4).tolist() == [0]
    assert ops.nms(segments, scores, 0.4, overlap="diou").tolist() == [0, 1]


@pytest.mark.parametrize("multiclass", [True, False])
def test_batched_diou_equals_the_definition(multiclass):
    for dtype in (torch.float32, torch.float64):
        given_lists = candidates(300, seed=1, dtype=dtype)
        out = ops.batched_nms(*given_lists, 0.3, 0.05, 40, False, multiclass, voting_thresh=0.0, overlap="diou")
        wanted = reference.batched_nms(
            *given_lists, 0.3, 0.05, 40, method="diou", multiclass=multiclass, voting_thresh=0.0
        )
        for found, right in zip(out, wanted, strict=True):
            assert torch.equal(found, right)


def test_diou_needs_hard_suppression():
    with pytest.raises(ValueError, match="overlap.*diou.*use_soft_nms"):
        ops.batched_nms(*candidates(5), 0.3, 0.05, 40, overlap="diou")
    with pytest.raises(ValueError, match="overlap.*giou.*iou, diou"):
        ops.nms(*candidates(5)[:2], 0.3, overlap="giou")


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(("multiclass", "per_class"), [(True, False), (True, True), (False, False), (False, True)])
def test_many_recordings_in_one_call_equal_one_at_a_time(soft, multiclass, per_class):
    counts = torch.tensor([70, 0, 1, 130, 0])
    lists = candidates(int(counts.sum()), seed=2)
    settings = {"use_soft_nms": soft, "multiclass": multiclass, "per_class_voting": per_class}
    *found, made = ops.batched_nms_many(*lists, counts, 0.3, 0.05, 20, **settings)
    parts = zip(*(x.split(counts.tolist()) for x in lists), strict=True)
    wanted = [ops.batched_nms(*part, 0.3, 0.05, 20, **settings) for part in parts]
    assert made.tolist() == [len(w[1]) for w in wanted]
    for i, one in enumerate(found):
        assert torch.equal(one, torch.cat([w[i] for w in wanted]))


def test_no_recordings_and_wrong_counts():
    segments, scores, labels = candidates(6)
    none = ops.batched_nms_many(segments[:0], scores[:0], labels[:0], torch.zeros(0, dtype=torch.long), 0.3, 0.05, 20)
    assert [x.shape[0] for x in none] == [0, 0, 0, 0]
    for counts in ([3, 2], [7, -1]):
        with pytest.raises(ValueError, match="counts"):
            ops.batched_nms_many(segments, scores, labels, torch.tensor(counts), 0.3, 0.05, 20)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_votes_from_far_away_are_not_asked_for_and_not_missed(dtype, threshold):
    """Segments of very different lengths far from zero: the compiled kernel asks only those that can reach the threshold."""
    generator = torch.Generator().manual_seed(0)
    half = 10 ** (3 * torch.rand(3000, generator=generator, dtype=torch.float64) - 1)
    centre = 1e4 + 5e3 * torch.rand(3000, generator=generator, dtype=torch.float64)
    segments = torch.stack([centre - half, centre + half], 1).to(dtype)
    scores = 0.1 + 0.9 * torch.rand(3000, generator=generator, dtype=torch.float64).to(dtype)
    out, _, _, index = ops.batched_nms(
        segments, scores, torch.zeros(3000, dtype=torch.long), 0.3, 0.05, 200, multiclass=False,
        voting_thresh=threshold, return_index=True,
    )  # fmt: skip
    exact = vote_segments(segments[index].double(), segments.double(), scores.double(), threshold)
    voted = exact.isfinite().all(1)
    assert len(out) == 200 and voted.sum() > 150
    torch.testing.assert_close(out[voted].double(), exact[voted], rtol=1e-6, atol=2e-3)


def test_equal_scores_are_picked_in_the_order_of_the_input():
    """Over many blocks of the compiled kernel's tree, whatever the order of time."""
    start = torch.randperm(5000, generator=torch.Generator().manual_seed(0)).float()
    segments = torch.stack([start, start + 0.5], 1)
    kept = ops.nms(segments, torch.ones(5000), 0.5, max_seg_num=300)
    assert kept.tolist() == list(range(300))

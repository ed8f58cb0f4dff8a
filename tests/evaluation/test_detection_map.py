"""mAP and Recall@kx: by hand, against a plain-loop scorer, and against the original program's results."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzn.detections import Detections
from tzn.errors import DataError
from tzn.evaluation.detection_map import precision_recall, score_detections
from tzn.evaluation.flat import GroundTruth
from tzn.evaluation.scoring import score_files

NAMES = ("walk", "sit", "stand")


def truth(segments, labels=None):
    return GroundTruth(np.array(segments, float).reshape(-1, 2), np.array(labels or [0] * len(segments), int))


def found(segments, scores, labels=None):
    labels = np.array(labels or [0] * len(scores), int)
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), labels)


# By hand


def test_ap_by_hand_hit_miss_hit():
    # Ranked: hit, miss, hit, then two missed segments: precision 1, 1/2, 2/3 -> AP = (1 + 2/3) / 4.
    score = score_detections(
        {"a": truth([[0, 10], [20, 30], [40, 50], [60, 70]])},
        {"a": found([[0, 10], [100, 110], [20, 30]], [0.9, 0.8, 0.7])},
        NAMES,
        (0.5,),
    )
    assert score.mAP.tolist() == pytest.approx([(1 + 2 / 3) / 4])
    assert score.recall.tolist() == pytest.approx(np.array([[0.5, 0.5]]))
    assert score.classes == ("walk",)
    assert score.counts.tolist() == [4]


def test_interpolation_lifts_precision_to_the_best_on_its_right():
    # miss, hit, hit: precision 0, 1/2, 2/3; made monotone from the right 2/3 at both hits -> AP = 2/3.
    score = score_detections(
        {"a": truth([[0, 10], [20, 30]])},
        {"a": found([[100, 110], [0, 10], [20, 30]], [0.9, 0.8, 0.7])},
        NAMES,
        (0.5,),
    )
    assert score.average_mAP == pytest.approx(2 / 3)


def test_perfect_detections_score_one_everywhere():
    rng = np.random.default_rng(3)
    starts = rng.uniform(0, 500, (5, 8))
    real = {
        f"r{i}": truth(np.stack([s, s + rng.uniform(0.5, 30, 8)], 1), rng.integers(0, 3, 8).tolist())
        for i, s in enumerate(starts)
    }
    same = {name: Detections(t.segments, rng.random(8), t.labels) for name, t in real.items()}
    score = score_detections(real, same, NAMES, (0.3, 0.5, 0.95, 1.0))
    assert (score.ap == 1).all()
    assert (score.recall == 1).all()
    assert score.average_mAP == 1


@pytest.mark.parametrize("detections", [{}, {"a": found([], [])}], ids=["no-entry", "empty-entry"])
def test_no_detections_score_zero(detections):
    score = score_detections({"a": truth([[0, 1]])}, detections, NAMES, (0.5, 0.7))
    assert score.mAP.tolist() == [0, 0]
    assert score.recall.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "real", [{}, {"a": truth([])}, {"a": truth([[1, 1], [3, 2]])}], ids=["none", "empty", "too-short"]
)
def test_without_usable_ground_truth_scoring_says_so(real):
    with pytest.raises(DataError, match="no ground truth to score against"):
        score_detections(real, {"a": found([[0, 1]], [0.9])}, NAMES, (0.5,))


def test_detections_in_other_recordings_are_false_positives():
    real = {"a": truth([[0, 10]])}
    alone = score_detections(real, {"a": found([[0, 10]], [0.5])}, NAMES, (0.5,))
    beside = score_detections(real, {"elsewhere": found([[0, 10]], [0.9]), "a": found([[0, 10]], [0.5])}, NAMES, (0.5,))
    assert (alone.average_mAP, beside.average_mAP) == (1.0, 0.5)


def test_the_mean_is_over_classes_with_ground_truth_only():
    real = {"a": truth([[0, 10], [20, 30]], [0, 2])}
    score = score_detections(real, {"a": found([[0, 10], [50, 60]], [0.5, 0.9], [0, 1])}, NAMES, (0.5,))
    assert score.classes == ("walk", "stand")
    assert score.ap.tolist() == [[1.0, 0.0]]
    assert score.average_mAP == 0.5


def test_a_second_detection_of_a_segment_may_take_another_one():
    real = {"a": truth([[0, 10], [2, 12]])}
    score = score_detections(real, {"a": found([[0, 10], [0, 10]], [0.9, 0.8])}, NAMES, (0.5, 0.7))
    assert score.mAP.tolist() == [1.0, 0.5]  # IoU with the neighbour is 8 / 12


def test_the_standard_error_is_the_spread_of_scores_over_sets_of_so_many_segments():
    # Without false detections the average precision is the share of segments that were found.
    rng, counts, chance = np.random.default_rng(0), (40, 60, 25), 0.6
    labels = np.repeat(np.arange(3), counts)
    segments = np.stack([10.0 * np.arange(len(labels)), 10.0 * np.arange(len(labels)) + 5], 1)
    scores, errors = [], []
    for _ in range(300):
        hit = rng.random(len(labels)) < chance
        score = score_detections(
            {"a": truth(segments, labels.tolist())},
            {"a": found(segments[hit], np.ones(hit.sum()), labels[hit].tolist())},
            NAMES,
            (0.5,),
        )
        scores.append(score.average_mAP)
        errors.append(score.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.12)


def test_a_single_segment_is_not_certain():
    score = score_detections({"a": truth([[0, 5]])}, {"a": found([[0, 5]], [1.0])}, NAMES, (0.5,))
    assert score.average_mAP == 1
    assert score.standard_error == pytest.approx(np.sqrt(2 / 9))


def test_recall_counts_one_detection_for_every_segment_it_overlaps():
    # Two overlapping segments, one detection over both: found twice for recall, once for AP.
    real = {"a": truth([[0, 10], [1, 11]])}
    score = score_detections(real, {"a": found([[0.5, 10.5]], [0.9])}, NAMES, (0.5,))
    assert score.recall.tolist() == [[1.0, 1.0]]
    assert score.average_mAP == 0.5


def test_recall_looks_at_k_times_the_segments_of_the_recording():
    real = {"a": truth([[0, 10]])}
    detections = {"a": found([[50, 60], [70, 80], [0, 10]], [0.9, 0.8, 0.7])}
    assert score_detections(real, detections, NAMES, (0.5,), (1, 2, 3)).recall.tolist() == [[0.0, 0.0, 1.0]]


def test_equal_scores_are_ranked_as_they_come():
    real = {"a": truth([[0, 10]])}
    hit, miss = [0, 10], [50, 60]
    assert score_detections(real, {"a": found([hit, miss], [0.5, 0.5])}, NAMES, (0.5,)).average_mAP == 1.0
    assert score_detections(real, {"a": found([miss, hit], [0.5, 0.5])}, NAMES, (0.5,)).average_mAP == 0.5
    other_first = {"z": found([miss], [0.5]), "a": found([hit], [0.5])}
    assert score_detections(real, other_first, NAMES, (0.5,)).average_mAP == 0.5


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        pytest.param({"tiou": ()}, "tiou", id="no-threshold"),
        pytest.param({"tiou": (0.0,)}, "tiou", id="threshold-0"),
        pytest.param({"tiou": (1.5,)}, "tiou", id="threshold-above-1"),
        pytest.param({"tiou": (0.5,), "top_k": (0,)}, "top_k", id="recall-at-0x"),
        pytest.param({"tiou": (0.5,), "ties": "random"}, "ties = 'random'", id="unknown-ties"),
    ],
)
def test_settings_out_of_range_are_named(settings_, message):
    with pytest.raises(ValueError, match=message):
        score_detections({"a": truth([[0, 1]])}, {}, NAMES, **settings_)


def test_inputs_are_not_modified():
    real, detections = {"a": truth([[0, 10], [0, 10]])}, {"a": found([[0, 9], [0, 10]], [0.1, 0.9])}
    before = [real["a"].segments.copy(), detections["a"].segments.copy(), detections["a"].scores.copy()]
    score_detections(real, detections, NAMES, (0.5,))
    for array, copy in zip([real["a"].segments, detections["a"].segments, detections["a"].scores], before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_area_under_the_precision_recall_curve_is_the_ap():
    rng = np.random.default_rng(1)
    starts, noise = rng.uniform(0, 300, 30), rng.normal(0, 2, (30, 2))
    segments = np.stack([starts, starts + 8], 1)
    labels = rng.integers(0, 2, 30).tolist()
    real = {"a": truth(segments, labels)}
    detections = {"a": found(segments + noise, rng.random(30).tolist(), labels)}
    score = score_detections(real, detections, NAMES, (0.5,))
    curves = precision_recall(real, detections, NAMES, 0.5)
    areas = [float(np.sum(np.diff(recall, prepend=0) * precision)) for recall, precision in curves.values()]
    assert tuple(curves) == score.classes
    assert areas == pytest.approx(score.ap[0].tolist())
    assert 0 < score.average_mAP < 1


# Against a plain-loop scorer


def plain_score(real, detections, tiou, top_k):
    """The rules of section 14 of the ActionFormer specification, one detection at a time."""
    labels = sorted({int(c) for t in real.values() for c in t.labels})
    ap = [[plain_ap(real, detections, c, t) for c in labels] for t in tiou]
    recall = [[np.mean([plain_recall(real, detections, c, t, k) for c in labels]) for k in top_k] for t in tiou]
    return np.array(ap), np.array(recall)


def of_class(items, c):
    return [tuple(s) for s, label in zip(items.segments, items.labels, strict=True) if label == c]


def plain_iou(a, b):
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - overlap
    return overlap / union if union else float("nan")


def plain_ap(real, detections, c, threshold):
    free = {name: dict(enumerate(of_class(t, c))) for name, t in real.items()}
    positives = sum(map(len, free.values()))
    ranked = [
        (-score, name, tuple(segment))
        for name, d in detections.items()
        for segment, score, label in zip(d.segments, d.scores, d.labels, strict=True)
        if label == c
    ]
    precisions, recalls, hits = [], [], 0
    for rank, (_, name, segment) in enumerate(sorted(ranked, key=lambda row: row[0]), start=1):
        wishes = sorted(
            (-float(np.nan_to_num(plain_iou(segment, s), nan=9.0)), -g) for g, s in free.get(name, {}).items()
        )
        if wishes and -wishes[0][0] >= threshold:
            del free[name][-wishes[0][1]]
            hits += 1
        precisions.append(hits / rank)
        recalls.append(hits / positives)
    area, reached = 0.0, 0.0
    for i, recall in enumerate(recalls):
        area += (recall - reached) * max(precisions[i:])
        reached = recall
    return area


def plain_recall(real, detections, c, threshold, k):
    reached = total = 0
    for name, t in real.items():
        segments = of_class(t, c)
        total += len(segments)
        d = detections.get(name, found([], []))
        rows = [(-s, tuple(x)) for x, s, label in zip(d.segments, d.scores, d.labels, strict=True) if label == c]
        best = [x for _, x in sorted(rows, key=lambda row: row[0])[: k * len(segments)]]
        reached += sum(any(plain_iou(x, s) >= threshold for x in best) for s in segments)
    return reached / total


name_ = st.sampled_from(["a", "b", "c"])
truth_row = st.tuples(name_, st.integers(0, 12), st.integers(1, 5), st.integers(0, 2))
found_row = st.tuples(
    name_, st.integers(0, 14), st.integers(0, 16), st.integers(0, 2), st.sampled_from([0.2, 0.5, 0.6, 0.9])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(truth_row, min_size=1, max_size=10, unique=True), st.lists(found_row, max_size=20))
def test_scores_equal_a_plain_loop_over_detections(truth_rows, found_rows):
    # Small integers and four scores: ties everywhere; some detections are inverted, of no length or elsewhere.
    by_truth, by_found = defaultdict(list), defaultdict(list)
    for name, start, length, label in truth_rows:
        by_truth[name].append((start, start + length, label))
    for name, start, end, label, score in found_rows:
        by_found[name].append((start, end, score, label))
    real = {n: truth([r[:2] for r in rows], [r[2] for r in rows]) for n, rows in by_truth.items()}
    detections = {
        n: found([r[:2] for r in rows], [r[2] for r in rows], [r[3] for r in rows]) for n, rows in by_found.items()
    }
    tiou, top_k = (0.25, 0.5, 2 / 3, 1.0), (1, 3)
    ap, recall = plain_score(real, detections, tiou, top_k)
    score = score_detections(real, detections, NAMES, tiou, top_k)
    np.testing.assert_allclose(score.ap, ap, atol=1e-12)
    np.testing.assert_allclose(score.recall, recall, atol=1e-12)


# Against the original program


def ground_truth_of(database, split):
    """Ground truth by label id, and the ids present in the split."""
    chosen = {name: e["annotations"] for name, e in database.items() if e["subset"].lower() == split}
    ids = sorted({a["label_id"] for annotations in chosen.values() for a in annotations})
    return {
        n: truth([a["segment"] for a in rows], [ids.index(a["label_id"]) for a in rows]) for n, rows in chosen.items()
    }, ids


def detections_of(rows, ids):
    by_name = defaultdict(list)
    for name, start, end, label, score in rows:
        if label in ids:
            by_name[name].append((start, end, score, ids.index(label)))
    return {n: found([r[:2] for r in rs], [r[2] for r in rs], [r[3] for r in rs]) for n, rs in by_name.items()}


def assert_scores(score, ap, mAP, average_mAP, recall):
    np.testing.assert_allclose(score.ap, ap, atol=1e-9, rtol=0)
    np.testing.assert_allclose(score.mAP, mAP, atol=1e-9, rtol=0)
    np.testing.assert_allclose(score.recall, recall, atol=1e-9, rtol=0)
    assert score.average_mAP == pytest.approx(average_mAP, abs=1e-9)


def test_the_ten_random_cases_equal_the_original(goldens):
    cases = json.loads((goldens / "map.json").read_text())
    assert len(cases) == 10
    for case in cases:
        real, ids = ground_truth_of(case["annotations"]["database"], case["split"])
        rows = [(p["video_id"], *p["segment"], p["label_id"], p["score"]) for p in case["predictions"]]
        score = score_detections(
            real, detections_of(rows, ids), list(map(str, ids)), case["tiou_thresholds"], case["top_k"]
        )
        assert ids == case["classes"]
        assert_scores(score, case["ap"], case["mAP"], case["average_mAP"], case["recall"])


def full_case(goldens, name):
    cases = {c["name"]: c for c in json.loads((goldens / "full" / "eval.json").read_text())["cases"]}
    case = cases[name]
    real, ids = ground_truth_of(case["ground_truth"]["database"], case["split"])
    d = case["detections"]
    rows = list(zip(d["video_id"], d["t_start"], d["t_end"], d["label"], d["score"], strict=True))
    return case, real, ids, rows


def scored(case, real, ids, rows):
    return score_detections(real, detections_of(rows, ids), list(map(str, ids)), case["tiou_thresholds"], case["top_k"])


def assert_equals_golden(score, case):
    e = case["expected"]
    assert_scores(score, e["ap"], e["mAP"], e["average_mAP"], e["mRecall"])
    assert score.counts.sum() == case["n_gt_used"]


@pytest.mark.parametrize(
    "name",
    [
        "random_thumos", "random_thumos_large", "random_anet", "perfect", "all_wrong", "classes_without_detections",
        "noncontiguous_labels", "duplicate_detections", "gt_duplicates_and_tiny", "split_filter", "video_without_gt",
        "overlapping_same_class_gt", "iou_exactly_at_threshold", "zero_length_detection", "inverted_detection",
        "single_detection", "recall_topk", "ego_like", "top1_only",
    ],
)  # fmt: skip
def test_edge_cases_equal_the_original(goldens, name):
    case, real, ids, rows = full_case(goldens, name)
    assert_equals_golden(scored(case, real, ids, rows), case)


@pytest.mark.parametrize("name", ["label_collision", "random_epic"])
def test_the_label_collision_of_the_original_is_not_reproduced_but_is_the_only_difference(goldens, name):
    # The original leaves ids of classes without ground truth as they are, so they land on the class whose rank they
    # equal: a bug (EPIC's own scorer fixed it in 2023). We drop such detections. Feeding the collision in by hand gives
    # the original's numbers, so nothing else differs.
    case, real, ids, rows = full_case(goldens, name)
    assert abs(scored(case, real, ids, rows).average_mAP - case["expected"]["average_mAP"]) > 1e-3
    collided = [
        (video, start, end, ids[label] if label not in ids and label < len(ids) else label, score)
        for video, start, end, label, score in rows
    ]
    assert_equals_golden(scored(case, real, ids, collided), case)


def test_every_case_of_the_wide_set_is_tested_or_left_out_for_a_reason(goldens):
    # score_ties: recorded with an unstable sort.
    names = {c["name"] for c in json.loads((goldens / "full" / "eval.json").read_text())["cases"]}
    (mark,) = test_edge_cases_equal_the_original.pytestmark
    assert names == {*mark.args[1], "label_collision", "random_epic", "score_ties"}


# On the real detections most scores are rounded and tied, and the original breaks ties with NumPy's unstable sort.
# These results were recorded where that sort used AVX2 instructions, so the exact comparison runs in a process that
# may use no others.

REAL = ("a2net_action_detection_af38", "turn_union_no_nms")
SCORE_REAL = """
import json, sys
from tzn.evaluation.scoring import score_files
out = {p: score_files(p, sys.argv[1], split="test", tiou=json.loads(sys.argv[2]), ties="numpy") for p in sys.argv[3:]}
print(json.dumps(list(out.values())))
"""


def test_real_detections_equal_the_original_with_the_same_unstable_sort(goldens, shared):
    features = np._core._multiarray_umath.__cpu_features__
    if not features.get("AVX2", features.get("X86_V3")):
        pytest.skip("recorded with NumPy's AVX2 argsort, which this processor lacks")
    dispatched = np._core._multiarray_umath.__cpu_dispatch__
    wider = [f for f in dispatched if f.startswith(("AVX512", "X86_V4")) and features.get(f)]
    expected = json.loads((goldens / "map_real.json").read_text())
    files = [str(shared / "data/predictions" / f"{name}.json.gz") for name in REAL]
    tiou = expected[REAL[0]]["tiou"]
    done = subprocess.run(
        [sys.executable, "-c", SCORE_REAL, str(shared / "data/thumos14/annotations.json"), json.dumps(tiou), *files],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(wider)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name, result in zip(REAL, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(result["mAP"], expected[name]["mAP"], atol=1e-9, rtol=0)
        np.testing.assert_allclose(result["recall"], expected[name]["recall"], atol=1e-9, rtol=0)
        assert result["average_mAP"] == pytest.approx(expected[name]["average_mAP"], abs=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_real_detections_with_ties_as_they_come_stay_near_the_original(goldens, shared, name):
    # Differences come from ties alone (the test above): at most 0.0054 mAP and 0.0118 recall at any threshold.
    expected = json.loads((goldens / "map_real.json").read_text())[name]
    path, annotations = shared / "data/predictions" / f"{name}.json.gz", shared / "data/thumos14/annotations.json"
    result = score_files(path, annotations, split="Test", tiou=expected["tiou"])
    np.testing.assert_allclose(result["mAP"], expected["mAP"], atol=6e-3, rtol=0)
    np.testing.assert_allclose(result["recall"], expected["recall"], atol=1.2e-2, rtol=0)


def test_real_detections_without_ties_do_not_depend_on_the_order_of_recordings(shared):
    results = json.loads(gzip.decompress((shared / "data/predictions" / f"{REAL[0]}.json.gz").read_bytes()))["results"]
    database = json.loads((shared / "data/thumos14/annotations.json").read_text())["database"]
    real, ids = ground_truth_of(database, "test")
    label_ids = {a["label"]: a["label_id"] for e in database.values() for a in e["annotations"]}
    rng = np.random.default_rng(0)
    rows = [
        (name, *r["segment"], label_ids[r["label"]], r["score"] + 1e-9 * rng.random())
        for name, rs in results.items()
        for r in rs
    ]
    forward, backward = detections_of(rows, ids), detections_of(rows[::-1], ids)
    a, b = (score_detections(real, d, list(map(str, ids)), (0.3, 0.7)) for d in (forward, backward))
    np.testing.assert_array_equal(a.ap, b.ap)
    np.testing.assert_array_equal(a.recall, b.recall)

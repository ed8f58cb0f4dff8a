"""``tzn score``: files in, numbers out."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.evaluation.scoring import parse_tiou, score_files


def annotation(start, end, label, label_id=None):
    return {"segment": [start, end], "label": label, **({} if label_id is None else {"label_id": label_id})}


def detection(start, end, label, score):
    return {"segment": [start, end], "label": label, "score": score}


@pytest.fixture
def write(tmp_path):
    """Write a database and results (of one recording "a", or a dict) and return both paths."""

    def _write(annotations, results=(), subset="test"):
        entries = annotations if isinstance(annotations, dict) else {"a": annotations}
        database = {n: {"subset": subset, "duration": 100.0, "annotations": rows} for n, rows in entries.items()}
        truth, found = tmp_path / "annotations.json", tmp_path / "predictions.json"
        truth.write_text(json.dumps({"database": database}))
        found.write_text(json.dumps({"results": results if isinstance(results, dict) else {"a": list(results)}}))
        return found, truth

    return _write


def score(paths, **settings):
    return score_files(*paths, **{"split": "test", "tiou": (0.5,), **settings})


def test_a_perfect_file_scores_one(write):
    paths = write([annotation(0, 10, "walk")], [detection(0, 10, "walk", 0.3)])
    assert score(paths, tiou=(0.5, 0.75)) == {
        "tiou": [0.5, 0.75], "mAP": [1.0, 1.0], "average_mAP": 1.0, "ap": [[1.0], [1.0]], "classes": ["walk"],
        "recall": [[1.0, 1.0], [1.0, 1.0]], "warnings": [],
    }  # fmt: skip


def test_gzipped_files_and_any_case_of_the_split(write):
    found, truth = write([annotation(0, 10, "walk")], [detection(0, 10, "walk", 0.3)], subset="Test")
    for path in (found, truth):
        path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
    result = score((found.with_suffix(".json.gz"), truth.with_suffix(".json.gz")), split="TEST")
    assert result["average_mAP"] == 1.0


def test_classes_come_by_label_id_where_the_file_has_consistent_ones(write):
    rows = [annotation(0, 1, "c10", 10), annotation(2, 3, "c2", 2), annotation(4, 5, "a", 7)]
    assert score(write(rows))["classes"] == ["c2", "a", "c10"]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([annotation(0, 1, "c10", 1), annotation(2, 3, "c2")], id="an-id-missing"),
        pytest.param([annotation(0, 1, "c10", 1), annotation(2, 3, "c2", 1)], id="an-id-twice"),
    ],
)
def test_classes_come_by_name_where_ids_are_not_consistent(write, rows):
    assert score(write(rows))["classes"] == ["c10", "c2"]


def test_segments_past_the_duration_are_scored_as_they_are(write):
    result = score(write([annotation(90, 130, "walk")], [detection(90, 130, "walk", 0.3)]), tiou=(1.0,))
    assert result["average_mAP"] == 1.0


def test_dirt_is_left_out_counted_and_explained(write):
    rows = [
        annotation(0, 10, "walk"), annotation(0, 10.0005, "walk"), annotation(5, 5, "walk"), annotation(9, 8, "walk"),
        annotation(0, float("nan"), "walk"),
    ]  # fmt: skip
    found, truth = paths = write(
        {"a": rows, "b": [annotation(1, 2, "walk")]},
        {"a": [detection(0, 10, "walk", 0.3), detection(0, 10, "fly", 0.9)], "z": [detection(0, 10, "walk", 0.1)]},
    )
    result = score(paths)
    assert result["average_mAP"] == 0.5
    assert result["warnings"] == [
        f"{truth}: 1 segments with an end that is not finite left out",
        f"{truth}: 1 segments that end before they start left out",
        f"{truth}: 1 segments shorter than 1 ms left out",
        f"{truth}: 1 repeated segments left out",
        f"{found}: 1 detections left out: their class has no ground truth in subset 'test'",
        f"{found}: 1 detections in recordings outside subset 'test' count as false positives",
        f"{found}: no detections for 1 of 2 recordings in subset 'test': all missed",
    ]


def test_with_split_only_other_recordings_do_not_count(write):
    elsewhere = {"a": [detection(0, 10, "walk", 0.3)], "z": [detection(0, 10, "walk", 0.9)] * 2}
    found, _ = paths = write([annotation(0, 10, "walk")], elsewhere)
    assert score(paths)["average_mAP"] < 1.0
    result = score(paths, split_only=True)
    assert result["average_mAP"] == 1.0
    assert result["warnings"] == [f"{found}: 2 detections left out: their recordings are outside subset 'test'"]


def test_lenient_leaves_bad_detections_out_and_counts_them(write):
    rows = [
        detection(0, 10, "walk", 0.3),
        detection(9, 8, "walk", 0.9),
        detection(5, 4, "walk", 0.9),
        {"label": "walk"},
    ]
    found, _ = paths = write([annotation(0, 10, "walk")], rows)
    with pytest.raises(DataError, match="detection 1: segment ends before it starts"):
        score(paths)
    result = score(paths, lenient=True)
    assert result["average_mAP"] == 1.0
    assert result["warnings"] == [
        f"{found}: 2 detections left out: segment ends before it starts",
        f"{found}: 1 detections left out: no 'segment'",
    ]


def test_blocked_recordings_count_on_neither_side(write, tmp_path):
    entries = {"a": [annotation(0, 10, "walk")], "b": [annotation(0, 10, "walk"), annotation(20, 30, "fly")]}
    results = {"a": [detection(0, 10, "walk", 0.3)], "b": [detection(40, 50, "walk", 0.9)]}
    found, truth = paths = write(entries, results)
    blocked = tmp_path / "blocked.json"
    blocked.write_text('["b", "never seen"]')
    result = score(paths, blocked=blocked)
    assert (result["average_mAP"], result["classes"]) == (1.0, ["walk"])
    assert result["warnings"] == [
        f"{truth}: 1 recordings left out: blocked",
        f"{found}: 1 detections left out: their recordings are blocked",
    ]
    blocked.write_text('{"b": 1}')
    with pytest.raises(DataError, match="blocked.json: expected a JSON list of recording ids"):
        score(paths, blocked=blocked)


def test_numpy_ties_sort_from_the_order_of_the_file(write):
    """Scores that rise and fall in a file of one recording, many equal: the original sorts the column as it stands."""
    rng = np.random.default_rng(3)
    rows = [
        detection(float(start), float(start) + 10, "walk", float(s))
        for start, s in zip(rng.permutation(60) * 5, rng.integers(1, 4, 60) / 4, strict=True)
    ]
    truth = [annotation(float(start), float(start) + 10, "walk") for start in range(0, 300, 20)]
    column = np.array([row["score"] for row in rows])
    starts = {a["segment"][0] for a in truth}
    hit = np.array([rows[i]["segment"][0] in starts for i in column.argsort()[::-1]])
    precision = np.cumsum(hit) / np.arange(1, 61)
    expected = np.maximum.accumulate(precision[::-1])[::-1][hit].sum() / len(truth)
    assert score(write(truth, rows), tiou=(1.0,), ties="numpy")["average_mAP"] == pytest.approx(expected, abs=1e-12)


def test_an_unknown_split_lists_those_that_exist(write):
    with pytest.raises(DataError, match=r"no recording in subset 'val'; it has 'test' \(1\)"):
        score(write([annotation(0, 1, "walk")]), split="val")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([], "subset 'test': no ground truth to score against", id="no-segments"),
        pytest.param([annotation(3, 3, "walk")], "subset 'test': no ground truth to score against", id="none-usable"),
        pytest.param([{"segment": [0, 1]}], "recording 'a', segment 0: label is None", id="no-label"),
        pytest.param([{"label": "walk"}], "recording 'a', segment 0: None is not a", id="no-segment"),
        pytest.param([annotation(0, "1", "walk")], r"segment 0: \[0, '1'\] is not a", id="text-for-a-number"),
        pytest.param([annotation(False, True, "walk")], r"segment 0: \[False, True\] is not a", id="booleans"),
        pytest.param([{"label": "walk", "segment": [0, 1, 2]}], r"\[0, 1, 2\] is not a", id="a-triple"),
    ],
)
def test_ground_truth_that_cannot_be_scored_is_named(write, rows, message):
    with pytest.raises(DataError, match=message):
        score(write(rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"top_k": (0,)}, "top_k"), ({"tiou": (2.0,)}, "tiou"), ({"ties": "some"}, "ties")],
    ids=["recall-at-0x", "tiou-2", "unknown-ties"],
)
def test_settings_out_of_range_are_errors_of_the_user(write, settings, message):
    with pytest.raises(DataError, match=message):
        score(write([annotation(0, 1, "walk")]), **settings)


def test_missing_files_are_named(write, tmp_path):
    found, truth = write([annotation(0, 1, "walk")])
    with pytest.raises(DataError, match=r"nowhere\.json"):
        score((tmp_path / "nowhere.json", truth))
    with pytest.raises(DataError, match=r"nowhere\.json"):
        score((found, tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("name", "split", "dirt"),
    [
        pytest.param(
            "activitynet13", "validation", ["3 segments shorter than 1 ms", "19 repeated segments"], id="ActivityNet"
        ),
        pytest.param(
            "multithumos", "test", ["26 segments that end before they start", "4 segments shorter than 1 ms"],
            id="MultiTHUMOS",
        ),
        pytest.param("epic100_noun", "validation", [], id="EPIC-nouns"),
    ],
)  # fmt: skip
def test_real_annotation_sets_find_all_of_their_own_segments_and_count_their_dirt(shared, tmp_path, name, split, dirt):
    path = shared / "data/annotations" / f"{name}.json.gz"
    database = json.loads(gzip.decompress(path.read_bytes()))["database"]
    results = {
        name: [detection(*a["segment"], a["label"], 0.5) for a in e["annotations"] if a["segment"][1] > a["segment"][0]]
        for name, e in database.items()
        if e["subset"].lower() == split
    }
    found = tmp_path / "predictions.json"
    found.write_text(json.dumps({"results": results}))
    result = score_files(found, path, split=split, tiou=(1.0,))
    assert result["recall"][0][1] == 1.0
    assert [w.removeprefix(f"{path}: ") for w in result["warnings"]] == [f"{line} left out" for line in dirt]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3:0.7:0.1", (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("0.5:0.95:0.05", (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ("0.1:1:0.3", (0.1, 0.4, 0.7, 1.0)),
        ("0.3:0.75:0.1", (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("0.5:0.5:0.1", (0.5,)),
        ("0.5,0.75", (0.5, 0.75)),
        (" 0.75 , 0.5", (0.75, 0.5)),
        ("0.5", (0.5,)),
    ],
)
def test_thresholds_are_exact_decimals(text, expected):
    assert parse_tiou(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "half", "0.3:0.7", "0.3:0.7:0.1:0.1", "0.7:0.3:0.1", "0.3:0.7:0", "0.3:0.7:-0.1", "0:0.5:0.1",
        "0.5:1.5:0.1",
        "0.5,", "0.5,0.5", "0", "1.01", "-0.5", "nan", "inf", "0.1:0.9:1e-9", "0.3;0.5",
    ],
)  # fmt: skip
def test_nonsense_for_thresholds_is_refused_with_an_example(text):
    with pytest.raises(DataError, match=r"^tiou ") as caught:
        parse_tiou(text)
    assert repr(text) in str(caught.value)

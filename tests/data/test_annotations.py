"""Annotation files: what is read, what is refused and in which words."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tzn.data.annotations import load_annotations, parse_annotations
from tzn.errors import DataError


def entry(*segments, subset="training", duration=10.0, **more):
    annotations = [{"segment": s, "label": label} for s, label in segments]
    return {"subset": subset, "duration": duration, "fps": 25.0, "annotations": annotations, **more}


@pytest.fixture
def write(tmp_path):
    def _write(content, name="annotations.json"):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return _write


def database(**recordings):
    return {"database": recordings}


@pytest.mark.parametrize("name", ["annotations.json", "annotations.json.gz"])
def test_reads_recordings_in_seconds(write, name):
    path = write(database(a=entry(([1, 2.5], "walk"), ([3, 4], "run")), b=entry(subset="Test", duration=None)), name)
    annotations = load_annotations(path)
    a, b = annotations.recordings.values()
    assert annotations.classes == ("run", "walk")  # no label_id: by name
    assert (a.id, a.subset, a.duration, a.fps) == ("a", "training", 10.0, 25.0)
    np.testing.assert_array_equal(a.segments, [[1.0, 2.5], [3.0, 4.0]])
    assert a.segments.dtype == np.float64 and a.labels.dtype == np.int64
    assert a.labels.tolist() == [1, 0]
    assert b.duration is None and b.segments.shape == (0, 2) and b.labels.shape == (0,)
    assert annotations.dropped == {}


def with_ids(*pairs):
    return {"subset": "x", "annotations": [{"segment": [0, 1], "label": n, "label_id": i} for n, i in pairs]}


@pytest.mark.parametrize(
    ("pairs", "classes"),
    [
        pytest.param([("b", 0), ("a", 4), ("b", 0)], ("b", "a"), id="by-label_id-even-with-gaps"),
        pytest.param([("b", 0), ("a", 1), ("b", 2)], ("a", "b"), id="by-name-when-a-label-has-two-ids"),
        pytest.param([("b", 0), ("a", 0)], ("a", "b"), id="by-name-when-labels-share-an-id"),
        pytest.param([("b", 0), ("a", None)], ("a", "b"), id="by-name-when-an-id-is-missing"),
    ],
)
def test_class_order(write, pairs, classes):
    assert load_annotations(write(database(v=with_ids(*pairs)))).classes == classes


def test_given_classes_fix_the_order_even_of_absent_ones(write):
    path = write(database(a=entry(([1, 2], "walk"))))
    annotations = load_annotations(path, classes=["sit", "walk"])
    assert annotations.classes == ("sit", "walk")
    assert annotations.recordings["a"].labels.tolist() == [1]


def test_label_outside_given_classes_names_the_nearest(write):
    path = write(database(a=entry(([1, 2], "wlak"))))
    with pytest.raises(DataError, match=r"'a', segment 0: unknown label 'wlak'; did you mean 'walk'\?"):
        load_annotations(path, classes=["sit", "walk"], strict=False)


BAD_SEGMENTS = [
    pytest.param([3, 2], "end before start", None, id="end-before-start"),
    pytest.param([2, 2], "zero length", None, id="zero-length"),
    pytest.param([float("nan"), 2], "start or end is not finite", None, id="NaN"),
    pytest.param([1, float("inf")], "start or end is not finite", None, id="infinite"),
    pytest.param([1, 2, 3], "not a [start, end] pair of numbers", None, id="three-numbers"),
    pytest.param(["1", 2], "not a [start, end] pair of numbers", None, id="text"),
    pytest.param([10.0, 12], "outside the recording", None, id="starts-at-the-end"),
    pytest.param([-2, -1], "outside the recording", None, id="before-the-start"),
    pytest.param([8, 10.6], "ends after the recording", [8, 10], id="overhangs-the-end"),
    pytest.param([-0.6, 3], "starts before 0 s", [0, 3], id="overhangs-the-start"),
]


@pytest.mark.parametrize(("segment", "reason", "kept"), BAD_SEGMENTS)
def test_bad_segment(write, segment, reason, kept):
    path = write(database(good=entry(([1, 2], "walk")), v7=entry(([0, 1], "walk"), (segment, "walk"))))
    with pytest.raises(DataError) as error:
        load_annotations(path)
    assert "1 bad segment:" in str(error.value)
    assert f"recording 'v7', segment 1: {segment}: {reason}" in str(error.value)
    loose = load_annotations(path, strict=False)
    assert loose.dropped == {reason: 1}
    expected = [[0, 1]] + ([kept] if kept else [])
    np.testing.assert_array_equal(loose.recordings["v7"].segments, expected)
    assert len(loose.recordings["v7"].labels) == len(expected)


def test_rounding_past_the_end_is_no_error_but_clipped_when_not_strict(write):
    path = write(database(a=entry(([8, 10.4], "walk"))))
    assert load_annotations(path).recordings["a"].segments.tolist() == [[8, 10.4]]
    assert load_annotations(path, strict=False).recordings["a"].segments.tolist() == [[8, 10]]


def test_only_the_first_problems_are_listed(write):
    path = write(database(a=entry(*[([i + 1, i], "walk") for i in range(8)])))
    with pytest.raises(DataError, match=r"8 bad segments: .*segment 4.*; and 3 more") as error:
        load_annotations(path)
    assert "segment 5" not in str(error.value)
    assert len(parse_annotations(path)[1]) == 8


BROKEN = [
    pytest.param('{"database": {"a": {"subset": "x"}, "a": {"subset": "x"}}}', "id 'a' appears twice", id="id-twice"),
    pytest.param('{"database": {"a": {"subset": "x", "fps": 1, "fps": 2}}}', "key 'fps' appears twice", id="key-twice"),
    pytest.param('{"database": ', "not valid JSON", id="truncated"),
    pytest.param("", "not valid JSON", id="empty-file"),
    pytest.param({"results": {}}, r"expected an object .*found keys \['results'\]", id="predictions"),
    pytest.param([1], "found a list", id="list"),
    pytest.param({"database": {}}, "no recordings", id="no-recordings"),
    pytest.param(database(a={"annotations": []}), "recording 'a': expected an object with", id="no-subset"),
    pytest.param(database(a=entry(duration=-1)), "'a': duration is -1, expected a positive", id="bad-duration"),
    pytest.param(database(a={**entry(), "fps": "25"}), "recording 'a': fps is '25'", id="bad-fps"),
    pytest.param(database(a={**entry(), "annotations": "no"}), "not a list", id="bad-list"),
    pytest.param(database(a=entry(([1, 2], 5))), "segment 0: \"label\" is 5, expected a class name", id="bad-label"),
]  # fmt: skip


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_broken_file(write, content, message, strict):
    with pytest.raises(DataError, match=message) as error:
        load_annotations(write(content), strict=strict)
    assert "annotations.json" in str(error.value)


def test_missing_and_damaged_files(tmp_path, write):
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        load_annotations(tmp_path / "nothing.json")
    path = write(database(a=entry()), "annotations.json.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        load_annotations(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="cannot be read"):
        load_annotations(path)


def test_subset_ignores_case_and_lists_what_exists(write):
    annotations = load_annotations(write(database(a=entry(), b=entry(subset="Test"), c=entry(subset="Test"))))
    assert [r.id for r in annotations.subset("test")] == ["b", "c"]
    with pytest.raises(DataError, match=r"subset 'val'; the annotations have: 'Test' \(2\), 'training' \(1\)"):
        annotations.subset("val")


def test_real_hapt(shared):
    annotations = load_annotations(shared / "data/hapt/annotations.json")
    assert len(annotations.subset("training")) == 42 and len(annotations.subset("test")) == 19
    assert annotations.classes[0] == "WALKING" and annotations.classes[6] == "STAND_TO_SIT"
    first = annotations.recordings["exp01_user01"]
    assert first.segments[0].tolist() == [4.98, 24.64] and annotations.classes[first.labels[0]] == "STANDING"
    assert sum(len(r.labels) for r in annotations.recordings.values()) == 1214


@pytest.mark.parametrize(
    ("name", "strict_problems", "dropped"),
    [
        ("thumos14/annotations.json", 30, {"outside the recording": 30}),
        ("annotations/activitynet13.json.gz", 13, {"zero length": 12, "ends after the recording": 173}),
    ],
)
def test_known_dirt_of_real_annotations(shared, name, strict_problems, dropped):
    path = shared / "data" / name
    with pytest.raises(DataError, match=f"{strict_problems} bad segments"):
        load_annotations(path)
    assert load_annotations(path, strict=False).dropped == dropped


def test_a_bomb_and_numbers_beyond_reading_are_one_line(tmp_path, monkeypatch):
    import gzip

    from tzn.data import annotations

    monkeypatch.setattr(annotations, "MAX_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b" " * (50 << 20)))
    with pytest.raises(DataError, match=r"bomb\.json\.gz: more than 1 MiB of JSON, unpacked"):
        annotations.read_json(bomb)
    for text, words in (
        ("9" * 5000, "expected an object"),
        ("[" * 3000 + "]" * 3000, "nested too deeply|expected an object"),
    ):
        path = tmp_path / "x.json"
        path.write_text('{"database": ' + text + "}")
        with pytest.raises(DataError, match=words) as caught:
            load_annotations(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("segment", [[False, True], [0, True], [0, int("9" * 400)]], ids=["both", "one", "400-digits"])
def test_truth_values_and_endless_integers_are_no_times(tmp_path, segment):
    path = tmp_path / "x.json"
    row = {"segment": segment, "label": "a"}
    path.write_text(json.dumps({"database": {"r": {"subset": "test", "annotations": [row]}}}))
    with pytest.raises(DataError, match="pair of numbers|not finite"):
        load_annotations(path)

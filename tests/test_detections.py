"""Prediction files: what is written, and what is refused when read."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest

from tzn.detections import Detections, read_predictions, write_predictions, write_srt_folder
from tzn.errors import DataError

CLASSES = ("walk", "sit down", 'café, "late"')


def found(segments, scores, labels, std=None):
    std = None if std is None else np.array(std, float).reshape(-1, 2)
    return Detections(np.array(segments, float).reshape(-1, 2), np.array(scores, float), np.array(labels, int), std)


TWO = {
    "first": found([[1 / 3, 2.5], [0, 7200.0009]], [0.9, 5.384e-13], [1, 2], [[0.1, np.nan], [1e-7, 0.2]]),
    "empty": found([], [], []),
    "plain": found([[3, 4]], [0.5], [0]),
}


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_what_is_written_is_read_back_exactly(tmp_path, suffix):
    path = tmp_path / f"new/folder/predictions{suffix}"
    write_predictions(path, TWO, CLASSES)
    read, unknown = read_predictions(path, CLASSES)
    assert unknown == 0
    assert list(read) == list(TWO)
    for name, expected in TWO.items():
        np.testing.assert_array_equal(read[name].segments, expected.segments)
        np.testing.assert_array_equal(read[name].scores, expected.scores)
        np.testing.assert_array_equal(read[name].labels, expected.labels)
        assert read[name].segments.dtype == read[name].scores.dtype == np.float64
        assert read[name].labels.dtype == np.int64
    np.testing.assert_array_equal(read["first"].std, TWO["first"].std)
    assert read["plain"].std is None


def test_the_json_is_the_activitynet_schema_with_null_for_unknown_standard_errors(tmp_path):
    write_predictions(tmp_path / "p.json", TWO, CLASSES)
    content = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert content["results"]["first"][0] == {
        "segment": [1 / 3, 2.5], "label": "sit down", "score": 0.9, "segment_std": [0.1, None],
    }  # fmt: skip
    assert content["results"]["plain"] == [{"segment": [3.0, 4.0], "label": "walk", "score": 0.5}]
    assert content["results"]["empty"] == []
    assert "version" in content


def test_the_same_detections_give_the_same_compressed_bytes(tmp_path):
    write_predictions(tmp_path / "a.json.gz", TWO, CLASSES)
    write_predictions(tmp_path / "b.json.gz", TWO, CLASSES)
    assert (tmp_path / "a.json.gz").read_bytes()[:40] == (tmp_path / "b.json.gz").read_bytes()[:40]
    assert (tmp_path / "a.json.gz").read_bytes()[4:8] == b"\0\0\0\0"  # no time stamp


def test_no_recordings_at_all_is_a_readable_file(tmp_path):
    write_predictions(tmp_path / "p.json", {}, CLASSES)
    assert read_predictions(tmp_path / "p.json", CLASSES) == ({}, 0)


def test_csv_has_one_row_per_detection_and_quotes_labels(tmp_path):
    write_predictions(tmp_path / "p.csv", TWO, CLASSES)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["video", "start", "end", "label", "score", "start_std", "end_std"],
        ["first", "0.333333", "2.500000", "sit down", "0.9", "0.100000", ""],
        ["first", "0.000000", "7200.000900", 'café, "late"', "5.384e-13", "0.000000", "0.200000"],
        ["plain", "3.000000", "4.000000", "walk", "0.5", "", ""],
    ]


def test_subtitles_are_numbered_by_start_with_times_to_the_millisecond(tmp_path):
    one = {"clip": found([[3661.2345, 3662], [0.0004, 59.9996], [-0.2, 1]], [0.987, 0.5, 0.25], [0, 1, 0])}
    write_predictions(tmp_path / "clip.srt", one, CLASSES)
    assert (tmp_path / "clip.srt").read_text(encoding="utf-8") == (
        "1\n00:00:00,000 --> 00:00:01,000\nwalk 0.25\n\n"
        "2\n00:00:00,000 --> 00:01:00,000\nsit down 0.50\n\n"
        "3\n01:01:01,234 --> 01:01:02,000\nwalk 0.99\n"
    )


def test_several_recordings_do_not_fit_one_subtitle_file(tmp_path):
    with pytest.raises(DataError, match="one recording, there are 3; give a folder"):
        write_predictions(tmp_path / "p.srt", TWO, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_subtitles_has_a_file_per_recording(tmp_path):
    write_srt_folder(tmp_path / "subtitles", TWO, CLASSES)
    assert sorted(p.name for p in (tmp_path / "subtitles").iterdir()) == ["empty.srt", "first.srt", "plain.srt"]
    assert (tmp_path / "subtitles/empty.srt").read_text() == ""


@pytest.mark.parametrize("name", ["../escape", "a/b", "..", ""])
def test_a_recording_id_that_would_leave_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a file"):
        write_srt_folder(tmp_path / "inner", {"fine": TWO["plain"], name: TWO["plain"]}, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"\.json, \.json\.gz, \.csv or \.srt, not as '\.xml'"):
        write_predictions(tmp_path / "p.xml", TWO, CLASSES)


def read_text(tmp_path, text, name="p.json"):
    (tmp_path / name).write_text(text)
    return read_predictions(tmp_path / name, CLASSES)


def test_detections_are_sorted_by_falling_score_and_equal_scores_stay_in_file_order(tmp_path):
    rows = [{"segment": [i, i + 1], "label": "walk", "score": s} for i, s in enumerate([0.1, 0.5, 0.9, 0.5])]
    read, _ = read_text(tmp_path, json.dumps({"results": {"a": rows}}))
    assert read["a"].segments[:, 0].tolist() == [2, 1, 3, 0]


def test_unknown_labels_are_dropped_and_counted(tmp_path):
    rows = [{"segment": [0, 1], "label": label, "score": 0.5} for label in ("walk", "fly", "swim")]
    read, unknown = read_text(tmp_path, json.dumps({"results": {"a": rows, "b": rows[1:]}}))
    assert (len(read["a"].scores), len(read["b"].scores), unknown) == (1, 0, 4)


def test_standard_errors_may_be_missing_for_some(tmp_path):
    rows = [
        {"segment": [0, 1], "label": "walk", "score": 0.9},
        {"segment": [0, 1], "label": "walk", "score": 0.8, "segment_std": [0.5, None]},
        {"segment": [0, 1], "label": "walk", "score": 0.7, "segment_std": None},
    ]
    read, _ = read_text(tmp_path, json.dumps({"results": {"a": rows}}))
    nan = np.nan
    np.testing.assert_array_equal(read["a"].std, [[nan, nan], [0.5, nan], [nan, nan]])


def test_integers_are_numbers_and_zero_length_is_allowed(tmp_path):
    read, _ = read_text(tmp_path, '{"results": {"a": [{"segment": [3, 3], "label": "walk", "score": 1}]}}')
    assert read["a"].segments.tolist() == [[3.0, 3.0]]
    assert read["a"].segments.dtype == np.float64


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"label": "walk", "score": 0.5}, "no 'segment'", id="no-segment"),
        pytest.param({"segment": [0, 1], "score": 0.5}, "no 'label'", id="no-label"),
        pytest.param({"segment": [0, 1], "label": "walk"}, "no 'score'", id="no-score"),
        pytest.param([0, 1, "walk", 0.5], "expected an object", id="a-list"),
        pytest.param({"segment": [0], "label": "walk", "score": 0.5}, "not a .* pair", id="one-end"),
        pytest.param({"segment": [0, 1, 2], "label": "walk", "score": 0.5}, "not a .* pair", id="three-ends"),
        pytest.param({"segment": 3, "label": "walk", "score": 0.5}, "not a .* pair", id="segment-a-number"),
        pytest.param({"segment": [0, "1"], "label": "walk", "score": 0.5}, "not a .* pair", id="an-end-of-text"),
        pytest.param({"segment": [0, None], "label": "walk", "score": 0.5}, "not a .* pair", id="an-end-of-null"),
        pytest.param({"segment": [0, float("inf")], "label": "walk", "score": 0.5}, "not a .* pair", id="infinite-end"),
        pytest.param({"segment": [0, 1], "label": "walk", "score": float("nan")}, "score is not", id="NaN-score"),
        pytest.param({"segment": [0, 1], "label": "walk", "score": "0.5"}, "score is not", id="score-of-text"),
        pytest.param({"segment": [0, 1], "label": "walk", "score": None}, "score is not", id="score-of-null"),
        pytest.param(
            {"segment": [2, 1], "label": "walk", "score": 0.5}, "ends before it starts", id="end-before-start"
        ),
        pytest.param(
            {"segment": [0, 1], "label": "walk", "score": 0.5, "segment_std": [-1, 0]}, "segment_std", id="negative-std"
        ),
        pytest.param(
            {"segment": [0, 1], "label": "walk", "score": 0.5, "segment_std": [1]}, "segment_std", id="one-std"
        ),
    ],
)
@pytest.mark.parametrize("before", [0, 2], ids=["alone", "after-good-ones"])
def test_a_malformed_detection_is_named_by_file_recording_and_place(tmp_path, row, message, before):
    good = {"segment": [0, 1], "label": "walk", "score": 0.5}
    text = json.dumps({"results": {"fine": [good], "clip": [good] * before + [row]}})
    with pytest.raises(DataError, match=rf"p\.json: recording 'clip', detection {before}: .*{message}") as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_two_segments_of_wrong_length_do_not_pass_as_pairs_together(tmp_path):
    rows = [{"segment": s, "label": "walk", "score": 0.5} for s in ([1], [2, 3, 4])]
    with pytest.raises(DataError, match="detection 0"):
        read_text(tmp_path, json.dumps({"results": {"a": rows}}))
    quadruples = [{"segment": [1, 2, 3, 4], "label": "walk", "score": 0.5}]
    with pytest.raises(DataError, match="detection 0"):
        read_text(tmp_path, json.dumps({"results": {"a": quadruples}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('{"results": {"a": [{"segm', "not valid JSON", id="truncated"),
        pytest.param("", "not valid JSON", id="empty"),
        pytest.param("[]", 'expected an object with "results"', id="a-list"),
        pytest.param('{"result": {}}', 'expected an object with "results"', id="no-results"),
        pytest.param('{"results": []}', 'expected an object with "results"', id="results-a-list"),
        pytest.param('{"results": {"a": {}}}', "recording 'a': expected a list", id="a-recording-an-object"),
        pytest.param('{"results": {"a": [], "a": []}}', "'a' appears twice", id="a-recording-twice"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"p\.json: .*{message}"):
        read_text(tmp_path, text)


def test_damaged_compression_and_missing_files_are_named(tmp_path):
    whole = gzip.compress(b'{"results": {}}' * 50)
    (tmp_path / "cut.json.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"cut\.json\.gz: cannot be read"):
        read_predictions(tmp_path / "cut.json.gz", CLASSES)
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_predictions(tmp_path / "none.json", CLASSES)

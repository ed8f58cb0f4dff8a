"""Prediction files: what is written, and what is refused when read."""

from __future__ import annotations

import csv
import doctest
import gzip
import json
import math
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest

import tzn.detections
from tzn.data import annotations
from tzn.detections import Detections, Segment, read_predictions, write_folder, write_predictions
from tzn.errors import DataError, TznError
from tzn.formats import FORMATS, format_of

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
    write_folder(tmp_path / "subtitles", TWO, CLASSES)
    assert sorted(p.name for p in (tmp_path / "subtitles").iterdir()) == ["empty.srt", "first.srt", "plain.srt"]
    assert (tmp_path / "subtitles/empty.srt").read_text() == ""


@pytest.mark.parametrize("name", ["../escape", "a/b", "..", ""])
def test_a_recording_id_that_would_leave_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a file"):
        write_folder(tmp_path / "inner", {"fine": TWO["plain"], name: TWO["plain"]}, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"\.json\.gz, \.json, \.csv, \.srt, \.vtt, \.textgrid, \.txt, not as '\.xml'"):
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


# The class


@pytest.fixture
def three():
    return Detections(
        np.array([[2.0, 5.5], [7.0, 9.0], [1.0, 1.5]]), np.array([0.9, 0.5, 0.25]), np.array([1, 0, 1]),
        np.array([[0.1, 0.2], [np.nan, 0.3], [np.nan, np.nan]]), classes=("sit & <wait>", "run"), recording="clip",
        score_threshold=0.4,
    )  # fmt: skip


def test_the_docstrings_tell_the_truth():
    failed, tried = doctest.testmod(tzn.detections, extraglobs={"np": np})
    assert tried > 5 and failed == 0


def test_a_sequence_of_segments(three):
    assert len(three) == 3
    assert three[0] == Segment(2.0, 5.5, "run", 0.9, 0.1, 0.2) == next(iter(three))
    assert [s.label for s in three] == ["run", "sit & <wait>", "run"]
    assert three[-1].start == 1.0 and math.isnan(three[-1].start_std)
    assert [s.start for s in reversed(three)] == [1.0, 7.0, 2.0]
    with pytest.raises(IndexError):
        three[3]
    assert [s.label for s in found([[0, 1]], [1], [4])] == ["4"]  # names not known
    assert repr(three) == "<3 detections of 'clip'>"


@pytest.mark.parametrize(
    ("index", "starts"),
    [
        (slice(1, None), [7, 1]), (np.array([True, False, True]), [2, 1]), ([2, 0], [1, 2]), ([], []),
        (np.zeros(0, np.int64), []),
    ],
    ids=["slice", "mask", "places", "empty-list", "empty-array"],
)  # fmt: skip
def test_parts_keep_what_belongs_to_them(three, index, starts):
    part = three[index]
    assert part.segments[:, 0].tolist() == starts
    assert len(part.scores) == len(part.labels) == len(part.std) == len(starts)
    assert (part.classes, part.recording, part.score_threshold) == (three.classes, "clip", 0.4)


def test_filters(three):
    assert three.filter(score=0.5).scores.tolist() == [0.9, 0.5]
    assert three.filter(labels="run").scores.tolist() == [0.9, 0.25]
    assert three.filter(score=0.3, labels=["run", "sit & <wait>"]).scores.tolist() == [0.9, 0.5]
    assert len(three.filter(labels=[])) == 0
    with pytest.raises(DataError, match=r"no class 'walk'; expected some of sit & <wait>, run"):
        three.filter(labels="walk")


def test_intervals_are_gaussian(three):
    start, end = three[0].interval(0.95)
    assert start == pytest.approx((2 - 0.196, 2 + 0.196), abs=1e-4)
    assert end == pytest.approx((5.5 - 0.392, 5.5 + 0.392), abs=1e-4)
    assert math.isnan(three[1].interval()[0][0])
    with pytest.raises(ValueError, match=r"coverage = 1"):
        three[0].interval(1)


def test_a_table(three, monkeypatch):
    table = three.to_dataframe()
    assert list(table) == ["recording", "start", "end", "label", "score", "start_std", "end_std"]
    assert table["label"].tolist() == ["run", "sit & <wait>", "run"]
    assert table["end_std"].isna().tolist() == [False, False, True]
    assert found([], [], []).to_dataframe().empty
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(TznError, match=r"pip install 'tzn\[table\]'"):
        three.to_dataframe()


def test_notebooks_show_an_escaped_table(three):
    page = ElementTree.fromstring(f"<div>{three._repr_html_()}</div>")
    cells = [[cell.text for cell in row] for row in page.iter("tr")]
    assert cells[0] == ["start", "end", "label", "score", "± start", "± end"]
    assert cells[1] == ["2.000", "5.500", "run", "0.900", "0.100", "0.200"]
    assert cells[2] == ["7.000", "9.000", "sit & <wait>", "0.500", None, "0.300"]
    many = found([[i, i + 1] for i in range(50)], [0.5] * 50, [0] * 50)
    assert "and 30 more" in many._repr_html_()


def test_a_picture_shows_the_confident_ones(three, tmp_path):
    def drawn(figure):
        return len([patch for patch in figure.axes[0].patches if patch.get_label().startswith("detected")])

    assert drawn(three.plot(tmp_path / "a.png")) == 2
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert drawn(three.plot(min_score=0)) == 3
    assert drawn(found([[0, 1]], [0.001], [0]).plot()) == 1
    assert "confident: score ≥ 0.4" in " ".join(t.get_text() for t in three.plot().texts)


# Formats


def test_methods_write_what_the_command_line_writes(three, tmp_path):
    for name, known in FORMATS.items():
        getattr(three, f"to_{name}")(tmp_path / f"method.{name}")
        write_predictions(tmp_path / f"function{known.suffix}", {"clip": three})
        assert (tmp_path / f"method.{name}").read_bytes() == (tmp_path / f"function{known.suffix}").read_bytes()
        assert format_of(f"x/y{known.suffix.upper()}") == name
    three.to_json(tmp_path / "p.json.gz")
    read, _ = read_predictions(tmp_path / "p.json.gz", three.classes)
    assert (read["clip"].score_threshold, read["clip"].recording, read["clip"].classes) == (0.4, "clip", three.classes)
    assert list(read["clip"])[:1] == list(three)[:1]
    assert format_of("p.json.gz") == "json" and format_of("p.csv.gz") is None


def test_webvtt_escapes_and_has_no_cue_without_length(tmp_path):
    d = Detections(
        np.array([[3661.2, 3662], [1, 1]]), np.array([0.5, 0.25]), np.array([0, 0]), classes=("a<b>\n--> c",)
    )
    d.to_vtt(tmp_path / "p.vtt")
    assert (tmp_path / "p.vtt").read_text() == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:01.001\na&lt;b&gt; --&gt; c 0.25\n\n"
        "01:01:01.200 --> 01:01:02.000\na&lt;b&gt; --&gt; c 0.50\n"
    )


def test_audacity_labels_stay_on_their_line(tmp_path):
    d = Detections(np.array([[3, 4.5], [1, 2]]), np.array([0.9, 0.5]), np.array([0, 1]), classes=("a\tb", "c\nd"))
    d.to_audacity(tmp_path / "p.txt")
    assert (tmp_path / "p.txt").read_text() == "1.000000\t2.000000\tc d\n3.000000\t4.500000\ta b\n"


def parsed_textgrid(text):
    """Tiers as {name: (class, [(start, end, text) or (time, text)])}."""
    values = [line.split(" = ", 1)[1] if " = " in line else line for line in text.splitlines() if line.strip()]
    assert values[:2] == ['"ooTextFile"', '"TextGrid"'] and values[4] == "tiers? <exists>"
    place, tiers = 7, {}
    for _ in range(int(values[5])):
        kind, name, first, last, count = values[place + 1 : place + 6]
        width = 4 if kind == '"IntervalTier"' else 3
        rows = [values[place + 6 + i * width : place + 6 + (i + 1) * width][1:] for i in range(int(count))]
        tiers[name[1:-1]] = kind.strip('"'), [(*map(float, row[:-1]), row[-1][1:-1]) for row in rows], first, last
        place += 6 + int(count) * width
    assert place == len(values)
    return tiers


def test_textgrids_cover_all_time_and_split_overlaps(tmp_path):
    d = Detections(
        np.array([[2, 4], [3, 6], [4, 5], [1.5, 1.5]]), np.ones(4), np.array([0, 0, 0, 1]), classes=('say "a"', "tap")
    )
    d.to_textgrid(tmp_path / "p.textgrid")
    quoted = 'say ""a""'
    assert parsed_textgrid((tmp_path / "p.textgrid").read_text()) == {
        quoted: ("IntervalTier", [(0, 2, ""), (2, 4, quoted), (4, 5, quoted), (5, 6, "")], "0.0", "6.0"),
        f"{quoted} 2": ("IntervalTier", [(0, 3, ""), (3, 6, quoted)], "0.0", "6.0"),
        "tap (points)": ("TextTier", [(1.5, "tap")], "0.0", "6.0"),
    }
    found([], [], []).to_textgrid(tmp_path / "empty.textgrid")
    assert parsed_textgrid((tmp_path / "empty.textgrid").read_text())["detections"][1] == [(0, 1, "")]


@pytest.mark.parametrize("fmt", ["vtt", "textgrid", "audacity"])
def test_a_folder_of_any_format_has_a_file_per_recording(tmp_path, fmt):
    write_folder(tmp_path / "out", TWO, CLASSES, fmt=fmt)
    suffix = FORMATS[fmt].suffix
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}{suffix}" for n in sorted(TWO)]
    with pytest.raises(DataError, match=f"one recording, there are 3; give a folder .*--format {fmt}"):
        write_predictions(tmp_path / f"p{suffix}", TWO, CLASSES)


# Reading what is not as it should be


def test_bad_rows_are_left_out_and_counted_when_asked(tmp_path):
    good = {"segment": [0, 1], "label": "walk", "score": 0.5}
    rows = [good, good | {"segment": [3, 2]}, good | {"score": float("nan")}, good | {"segment": [4, 3]}, 7, good]
    bad = Counter()
    (tmp_path / "p.json").write_text(json.dumps({"results": {"a": rows, "b": [good]}}))
    read, unknown = read_predictions(tmp_path / "p.json", CLASSES, bad=bad)
    assert (len(read["a"]), len(read["b"]), unknown) == (2, 1, 0)
    assert bad == {"segment ends before it starts": 2, "score is not a finite number": 1, "expected an object": 1}


def test_the_order_of_the_file_can_be_kept(tmp_path):
    rows = [{"segment": [i, i + 1], "label": "walk", "score": s} for i, s in enumerate([0.1, 0.5, 0.9])]
    (tmp_path / "p.json").write_text(json.dumps({"results": {"a": rows}}))
    read, _ = read_predictions(tmp_path / "p.json", CLASSES, in_file_order=True)
    assert read["a"].segments[:, 0].tolist() == [0, 1, 2]


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "p.json.gz"
    path.write_bytes(gzip.compress(b'{"results": {}}' + b" " * 5_000_000))
    assert path.stat().st_size < 20_000
    assert read_predictions(path, CLASSES) == ({}, 0)
    monkeypatch.setattr(annotations, "MAX_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"p\.json\.gz: more than 0 MiB of JSON, unpacked"):
        read_predictions(path, CLASSES)


@pytest.mark.parametrize("score", ["9" * 5000, "9" * 400], ids=["5000-digits", "beyond-float"])
def test_numbers_that_no_float_holds_are_refused(tmp_path, score):
    text = f'{{"results": {{"a": [{{"segment": [0, 1], "label": "walk", "score": {score}}}]}}}}'
    with pytest.raises(DataError, match="score is not a finite number"):
        read_text(tmp_path, text)


def test_a_threshold_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(DataError, match="\"score_threshold\" is 'high', expected a score"):
        read_text(tmp_path, '{"score_threshold": "high", "results": {}}')

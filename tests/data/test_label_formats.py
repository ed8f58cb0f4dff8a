"""Annotations of other programs: files that their own libraries wrote, and known files of those without one."""

from __future__ import annotations

import json

import pytest

from tzn.cli import main
from tzn.data.annotations import load_annotations
from tzn.data.label_formats import convert_labels, read_labels
from tzn.errors import DataError

SEGMENTS = [(0.5, 2.25, "open door"), (3.0, 4.5, "sit"), (4.5, 9.0, "sit")]


def _only(path, **options):
    found = read_labels(path, **options)
    assert len(found) == 1
    return next(iter(found.items()))


def test_audacity_labels_that_tzn_and_audacity_write(tmp_path):
    (tmp_path / "rec.txt").write_text(
        "0.500000\t2.250000\topen door\n\\\t100.0\t2000.0\n3,0\t4,5\tsit\n4.5\t9.0\tsit\n9.5\t9.5\tclick\n", "utf-8-sig"
    )
    name, found = _only(tmp_path / "rec.txt")
    assert name == "rec" and found.segments == SEGMENTS and found.points == 1


def test_csv_of_several_recordings(tmp_path):
    (tmp_path / "a.csv").write_text(
        "label;start;recording;end;subset;duration\nopen door;0,5;r1;2,25;training;10\nsit;3;r1;4,5;training;10\n"
        "sit;1;r2;2;test;5,5\n"
    )
    count = convert_labels(tmp_path / "a.csv", tmp_path / "out.json")
    assert count == (3, 2)
    annotations = load_annotations(tmp_path / "out.json")
    assert annotations.classes == ("open door", "sit")
    r1, r2 = annotations.recordings["r1"], annotations.recordings["r2"]
    assert (r1.subset, r1.duration, r2.subset, r2.duration) == ("training", 10.0, "test", 5.5)
    assert r1.segments.tolist() == [[0.5, 2.25], [3.0, 4.5]]


def test_elan_with_tiers_and_media_name(tmp_path):
    pympi = pytest.importorskip("pympi")
    document = pympi.Eaf(author="tests")
    document.add_linked_file("file:///C:/films/kitchen 1.mp4", mimetype="video/mp4")
    document.add_tier("actions")
    document.add_tier("remarks")
    for start, end, label in SEGMENTS:
        document.add_annotation("actions", round(1000 * start), round(1000 * end), label)
    document.add_annotation("remarks", 0, 100, "camera shakes")
    document.to_file(str(tmp_path / "a.eaf"))
    name, found = _only(tmp_path / "a.eaf", tiers=["actions"])
    assert name == "kitchen 1" and sorted(found.segments) == SEGMENTS
    assert len(_only(tmp_path / "a.eaf")[1].segments) == 4
    with pytest.raises(DataError, match="no tier 'verbs'; the file has: .*actions, remarks"):
        read_labels(tmp_path / "a.eaf", tiers=["verbs"])


@pytest.mark.parametrize("fmt", ["long_textgrid", "short_textgrid"])
def test_praat_text_grids(tmp_path, fmt):
    textgrid = pytest.importorskip("praatio.textgrid")
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("words", SEGMENTS, 0, 10.0))
    grid.addTier(textgrid.PointTier("clicks", [(1.0, "click")], 0, 10.0))
    grid.save(str(tmp_path / "a.TextGrid"), format=fmt, includeBlankSpaces=True)
    name, found = _only(tmp_path / "a.TextGrid")
    assert name == "a" and found.segments == SEGMENTS and found.points == 1 and found.duration == 10.0


VIA = {
    "project": {"pid": "1", "pname": "kitchen"},
    "attribute": {
        "1": {"aname": "activity", "type": 4, "options": {"0": "open door", "1": "sit"}},
        "2": {"aname": "free text", "type": 1, "options": {}},
    },
    "file": {"1": {"fid": "1", "fname": "kitchen.mp4", "type": 4}, "2": {"fid": "2", "fname": "hall.mp4", "type": 4}},
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
    "metadata": {
        "1_a": {"vid": "1", "flg": 0, "z": [0.5, 2.25], "xy": [], "av": {"1": "0"}},
        "1_b": {"vid": "2", "flg": 0, "z": [3.0, 4.5], "xy": [], "av": {"2": "wave"}},
        "1_c": {"vid": "1", "flg": 0, "z": [1.0], "xy": [2, 10, 10, 20, 20], "av": {"1": "1"}},
        "1_d": {"vid": "1", "flg": 0, "z": [], "xy": [2, 1, 1, 2, 2], "av": {"1": "1"}},
    },
}


def test_via_projects(tmp_path):
    (tmp_path / "via.json").write_text(json.dumps(VIA))
    found = read_labels(tmp_path / "via.json")
    assert found["kitchen"].segments == [(0.5, 2.25, "open door")] and found["kitchen"].points == 1
    assert found["hall"].segments == [(3.0, 4.5, "wave")]


CVAT_VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
 <meta><task><name>kitchen task</name><size>250</size></task><source>kitchen.mp4</source></meta>
 <track id="0" label="open door">
  <box frame="10" outside="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>
  <box frame="11" outside="0" keyframe="0" xtl="1" ytl="1" xbr="9" ybr="9"/>
  <box frame="45" outside="1" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>
  <box frame="100" outside="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>
  <box frame="119" outside="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>
 </track></annotations>"""
CVAT_IMAGES = """<annotations><meta><task><name>hall</name></task></meta>
 <image id="4" name="frame_4"><tag label="sit" source="manual"/></image>
 <image id="5" name="frame_5"><tag label="sit" source="manual"/></image>
 <image id="6" name="frame_6"/>
 <image id="9" name="frame_9"><tag label="sit" source="manual"/></image></annotations>"""
CVAT_JSON = [{
    "version": 0, "shapes": [],
    "tags": [{"frame": 4, "label": "sit"}, {"frame": 5, "label": "sit"}],
    "tracks": [{"frame": 10, "label": "run", "shapes": [
        {"frame": 10, "outside": False}, {"frame": 30, "outside": True}]}],
}]  # fmt: skip


def test_cvat_tracks_and_tags(tmp_path):
    (tmp_path / "video.xml").write_text(CVAT_VIDEO)
    name, found = _only(tmp_path / "video.xml", fps=20)
    assert name == "kitchen" and found.fps == 20
    assert found.segments == [(0.5, 2.25, "open door"), (5.0, 6.0, "open door")]
    (tmp_path / "images.xml").write_text(CVAT_IMAGES)
    name, found = _only(tmp_path / "images.xml", fps=10)
    assert name == "hall" and found.segments == [(0.4, 0.6, "sit"), (0.9, 1.0, "sit")]
    (tmp_path / "task.json").write_text(json.dumps(CVAT_JSON))
    assert _only(tmp_path / "task.json", fps=10)[1].segments == [(1.0, 3.0, "run"), (0.4, 0.6, "sit")]
    with pytest.raises(DataError, match=r"video\.xml: CVAT counts frames: say how many a second"):
        read_labels(tmp_path / "video.xml")


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<annotations><track label="&b;"/></annotations>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<ANNOTATION_DOCUMENT>&a;</ANNOTATION_DOCUMENT>"""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", BOMB, "refused: the XML declares a document type or entities"),
        ("a.eaf", OUTSIDE, "refused: the XML declares a document type or entities"),
        ("a.xml", "<annotations>", "not valid XML"),
        ("a.eaf", "<html/>", "expected <ANNOTATION_DOCUMENT> of ELAN"),
        ("a.xml", "<html/>", "expected <annotations> of CVAT"),
        ("a.txt", "hello world\n", "line 1: 'hello world', expected start, end and label between tabs"),
        ("a.txt", "1.0\tsoon\tx\n", "line 1: 'soon' is no time in seconds"),
        ("a.txt", "2.0\t1.0\tx\n", "segment .2, 1. of 'x': expected 0 <= start <= end"),
        ("a.csv", "recording,start,end\nr,0,1\n", "no column label; expected recording, start, end, label"),
        ("a.csv", "recording,start,end,label\nr,0,1,\n", "line 2: the label is missing"),
        ("a.csv", "recording,start,end,label\nr,0,nan,x\n", "segment .0, nan. of 'x'"),
        ("a.TextGrid", "no grid", "not a TextGrid that can be read"),
        ("a.json", "{}", "expected a project of VIA 3"),
        (
            "a.json",
            '{"file": {}, "view": {}, "metadata": {"1": {"vid": 3, "z": [1, 2], "av": {"1": "x"}}}}',
            "not a VIA",
        ),
        ("a.txt", "", "holds no segments"),
        ("a.srt", "", r"labels are read from \.csv, \.eaf"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        convert_labels(tmp_path / name, tmp_path / "out.json", fps=10)
    assert "\n" not in str(error.value) and not (tmp_path / "out.json").exists()


def test_the_command_converts_a_file_or_a_folder(tmp_path, capsys):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "r1.txt").write_text("0\t1\tsit\n")
    (folder / "r2.txt").write_text("0\t1\tstand\n2\t3\tsit\n")
    out = tmp_path / "annotations.json"
    assert main(["convert", str(folder), str(out), "--to", "annotations", "--subset", "test"]) == 0
    assert "3 segments in 2 recordings" in capsys.readouterr().out
    annotations = load_annotations(out)
    assert annotations.classes == ("sit", "stand") and len(annotations.subset("test")) == 2
    (folder / "r2.csv").write_text("recording,start,end,label\nr2,0,1,sit\n")
    assert main(["convert", str(folder), str(out), "--to", "annotations"]) == 2
    assert "recording 'r2' has labels in another file already" in capsys.readouterr().err

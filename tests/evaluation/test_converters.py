"""Result files of other programs, pickles that try something, and ground truth for DETAD."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from tzn.data.annotations import load_annotations
from tzn.detections import read_predictions, write_predictions
from tzn.errors import DataError
from tzn.evaluation.converters import COLUMNS, convert_predictions, read_any_predictions, write_detad_ground_truth
from tzn.evaluation.scoring import score_files

CLASSES = ("walk", "sit", "fly")


def result(**changes):
    """An ActionFormer result of three detections, out of order, in two recordings."""
    content = {
        "video-id": ["b", "a", "b"], "t-start": np.array([1, 2, 3], np.float32), "t-end": np.array([2.5, 4, 5]),
        "label": np.array([2, 0, 1]), "score": np.array([0.25, 0.5, 0.75], np.float32),
    }  # fmt: skip
    return content | changes


@pytest.fixture
def saved(tmp_path):
    def _saved(content, protocol=4, name="eval_results.pkl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return _saved


def as_lists(found):
    return {n: (d.segments.tolist(), d.scores.tolist(), d.labels.tolist()) for n, d in found.items()}


EXPECTED = {"b": ([[3, 5], [1, 2.5]], [0.75, 0.25], [1, 2]), "a": ([[2, 4]], [0.5], [0])}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as-saved"),
        pytest.param({"video-id": np.array(["b", "a", "b"])}, id="text-array"),
        pytest.param({"video-id": np.array(["b", "a", "b"], dtype=object)}, id="object-array"),
        pytest.param({"label": [2, 0, 1], "score": [0.25, 0.5, 0.75]}, id="lists"),
        pytest.param({"score": [np.float32(0.25), np.float64(0.5), np.float16(0.75)]}, id="numpy-scalars"),
        pytest.param({"t-start": np.array([1, 2, 3], ">i2"), "label": np.array([2, 0, 1], "u1")}, id="other-types"),
        pytest.param({"t-end": np.array([[2.5, 9], [4, 9], [5, 9]], order="F")[:, 0].copy()}, id="copied-column"),
    ],
)
def test_actionformer_results_of_every_pickle_protocol(saved, protocol, changes):
    found, unknown = read_any_predictions(saved(result(**changes), protocol), CLASSES)
    assert as_lists(found) == EXPECTED
    assert list(found) == ["b", "a"]
    assert found["b"].scores.dtype == found["b"].segments.dtype == np.float64
    assert unknown == 0


def test_pickles_of_older_numpy_name_other_modules(saved):
    raw = pickle.dumps(result(), 2)
    assert b"numpy._core.multiarray" in raw or b"numpy.core.multiarray" in raw
    old = saved(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert as_lists(read_any_predictions(old, CLASSES)[0]) == EXPECTED


def test_equal_scores_stay_in_file_order(saved):
    n = 50
    content = {"video-id": ["a"] * n, "t-start": [float(i) for i in range(n)], "t-end": [float(n)] * n,
               "label": [0] * n, "score": [0.5] * n}  # fmt: skip
    found, _ = read_any_predictions(saved(content, name="r.pickle"), CLASSES)
    assert found["a"].segments[:, 0].tolist() == list(range(n))


@pytest.mark.parametrize("empty", [[], np.zeros(0)], ids=["lists", "arrays"])
def test_no_detections_are_no_error(saved, empty):
    assert read_any_predictions(saved(dict.fromkeys(COLUMNS, empty)), CLASSES) == ({}, 0)


def test_sparse_label_ids_are_mapped_and_others_counted(saved):
    found, unknown = read_any_predictions(saved(result(label=[299, 7, 8])), CLASSES, label_ids=[3, 7, 299])
    assert as_lists(found) == {"b": ([[1, 2.5]], [0.25], [2]), "a": ([[2, 4]], [0.5], [1])}
    assert unknown == 1
    with pytest.raises(ValueError, match="2 distinct label_ids for 3 classes"):
        read_any_predictions(saved(result()), CLASSES, label_ids=[3, 3, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([1, 2], r"expected an ActionFormer result with \['video-id', .* found a list", id="a-list"),
        pytest.param({"video-id": []}, r"found \['video-id'\]", id="columns-missing"),
        pytest.param(result(score=[0.1]), "different lengths: .*'score': 1", id="lengths"),
        pytest.param(result(score=["a", "b", "c"]), "'score' is <U1 of shape .* of numbers", id="text-scores"),
        pytest.param(result(score=np.zeros((3, 1))), r"'score' is float64 of shape \[3, 1\]", id="a-matrix"),
        pytest.param(result(score=[1, [2], 3]), "'score' is a list, expected", id="ragged"),
        pytest.param(result(score=0.5), "'score' is a float, expected", id="a-number"),
        pytest.param(result(label=[0.0, 1.0, 2.0]), "'label' is float64 .* whole numbers", id="float-labels"),
        pytest.param(result(**{"video-id": [1, 2, 3]}), "'video-id' is int64 .* of names", id="numbered-videos"),
        pytest.param(
            result(score=[0.1, np.nan, 0]), "row 1: 'score' is not a finite number: {'video-id': 'a'", id="NaN"
        ),
        pytest.param(result(**{"t-end": [9, 9, np.inf]}), "row 2: 't-end' is not a finite number", id="infinite"),
        pytest.param(result(**{"t-start": [1, 2, 6]}), "row 2: segment ends before it starts", id="inverted"),
        pytest.param(result(label=[0, 3, 1]), "label id 3 with 3 classes; expected ids from 0 to 2", id="label-3"),
        pytest.param(result(label=[0, -1, 1]), "label id -1 with 3 classes", id="label-minus-1"),
    ],
)
def test_results_that_do_not_fit_are_refused_with_the_place(saved, content, message):
    path = saved(content)
    with pytest.raises(DataError, match=message) as caught:
        read_any_predictions(path, CLASSES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_bad_rows_of_a_result_are_left_out_and_counted_when_asked(saved):
    path = saved(result(**{"t-start": [1, 9, 3], "score": [0.25, 0.5, np.nan]}))
    bad = Counter()
    found, unknown = read_any_predictions(path, CLASSES, bad=bad)
    assert as_lists(found) == {"b": ([[1, 2.5]], [0.25], [2])}
    assert (unknown, bad) == (0, {"'score' is not a finite number": 1, "segment ends before it starts": 1})


def test_conversion_keeps_the_order_of_the_file(saved, tmp_path):
    truth = tmp_path / "truth.json"
    rows = [{"segment": [0, 1], "label": label, "label_id": i} for i, label in enumerate(CLASSES)]
    truth.write_text(json.dumps({"database": {"a": {"subset": "test", "annotations": rows}}}))
    assert convert_predictions(saved(result()), tmp_path / "out.json", truth) == (3, 0)
    written = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["score"] for row in written["b"]] == [0.25, 0.75]


class Runs:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_never_runs(saved, tmp_path):
    trap = tmp_path / "ran"
    path = saved(result(label=Runs(trap)))
    with pytest.raises(DataError, match=r"refused to load (posix|nt|os)\.mkdir"):
        read_any_predictions(path, CLASSES)
    assert not trap.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(result(label=torch.arange(3)), id="torch-tensor"),
        pytest.param(result(label=Fraction(1, 2)), id="other-class"),
        pytest.param(result(label=eval), id="eval"),
        pytest.param(result(label=np.array([Runs("nowhere")] * 3, dtype=object)), id="hidden-in-an-object-array"),
        pytest.param(result(label=np.zeros(3, [("a", "f8")])), id="structured-array"),
        pytest.param(result(label=np.zeros(3, "M8[s]")), id="dates"),
        pytest.param(result(label=np.ma.zeros(3)), id="masked-array"),
        pytest.param(b"", id="empty-file"),
        pytest.param(b"not a pickle", id="no-pickle"),
        pytest.param(pickle.dumps(result())[:-20], id="truncated"),
        pytest.param(b"cnumpy\nndarray\n(I3\ntR.", id="array-called-directly"),
        pytest.param(b"cnumpy\nndarray\nNb.", id="state-for-a-class"),
        pytest.param(b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.", id="other-codec"),
        pytest.param(b"c_codecs\nencode\nN}Va\nVb\ns\x86b.", id="attributes-for-a-stand-in"),
        pytest.param(b"cnumpy\ndtype\n(VO8\ntR.", id="dtype-alone"),
        pytest.param(b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRVx\ntR.", id="object-scalar"),
        pytest.param(b"P1\n.", id="persistent-id"),
    ],
)
def test_whatever_else_a_pickle_holds_is_an_error_of_one_line(saved, content):
    path = saved(content)
    with pytest.raises(DataError) as caught:
        read_any_predictions(path, CLASSES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_json_is_read_by_the_usual_reader(tmp_path):
    rows = [{"segment": [1.0, 2.0], "label": "sit", "score": 0.5}, {"segment": [0, 1], "label": "run", "score": 0.4}]
    path = tmp_path / "result_detection.json"  # as OpenTAD calls it
    path.write_text(json.dumps({"results": {"a": rows}}))
    found, unknown = read_any_predictions(path, CLASSES)
    assert as_lists(found) == {"a": ([[1, 2]], [0.5], [1])}
    assert unknown == 1


@pytest.mark.parametrize("name", ["nowhere.pkl", "nowhere.json"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match=name):
        read_any_predictions(tmp_path / name, CLASSES)


def test_an_unknown_suffix_lists_the_known_ones(saved):
    with pytest.raises(DataError, match=r"from \.json, \.json\.gz, \.pkl or \.pickle, not from '\.csv'"):
        read_any_predictions(saved(b"x", name="a.csv"), CLASSES)


def test_real_detections_score_the_same_as_a_pickle(shared, saved, tmp_path):
    truth = shared / "data/thumos14/annotations.json"
    classes = load_annotations(truth, strict=False).classes
    original, _ = read_predictions(shared / "data/predictions/a2net_action_detection_af38.json.gz", classes)
    columns = {
        "video-id": [name for name, d in original.items() for _ in d.labels],
        "t-start": np.concatenate([d.segments[:, 0] for d in original.values()]),
        "t-end": np.concatenate([d.segments[:, 1] for d in original.values()]),
        "label": np.concatenate([d.labels for d in original.values()]),
        "score": np.concatenate([d.scores for d in original.values()]),
    }
    found, unknown = read_any_predictions(saved(columns), classes)
    assert unknown == 0
    assert as_lists(found) == as_lists({name: d for name, d in original.items() if len(d.labels)})
    write_predictions(tmp_path / "p.json", found, classes)
    again = score_files(tmp_path / "p.json", truth, split="test", tiou=(0.5,))
    direct = score_files(
        shared / "data/predictions/a2net_action_detection_af38.json.gz", truth, split="test", tiou=(0.5,)
    )
    assert again["mAP"] == direct["mAP"]


# DETAD


def test_detad_ground_truth_has_the_published_values_of_thumos14(shared, tmp_path):
    # Two recordings as they stand in DETAD's data/thumos14_test_extra_characteristics.json.
    annotations = load_annotations(shared / "data/thumos14/annotations.json", strict=False)
    path = tmp_path / "detad/truth.json"
    write_detad_ground_truth(annotations, path)
    content = json.loads(path.read_text())
    database = content["database"]
    assert {"taxonomy", "version", "database"} <= set(content)
    (only,) = database["video_test_0000292"]["annotations"]
    assert only == {
        "all-segments": None, "num-instances": 1, "agreement": None, "label": "SoccerPenalty", "length": 1.5,
        "coverage": pytest.approx(0.01971971708779218, rel=1e-4), "context-distance": None, "segment": [65.9, 67.4],
        "context-size": None,
    }  # fmt: skip
    several = database["video_test_0000004"]["annotations"]
    assert {a["label"] for a in several} == {"CricketBowling", "CricketShot"}
    assert [a["num-instances"] for a in several] == [7] * 7
    again = load_annotations(path)
    for name, recording in annotations.recordings.items():
        np.testing.assert_array_equal(again.recordings[name].segments, recording.segments)
        assert again.recordings[name].duration == recording.duration


def test_detad_ground_truth_needs_durations(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"segment": [0, 1], "label": "walk"}]
    path.write_text(json.dumps({"database": {"a": {"subset": "test", "annotations": rows}}}))
    with pytest.raises(DataError, match="recording 'a' has no duration"):
        write_detad_ground_truth(load_annotations(path), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()

"""Scores of a whole-video classifier: reading them, and fusing them with detections."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import defaultdict

import numpy as np
import pytest

from tzn.data.annotations import load_annotations
from tzn.detections import Detections, read_predictions
from tzn.errors import DataError
from tzn.inference.external_scores import fuse_video_scores, load_video_scores

CLASSES = ("walk", "sit", "fly")


def found(segments, scores, std=None):
    return Detections(
        np.array(segments, float).reshape(-1, 2), np.array(scores, float), np.zeros(len(scores), int), std
    )


def grouped(columns):
    """Columns of one table as rows by video, in order of first appearance."""
    rows = defaultdict(list)
    for video, *row in zip(*(columns[k] for k in ("video-id", "t-start", "t-end", "score", "label")), strict=True):
        rows[video].append(row)
    return {video: np.array(values, float) for video, values in rows.items()}


@pytest.mark.parametrize("case", [0, 1], ids=["2-classes-200-segments", "3-classes-5-segments"])
def test_fusion_equals_the_original(goldens, case):
    case = json.loads((goldens / "full/extras.json").read_text())["score_fusion"][case]
    detections = {
        video: Detections(rows[:, :2], rows[:, 2], rows[:, 3].astype(int))
        for video, rows in grouped(case["inputs"]).items()
    }
    scores = {video: np.array(row) for video, row in case["cls_scores"].items()}
    fused = fuse_video_scores(detections, scores, case["topk"], case["num_pred"])
    expected = grouped(case["outputs"])
    assert list(fused) == list(expected)
    for video, rows in expected.items():
        assert fused[video].labels.tolist() == rows[:, 3].tolist()
        np.testing.assert_array_equal(fused[video].segments, rows[:, :2])
        np.testing.assert_allclose(fused[video].scores, rows[:, 2], rtol=1e-12)


def test_fusion_by_hand_with_standard_errors():
    std = np.array([[0.1, 0.2], [np.nan, 0.4], [0.5, 0.6]])
    detections = {"a": found([[0, 1], [2, 3], [4, 5]], [0.04, 0.25, 0.16], std), "b": found([], [])}
    fused = fuse_video_scores(detections, {"a": np.array([0.36, 0.0, 1.0])}, top_classes=2, top_segments=2)
    assert fused["a"].labels.tolist() == [2, 2, 0, 0]
    assert fused["a"].segments.tolist() == [[2, 3], [4, 5]] * 2
    assert fused["a"].scores == pytest.approx([0.5, 0.4, 0.3, 0.24])
    np.testing.assert_array_equal(fused["a"].std, np.tile(std[1:], (2, 1)))
    assert len(fused["b"].scores) == 0


def test_of_equal_scores_the_earlier_class_and_detection_go_first():
    detections = {"a": found([[i, i + 1] for i in range(40)], [0.5] * 40)}
    fused = fuse_video_scores(detections, {"a": np.full(30, 0.5)}, top_classes=2, top_segments=3)["a"]
    assert fused.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert fused.segments[:, 0].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_recording_without_video_scores_is_named():
    with pytest.raises(DataError, match=r"for 1 of 2 recordings with detections, e\.g\. 'b'; .* 1 videos, e\.g\. 'a'"):
        fuse_video_scores({"a": found([[0, 1]], [1]), "b": found([[0, 1]], [1])}, {"a": np.ones(3)})


@pytest.mark.parametrize(
    ("detection", "video", "message"),
    [(-0.1, 1.0, "'a': a detection score"), (0.1, -1.0, "'a': a video score"), (0.1, np.nan, "'a': a video score")],
)
def test_scores_without_a_square_root_are_refused(detection, video, message):
    with pytest.raises(DataError, match=message):
        fuse_video_scores({"a": found([[0, 1]], [detection])}, {"a": np.array([1.0, video])})


@pytest.mark.parametrize("settings", [{"top_classes": 0}, {"top_segments": 0}], ids=["no-class", "no-segment"])
def test_nothing_to_keep_is_an_error(settings):
    with pytest.raises(ValueError, match="expected at least 1"):
        fuse_video_scores({}, {}, **settings)


# Reading


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"v": [0.1, 0.2, 0.3]}, id="lists"),
        pytest.param({"results": {"v": [0.1, 0.2, 0.3]}}, id="results"),
        pytest.param({"version": "1", "scores": {"v": {"fly": 0.3, "sit": 0.2, "walk": 0.1}}}, id="scores-by-name"),
        pytest.param({"class": ["fly", "walk", "run", "sit"], "results": {"v": [0.3, 0.1, 9, 0.2]}}, id="other-order"),
        pytest.param({"class": ["fly", "walk", "sit"], "v": [0.3, 0.1, 0.2]}, id="class-beside-videos"),
        pytest.param({"results": {"v": {"walk": 0.1, "sit": 0.2, "fly": 0.3, "run": 1}}}, id="extra-class"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_every_layout_gives_the_same_scores(tmp_path, content, suffix):
    path = tmp_path / f"scores{suffix}"
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    scores = load_video_scores(path, CLASSES)
    assert list(scores) == ["v"]
    assert scores["v"].dtype == np.float64
    assert scores["v"].tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"v": np.array([0.1, 0.2, 0.3])}, id="arrays"),
        pytest.param({"results": {"v": np.array([[0.1, 0.2, 0.3]])}}, id="rows-of-one"),
        pytest.param({"class": np.array(["fly", "walk", "sit"]), "v": [0.3, 0.1, np.float64(0.2)]}, id="with-classes"),
    ],
)
def test_pickles_of_actionformer_are_read(tmp_path, content, protocol):
    path = tmp_path / "scores.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert load_video_scores(path, CLASSES)["v"].tolist() == [0.1, 0.2, 0.3]


def test_code_in_a_pickle_of_scores_is_refused(tmp_path):
    path = tmp_path / "scores.pkl"
    path.write_bytes(pickle.dumps({"v": print}))
    with pytest.raises(DataError, match=r"scores\.pkl: refused to load builtins\.print"):
        load_video_scores(path, CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([], "found a list; expected", id="a-list"),
        pytest.param({}, "no videos", id="empty"),
        pytest.param({"results": {}}, "no videos", id="empty-results"),
        pytest.param({"v": [1, 2]}, "video 'v': 2 scores for 3 classes", id="short-row"),
        pytest.param({"v": [1, 2, -1]}, "video 'v': score of class 'fly' is -1", id="negative"),
        pytest.param({"v": [1, 2, float("nan")]}, "class 'fly' is nan", id="NaN"),
        pytest.param({"v": [1, 2, float("inf")]}, "class 'fly' is inf", id="infinite"),
        pytest.param({"v": [1, 2, "3"]}, "class 'fly' is '3'", id="text"),
        pytest.param({"v": [1, 2, True]}, "class 'fly' is True", id="bool"),
        pytest.param({"v": 3}, "video 'v': found 3, not a list", id="number-for-a-row"),
        pytest.param({"v": {"walk": 1, "sit": 1}}, r"no score for class 'fly' \(1 of 3", id="class-missing"),
        pytest.param({"class": ["walk", "sit"], "v": [1, 2]}, "no score for class 'fly'", id="class-not-in-the-list"),
        pytest.param({"class": ["walk", "walk", "fly"], "v": [1, 2, 3]}, "distinct names", id="class-twice"),
        pytest.param({"class": "walk", "v": [1, 2, 3]}, "distinct names", id="class-is-text"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_place(tmp_path, content, message):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        load_video_scores(path, CLASSES)
    assert str(path) in str(caught.value)


def test_the_untrimmednet_scores_of_thumos14_fuse_with_real_detections(shared):
    classes = load_annotations(shared / "data/thumos14/annotations.json", strict=False).classes
    scores = load_video_scores(shared / "data/predictions/thumos14_untrimmednet_video_scores.json.gz", classes)
    assert scores["video_test_0000004"][classes.index("CricketBowling")] == 0.407345
    detections, _ = read_predictions(shared / "data/predictions/turn_union_no_nms.json.gz", classes)
    detections = {name: d for name, d in detections.items() if name in scores}
    fused = fuse_video_scores(detections, scores)
    assert sum(len(d.scores) for d in fused.values()) == sum(2 * min(len(d.scores), 200) for d in detections.values())
    best = fused["video_test_0000004"].labels[0]
    assert best == scores["video_test_0000004"].argmax()

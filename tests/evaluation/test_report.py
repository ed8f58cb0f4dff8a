"""The report of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tzn.config import EvaluationConfig
from tzn.data.annotations import Recording
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError
from tzn.evaluation.report import evaluate

CLASSES = ("walk", "sit", "stand")
CONFIG = EvaluationConfig(tiou=(0.5, 0.7), top_k=(1, 5), length_buckets=(2.0,), short_classes=("sit", "stand"))


def recording(name, segments, labels):
    return Recording(name, "test", 100.0, 10.0, np.array(segments, float).reshape(-1, 2), np.array(labels, int))


def found(segments, scores, labels, std=None):
    return Detections(np.array(segments, float), np.array(scores, float), np.array(labels, int), std)


RECORDINGS = [recording("a", [[0, 10], [20, 21]], [0, 1]), recording("b", [[5, 15]], [0])]
DETECTIONS = {"a": found([[0, 10], [20, 21.5]], [0.9, 0.8], [0, 1], np.array([[0.1, 0.1], [0.2, 1.0]]))}


@pytest.fixture(scope="module")
def report():
    return evaluate(RECORDINGS, DETECTIONS, CLASSES, CONFIG)


def test_the_parts_of_a_report_by_hand(report):
    d = report.to_dict()
    assert d["classes"] == ["walk", "sit"]
    assert d["segments"] == [2, 1]
    assert d["ap"] == [[0.5, 1.0], [0.5, 0.0]]  # [20, 21.5] reaches 2/3 of [20, 21]
    assert d["mAP"] == [0.75, 0.25]
    assert d["average_mAP"] == 0.5
    assert d["recall"] == [[0.75, 0.75], [0.25, 0.25]]
    assert d["short_mAP"] == {"0.5": 1.0, "0.7": 0.0}
    assert d["length_buckets"] == {
        "<= 2 s": {"segments": 1, "mAP": [1.0, 0.0]},
        "> 2 s": {"segments": 2, "mAP": [0.5, 0.5]},
    }
    assert d["boundary_error"]["overall"]["matched"] == 2
    assert d["boundary_error"]["overall"]["end"]["bias"] == pytest.approx(0.25)
    assert d["boundary_error"]["calibration"] == {"count": 4, "within_1_std": 1.0, "within_2_std": 1.0}


def test_the_dictionary_survives_json_unchanged(report):
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_the_table_has_every_part_in_per_cent_and_seconds(report):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.table().splitlines()]
    by_name = {line[0]: line[1:] for line in lines}
    assert by_name["%"] == ["@0.5", "@0.7", "average"]
    assert by_name["mAP (3 segments)"] == ["75.0", "25.0", "50.0"]
    assert by_name["mAP, short classes"] == ["100.0", "0.0", "50.0"]
    assert by_name["mAP, length <= 2 s (1)"] == ["100.0", "0.0", "50.0"]
    assert by_name["Recall@1x"] == ["75.0", "25.0", "50.0"]
    assert by_name["AP walk (2)"] == ["50.0", "50.0", "50.0"]
    assert by_name["all"] == ["2 of 3", "+0.000", "0.000", "0.000", "+0.250", "0.250", "0.450"]
    assert by_name["errors within 1 and 2 reported standard errors: 100 % and 100 % (Gaussian: 68 % and 95 %)"] == []


def test_every_row_of_a_table_has_the_width_of_its_header(report):
    for table in report.table().split("\n\n")[:2]:
        assert len({len(line) for line in table.splitlines()}) == 1


def test_a_class_that_nothing_matched_has_dashes():
    table = evaluate(RECORDINGS, {}, CLASSES, CONFIG).table()
    assert "| walk              | 0 of 2  | -          | -" in table


def test_without_short_classes_or_buckets_their_rows_are_absent():
    config = EvaluationConfig(tiou=(0.5,), length_buckets=(), short_classes=())
    report = evaluate(RECORDINGS, DETECTIONS, CLASSES, config)
    assert "short_mAP" not in report.to_dict()
    assert "short" not in report.table()
    assert "length" not in report.table()


def test_an_unknown_short_class_names_the_nearest():
    with pytest.raises(ConfigError, match=r"evaluation\.short_classes: 'stnad' is not a class; did you mean 'stand'"):
        evaluate(RECORDINGS, {}, CLASSES, EvaluationConfig(short_classes=("stnad",)))


def test_buckets_that_do_not_ascend_name_the_setting():
    with pytest.raises(ConfigError, match=r"evaluation\.length_buckets"):
        evaluate(RECORDINGS, {}, CLASSES, EvaluationConfig(length_buckets=(4.0, 2.0)))


def test_recordings_without_any_segment_are_an_error():
    with pytest.raises(DataError, match="no ground truth"):
        evaluate([recording("a", [], [])], DETECTIONS, CLASSES, CONFIG)

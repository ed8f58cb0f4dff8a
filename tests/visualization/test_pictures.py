from __future__ import annotations

import json

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.visualization.pictures import TRACE_KEYS, plot_files


@pytest.fixture
def files(tmp_path):
    database = {
        name: {
            "subset": "test", "duration": 50.0, "fps": 10.0,
            "annotations": [
                {"segment": [5.0, 15.0], "label": "walk", "label_id": 0},
                {"segment": [20.0, 30.0], "label": "run", "label_id": 1},
            ],
        }
        for name in ("first", "group/second")
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    rows = [{"segment": [5.2, 14.5], "label": "walk", "score": 0.9, "segment_std": [0.1, None]}]
    (tmp_path / "predictions.json").write_text(json.dumps({"results": {"first": rows}}))
    (tmp_path / "traces").mkdir()
    time = np.arange(100) / 2
    arrays = {k: np.array([5.0]) if "crossings" in k else time - 25 for k in TRACE_KEYS}
    np.savez(tmp_path / "traces" / "first.npz", **(arrays | {"time": time, "depth": time / 50}))
    return tmp_path


def test_timelines_of_recordings(files):
    written = plot_files(
        files / "annotations.json", files / "out", predictions=files / "predictions.json", traces=files / "traces",
        recordings=["first"], window="0,25",
    )  # fmt: skip
    assert [p.name for p in written] == ["first.png"]
    written = plot_files(files / "annotations.json", files / "out", recordings=["group/second"], suffix="svg")
    assert [p.name for p in written] == ["group_second.svg"]
    assert sorted(p.name for p in (files / "out").iterdir()) == ["first.png", "group_second.svg"]


def test_plots_of_a_split(files):
    with_predictions = plot_files(files / "annotations.json", files / "a", predictions=files / "predictions.json")
    assert {p.name for p in with_predictions} == {"precision_recall.png", "boundary_errors.png", "lengths.png"}
    assert {p.name for p in plot_files(files / "annotations.json", files / "b")} == {"lengths.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recordings": ["frist"]}, "no recording 'frist'; did you mean 'first'"),
        ({"recordings": ["first"], "window": "9,3"}, "--window 9,3: expected START,END"),
        ({"recordings": ["group/second"], "traces": "traces"}, "no such trace"),
        ({"recordings": ["first"], "traces": "damaged"}, "not a trace file"),
        ({"split": "training"}, "no recording in subset 'training'"),
        ({"predictions": "foreign.json"}, "none of its classes"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_clear_errors(files, arguments, message):
    (files / "damaged").mkdir()
    (files / "damaged" / "first.npz").write_bytes(b"PK\x03\x04 cut off")
    foreign = [{"segment": [0, 1], "label": "swim", "score": 0.5}]
    (files / "foreign.json").write_text(json.dumps({"results": {"first": foreign}}))
    for name in ("traces", "predictions"):
        if name in arguments:
            arguments = arguments | {name: files / arguments[name]}
    with pytest.raises(DataError, match=message):
        list(plot_files(files / "annotations.json", files / "out", **arguments))
    assert not (files / "out").exists()


@pytest.mark.parametrize("label", ["$x_{$", "$\\frac{1}$", "100 % $"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_labels_are_drawn_as_they_are_written(files, label, suffix):
    for name in ("annotations.json", "predictions.json"):
        content = (files / name).read_text().replace('"walk"', json.dumps(label))
        (files / name).write_text(content)
    given = {"predictions": files / "predictions.json", "suffix": suffix}
    list(plot_files(files / "annotations.json", files / "out", recordings=["first"], **given))
    list(plot_files(files / "annotations.json", files / "out", **given))
    assert len(list((files / "out").iterdir())) == 4

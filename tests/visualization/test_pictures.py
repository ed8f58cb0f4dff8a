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


def test_what_is_left_out_and_what_is_drawn_is_said(files):
    truth, found = files / "annotations.json", files / "predictions.json"
    database = json.loads(truth.read_text())
    database["database"]["first"]["annotations"] += [
        {"segment": [9, 8], "label": "run", "label_id": 1}, {"segment": [49, 60], "label": "run", "label_id": 1},
    ]  # fmt: skip
    truth.write_text(json.dumps(database))
    content = json.loads(found.read_text())
    content["results"]["first"].append({"segment": [1, 2], "label": "swim", "score": 0.5})
    found.write_text(json.dumps(content))
    said = []
    list(plot_files(truth, files / "out", predictions=found, say=said.append))
    assert said == [
        f"warning: {truth}: 1 segments left out: end before start",
        f"warning: {truth}: 1 segments clipped: ends after the recording",
        f"warning: {found}: 1 detections left out: their class is not in {truth}",
        "detections drawn: all (no threshold in the predictions; choose with --min-score)",
    ]


@pytest.mark.parametrize(
    ("threshold", "min_score", "drawn"), [(None, None, 2), (0.5, None, 1), (0.5, 0.95, 0), (None, 0.1, 2)]
)
def test_pictures_show_the_confident_detections(files, monkeypatch, threshold, min_score, drawn):
    rows = [{"segment": [s, s + 5], "label": "walk", "score": x} for s, x in ((5, 0.9), (30, 0.2))]
    (files / "p.json").write_text(json.dumps({"score_threshold": threshold, "results": {"first": rows}}))
    figures, said = [], []
    monkeypatch.setattr("tzn.visualization.timeline.save_figure", lambda figure, path: figures.append(figure) or path)
    list(
        plot_files(
            files / "annotations.json", files / "out", predictions=files / "p.json", recordings=["first"],
            min_score=min_score, say=said.append,
        )
    )  # fmt: skip
    bars = [patch for patch in figures[0].axes[0].patches if patch.get_label().startswith("detected")]
    assert len(bars) == drawn
    assert said == ([] if min_score is not None else [
        "detections drawn: all (no threshold in the predictions; choose with --min-score)" if threshold is None
        else "detections drawn: confident ones (threshold of the model: 0.5; choose with --min-score)"
    ])  # fmt: skip


def test_dollars_in_names_are_no_formulas(files):
    odd = "$x_{$"
    text = (files / "annotations.json").read_text().replace('"walk"', f'"{odd}"').replace('"first"', f'"{odd} 1"')
    (files / "annotations.json").write_text(text.replace('"test"', f'"{odd}"'))
    text = (files / "predictions.json").read_text().replace('"walk"', f'"{odd}"').replace('"first"', f'"{odd} 1"')
    (files / "predictions.json").write_text(text)
    arguments = {"predictions": files / "predictions.json", "split": odd}
    assert len(list(plot_files(files / "annotations.json", files / "out", **arguments))) == 3
    assert len(list(plot_files(files / "annotations.json", files / "out", recordings=[f"{odd} 1"], **arguments))) == 1

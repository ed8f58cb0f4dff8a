from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from tzn.data.annotations import Recording
from tzn.detections import Detections
from tzn.errors import DataError, TznError
from tzn.visualization.timeline import draw_timeline, plot_timeline

CLASSES = ("walk", "sit", "run", "jump")


def recording(segments, labels, duration=100.0) -> Recording:
    return Recording(
        "rec", "test", duration, 50.0, np.array(segments, float).reshape(-1, 2), np.array(labels, np.int64)
    )


def detections(segments, scores, labels, std=None) -> Detections:
    std = None if std is None else np.array(std, float)
    return Detections(
        np.array(segments, float).reshape(-1, 2), np.array(scores, float), np.array(labels, np.int64), std
    )


def trace(steps=200, step=0.5, distances=True) -> dict[str, np.ndarray]:
    time = (np.arange(steps) + 0.5) * step
    distance = np.clip(time - 30, -4, 4) if distances else np.full(steps, np.nan)
    crossings = np.array([30.0]) if distances else np.zeros(0)
    arrays = {"time": time, "depth": np.linspace(0, 1, steps)}
    for side in ("start", "end"):
        arrays |= {
            f"{side}_distance": distance,
            f"{side}_scale": 0.1 * np.abs(distance),
            f"{side}_crossings": crossings,
        }
    return arrays


def bars(figure, kind: str) -> list[Rectangle]:
    return [p for axis in figure.axes for p in axis.patches if str(p.get_label()).startswith(kind)]


def row_names(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


TRUTH = recording([[10, 30], [30, 45], [60, 90]], [0, 1, 0])
FOUND = detections(
    [[11, 29], [31, 44], [61, 88], [5, 6]], [0.9, 0.8, 0.5, 0.1], [0, 1, 0, 2],
    [[0.5, 0.4], [np.nan, 0.3], [np.nan, np.nan], [1, 1]],
)  # fmt: skip


def test_one_bar_per_segment_and_per_strong_detection():
    figure = draw_timeline(TRUTH, CLASSES, FOUND, min_score=0.2)
    assert [(b.get_x(), b.get_width()) for b in bars(figure, "annotated")] == [(10, 20), (30, 15), (60, 30)]
    assert sorted(b.get_x() for b in bars(figure, "detected")) == [11, 31, 61]  # not the one of score 0.1
    assert row_names(figure) == ["walk", "sit"]


def test_stronger_detections_are_more_opaque():
    by_start = {b.get_x(): b.get_alpha() for b in bars(draw_timeline(TRUTH, CLASSES, FOUND), "detected")}
    assert by_start[11] > by_start[31] > by_start[61]


def test_whiskers_reach_one_standard_error_and_unknown_ones_are_left_out():
    figure = draw_timeline(TRUTH, CLASSES, FOUND, min_score=0.2)
    (whiskers,) = [c for c in figure.axes[0].collections if c.get_label() == "whiskers"]
    spans = sorted((line[0][0], line[1][0]) for line in whiskers.get_segments())
    np.testing.assert_allclose(spans, [(10.5, 11.5), (28.6, 29.4), (43.7, 44.3)])


def test_covered_detections_of_the_same_class_are_left_out():
    found = detections([[10, 30], [12, 29], [12, 29]], [0.9, 0.8, 0.7], [0, 0, 1])
    assert [b.get_x() for b in bars(draw_timeline(TRUTH, CLASSES, found), "detected")] == [12, 10]


def test_classes_that_are_not_annotated_share_a_row_and_are_named_beside_the_bar():
    figure = draw_timeline(TRUTH, CLASSES, detections([[50, 55], [70, 72]], [0.9, 0.9], [2, 3]))
    assert row_names(figure) == ["walk", "sit", "other classes"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"run", "jump"}


def test_without_annotations_every_detected_class_has_a_row():
    figure = draw_timeline(recording([], []), CLASSES, detections([[50, 55], [70, 72]], [0.9, 0.9], [3, 2]))
    assert row_names(figure) == ["run", "jump"]


def test_a_window_shows_only_what_overlaps_it():
    figure = draw_timeline(TRUTH, CLASSES, FOUND, window=(25, 50))
    assert len(bars(figure, "annotated")) == 2
    assert len(bars(figure, "detected")) == 2
    assert figure.axes[0].get_xlim() == (25, 50)


def test_short_segments_of_long_recordings_wrap_into_strips_that_show_all_of_them():
    starts = np.arange(0, 600, 3.0) + 0.5
    long = recording(np.stack([starts, starts + 1.5], 1), np.zeros(200), 600.0)
    figure = draw_timeline(long, CLASSES)
    limits = [axis.get_xlim() for axis in figure.axes]
    assert len(limits) >= 3
    assert all(limits[i][1] == limits[i + 1][0] for i in range(len(limits) - 1))
    assert {round(b.get_x(), 6) for b in bars(figure, "annotated")} == set(starts.tolist())
    assert figure.get_size_inches()[1] < 15


def test_trace_panels_mark_crossings_and_show_depth():
    figure = draw_timeline(TRUTH, CLASSES, FOUND, trace())
    distance, depth = figure.axes[1], figure.axes[2]
    marks = {line.get_label(): list(line.get_xdata()) for line in distance.lines}
    assert marks["start found"] == [30.0] and marks["end found"] == [30.0]
    np.testing.assert_allclose(depth.images[0].get_array(), trace()["depth"][None])
    assert depth.images[0].get_extent() == [0, 100, 0, 1]


def test_distances_that_were_not_computed_have_no_panel():
    figure = draw_timeline(TRUTH, CLASSES, FOUND, trace(distances=False))
    assert len(figure.axes) == 3  # segments, depth, colour bar
    assert not figure.axes[1].lines and figure.axes[1].images


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        (recording([], []), None),
        (recording([], [], None), detections([], [], [])),
        (TRUTH, detections([], [], [], np.zeros((0, 2)))),
        (TRUTH, detections([[5, 5]], [1.0], [0], [[0, 0]])),
    ],
    ids=["nothing-at-all", "no-duration-no-detections", "empty-standard-errors", "zero-length"],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_written_whatever_there_is(tmp_path, truth, found, suffix):
    path = plot_timeline(tmp_path / "new" / f"picture.{suffix}", truth, CLASSES, found, trace(steps=1))
    content = path.read_bytes()
    if suffix == "png":
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
        assert int.from_bytes(content[16:20], "big") == 1600
    else:
        assert ElementTree.fromstring(content).tag.endswith("svg")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_suffixes_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match=r"picture\.jpg: pictures are written as \.png or \.svg"):
        plot_timeline(tmp_path / "picture.jpg", TRUTH, CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_window_that_ends_before_it_starts_is_refused():
    with pytest.raises(DataError, match=r"window \(5, 5\)"):
        draw_timeline(TRUTH, CLASSES, window=(5, 5))


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(TznError, match=r"pip install 'tzn\[plot\]'"):
        draw_timeline(TRUTH, CLASSES)


def test_the_covered_are_left_out_as_the_plain_rule_says():
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 60, 120).round(1)
    found = detections(
        np.stack([start, start + rng.uniform(0, 12, 120).round(1)], 1), rng.random(120), rng.integers(0, 3, 120)
    )
    kept = []
    for i in np.argsort(-found.scores, kind="stable"):
        (start, end), label = found.segments[i], found.labels[i]
        rivals = [found.segments[j] for j in kept if found.labels[j] == label]
        if not any(min(end, e) - max(start, s) > 0.5 * min(end - start, e - s) for s, e in rivals):
            kept.append(i)
    shown = bars(draw_timeline(recording([], [], 80.0), CLASSES, found), "detected")
    assert 0 < len(kept) < 120
    assert {int(bar.get_label().split()[1]) for bar in shown} == set(range(len(kept)))
    assert sorted(bar.get_x() for bar in shown) == sorted(found.segments[kept, 0].tolist())

from __future__ import annotations

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.visualization import dataset_plots
from tzn.visualization.dataset_plots import plot_boundary_errors, plot_lengths, plot_precision_recall


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved, so that tests can look at what is in them."""
    figures = []
    save = dataset_plots.save_figure
    monkeypatch.setattr(dataset_plots, "save_figure", lambda f, path: figures.append(f) or save(f, path))
    return figures


def _legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_area_under_the_drawn_line_is_the_ap_in_the_legend(tmp_path, drawn):
    curves = {"walk": (np.array([0.25, 0.5, 0.5]), np.array([1.0, 0.8, 0.4])), "run": (np.zeros(0), np.zeros(0))}
    path = plot_precision_recall(tmp_path / "pr.png", curves, title="a title")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    walk = figure.axes[0].lines[0]
    assert walk.get_drawstyle() == "steps-pre"
    x, y = walk.get_xdata(), walk.get_ydata()
    assert float(np.sum(np.diff(x) * y[1:])) == pytest.approx(0.25 * 1.0 + 0.25 * 0.8)
    assert _legend(figure) == ["walk  45.0", "run  0.0"]


def test_of_many_classes_only_best_and_worst_are_named(tmp_path, drawn):
    curves = {f"c{i:02d}": (np.array([1.0]), np.array([i / 100])) for i in range(50)}
    plot_precision_recall(tmp_path / "pr.svg", curves)
    names = _legend(drawn[0])
    assert len(drawn[0].axes[0].lines) == 50
    assert names[0] == "c49  49.0" and names[-1] == "c00  0.0" and len(names) == 12


def test_boundary_errors_are_all_counted_tails_included(tmp_path, drawn):
    errors = np.stack([np.linspace(-1, 1, 200), np.append(np.zeros(199), 50.0)], 1)
    plot_boundary_errors(tmp_path / "errors.png", errors)
    filled = [p for p in drawn[0].axes[0].patches if p.get_fill()]
    assert len(filled) == 2
    assert _legend(drawn[0]) == ["start, median |error| 0.503 s", "end, median |error| 0 s"]
    assert drawn[0].axes[0].get_ylim()[1] >= 199


def test_lengths_are_shares_and_segments_without_length_are_left_out(tmp_path, drawn):
    plot_lengths(tmp_path / "lengths.png", {"annotated": [1.0, 2.0, 4.0, 0.0], "detected": np.array([2.0])})
    axis = drawn[0].axes[0]
    assert _legend(drawn[0]) == ["annotated (3)", "detected (1)"]
    assert axis.get_xscale() == "log"
    assert [max(p.get_xy()[:, 1]) for p in axis.patches] == pytest.approx([1 / 3, 1.0])


@pytest.mark.parametrize(
    ("plot", "nothing"),
    [(plot_precision_recall, {}), (plot_boundary_errors, np.zeros((0, 2))), (plot_lengths, {"annotated": []})],
    ids=["precision-recall", "boundary-errors", "lengths"],
)
def test_nothing_to_show_is_a_picture_all_the_same(tmp_path, plot, nothing):
    assert plot(tmp_path / "picture.png", nothing).stat().st_size > 1000
    with pytest.raises(DataError, match=r"\.png or \.svg"):
        plot(tmp_path / "picture.pdf", nothing)

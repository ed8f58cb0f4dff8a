"""``tzn plot``: pictures from annotation, prediction and trace files."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tzn.data.annotations import Annotations, load_annotations
from tzn.detections import Detections, read_predictions
from tzn.errors import DataError
from tzn.evaluation.boundary_error import boundary_errors
from tzn.evaluation.detection_map import GroundTruth, precision_recall
from tzn.visualization.dataset_plots import plot_boundary_errors, plot_lengths, plot_precision_recall
from tzn.visualization.timeline import plot_timeline

PR_TIOU = 0.5
TRACE_KEYS = ("time", "depth", *(f"{s}_{k}" for s in ("start", "end") for k in ("distance", "scale", "crossings")))
NOTHING = Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))


def plot_files(
    annotations: Path,
    out: Path,
    *,
    predictions: Path | None = None,
    traces: Path | None = None,
    recordings: Sequence[str] | None = None,
    split: str = "test",
    window: str | None = None,
    suffix: str = "png",
    min_score: float | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Path]:
    """Draw timelines of ``recordings``, or without any the plots of a whole split; yields the files written.

    Args:
        min_score: least score of the detections that timelines and lengths show; None: the threshold in the predictions
            file, or all where it has none. Precision and errors are of all detections.
        say: gets a line for everything that was left out, repaired or chosen for the user.

    Raises:
        DataError: unknown recording or split, bad window, unreadable files.
    """
    truth = load_annotations(annotations, strict=False)
    found, unknown_labels = read_predictions(predictions, truth.classes) if predictions else ({}, 0)
    for line in truth.repairs():
        say(f"warning: {annotations}: {line}")
    if unknown_labels and any(len(d) for d in found.values()):
        say(f"warning: {predictions}: {unknown_labels} detections left out: their class is not in {annotations}")
    if unknown_labels and not any(len(d.scores) for d in found.values()):
        raise DataError(f"{predictions}: none of its classes is in {annotations}")
    if min_score is None and (first := next(iter(found.values()), None)) is not None:
        min_score = first.score_threshold
        why = "no threshold in the predictions" if min_score is None else f"threshold of the model: {min_score:g}"
        say(f"detections drawn: {'all' if min_score is None else 'confident ones'} ({why}; choose with --min-score)")
    if not recordings:
        yield from _split_plots(truth, found, split, out, suffix, min_score)
        return
    span = parse_window(window) if window else None
    unknown = [name for name in recordings if name not in truth.recordings]
    if unknown:
        near = difflib.get_close_matches(unknown[0], truth.recordings, n=1) or list(truth.recordings)[:1]
        raise DataError(f"{annotations}: no recording {unknown[0]!r}; did you mean {near[0]!r}?")
    for name in recordings:
        trace = load_trace(traces / f"{name}.npz") if traces else None
        detections = found.get(name, NOTHING) if predictions else None
        file = out / f"{name.replace('/', '_')}.{suffix}"
        yield plot_timeline(
            file, truth.recordings[name], truth.classes, detections, trace, window=span, min_score=min_score
        )


def parse_window(text: str) -> tuple[float, float]:
    """``start,end`` in seconds."""
    try:
        start, end = (float(x) for x in text.split(","))
    except ValueError:
        start = end = 0.0
    if not end > start:
        raise DataError(f"--window {text}: expected START,END in seconds, END after START")
    return start, end


def load_trace(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a trace file."""
    if not path.is_file():
        raise DataError(f"{path}: no such trace; 'tzn predict --traces FOLDER' writes them")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a trace file ({error})") from None
    missing = [key for key in TRACE_KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path}: not a trace file (it has no {missing[0]!r})")
    return arrays


def _split_plots(
    truth: Annotations, found: dict[str, Detections], split: str, out: Path, suffix: str, min_score: float | None
) -> Iterator[Path]:
    chosen = {r.id: GroundTruth(r.segments, r.labels) for r in truth.subset(split)}
    lengths = {"annotated": np.concatenate([t.segments[:, 1] - t.segments[:, 0] for t in chosen.values()])}
    mine = {name: d for name, d in found.items() if name in chosen}
    if mine:
        strong = [d.filter(score=min_score).segments for d in mine.values()]
        name = "detected" if min_score is None else f"detected, score >= {min_score:g}"
        lengths[name] = np.concatenate([s[:, 1] - s[:, 0] for s in strong])
        curves = precision_recall(chosen, mine, truth.classes, PR_TIOU)
        yield plot_precision_recall(
            out / f"precision_recall.{suffix}", curves, title=f"precision and recall at tIoU {PR_TIOU:g}, {split}"
        )
        errors = boundary_errors(chosen, mine, len(truth.classes))
        yield plot_boundary_errors(out / f"boundary_errors.{suffix}", errors.error)
    yield plot_lengths(out / f"lengths.{suffix}", lengths)

"""Result files of other programs in, ground truth for DETAD out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import Annotations, Recording, class_label_ids, load_annotations
from tzn.detections import Detections, read_predictions, write_predictions
from tzn.errors import DataError
from tzn.files import atomic_write
from tzn.plain_pickle import PickledArray, load_plain_pickle

COLUMNS = ("video-id", "t-start", "t-end", "label", "score")


def read_any_predictions(
    path: str | Path,
    classes: Sequence[str],
    *,
    label_ids: Sequence[int] | None = None,
    bad: Counter[str] | None = None,
    in_file_order: bool = False,
) -> tuple[dict[str, Detections], int]:
    """Read detections of any of the usual programs; the suffix names the format.

    ``.json``, ``.json.gz``: ActivityNet's schema, which OpenTAD, ActionFormer forks and the DETAD tools share:
    ``{"results": {id: [{"segment": [start, end], "label": name, "score"}]}}``.

    ``.pkl``, ``.pickle``: what ActionFormer's evaluation saves, an object with the columns ``video-id``, ``t-start``,
    ``t-end`` (seconds), ``label`` (label id) and ``score`` as lists or NumPy arrays of equal length. The file is
    decoded without running anything from it: only numbers, text, containers and plain arrays are accepted.

    Args:
        path: the file.
        classes: names in label order (C of them).
        label_ids: the ``label_id`` of every class, for pickles whose ids are not 0 … C - 1 (EPIC-Kitchens nouns).
        bad, in_file_order: see :func:`tzn.detections.read_predictions`.

    Returns:
        detections by recording id in file order, by falling score (equal scores in file order), and how many were left
        out because their class is not among ``classes``.

    Raises:
        DataError: unknown suffix, unreadable or malformed file, a pickle that holds anything else, values that are not
            finite and a segment that ends before it starts (unless ``bad`` counts them), a label id outside 0 … C - 1
            without ``label_ids``.
        ValueError: ``label_ids`` that do not fit ``classes``.
    """
    path = Path(path)
    if label_ids is not None and len({*label_ids}) != len(classes):
        raise ValueError(f"{len({*label_ids})} distinct label_ids for {len(classes)} classes")
    if path.name.endswith((".json", ".json.gz")):
        return read_predictions(path, classes, bad=bad, in_file_order=in_file_order)
    if path.suffix not in (".pkl", ".pickle"):
        raise DataError(f"{path}: predictions are read from .json, .json.gz, .pkl or .pickle, not from {path.suffix!r}")
    columns = _columns(load_plain_pickle(path), path, bad)
    labels = _class_index(columns["label"], len(classes), label_ids, path)
    return _by_recording(columns, labels, classes, in_file_order), int((labels < 0).sum())


def convert_predictions(
    source: str | Path, target: str | Path, annotations: str | Path, *, bad: Counter[str] | None = None
) -> tuple[int, int]:
    """Write the detections of :func:`read_any_predictions` as ActivityNet JSON or in another format.

    They keep the order of the file, which decides between equal scores where NumPy's sort does.

    Args:
        annotations: names the classes; its ``label_id`` are what the labels of a pickle refer to, where it has them.
        bad: see :func:`tzn.detections.read_predictions`.

    Returns:
        detections written, detections left out because their class is unknown.

    Raises:
        DataError: see :func:`read_any_predictions` and :func:`tzn.data.annotations.load_annotations`.
    """
    classes = load_annotations(annotations, strict=False).classes
    ids = class_label_ids(annotations)
    label_ids = [ids[name] for name in classes] if ids else None
    found, unknown = read_any_predictions(source, classes, label_ids=label_ids, bad=bad, in_file_order=True)
    write_predictions(target, found, classes)
    return sum(len(d) for d in found.values()), unknown


def write_detad_ground_truth(annotations: Annotations, path: str | Path) -> None:
    """Write ground truth with the attributes that the DETAD tools group by.

    The layout is that of the files in DETAD's ``data`` folder: ActivityNet's schema, and per segment ``length``
    (seconds), ``coverage`` (length over the duration of the recording), ``num-instances`` (segments in the recording,
    all classes together), and null for ``context-size``, ``context-distance``, ``agreement`` and ``all-segments``,
    which need several annotators (null in DETAD's THUMOS14 file too). Durations and frame rates are kept.

    Source: Alwassel, Caba Heilbron, Escorcia, Ghanem, "Diagnosing Error in Temporal Action Detectors", ECCV 2018.

    Raises:
        DataError: a recording with segments but without duration, so that coverage is unknown.
    """
    database = {name: _detad_entry(r, annotations.classes) for name, r in annotations.recordings.items()}
    entries = ",\n ".join(f"{json.dumps(name)}: {json.dumps(e, allow_nan=False)}" for name, e in database.items())
    with atomic_write(path) as file:
        file.write('{"version": "tzn 1", "taxonomy": [], "database": {\n ' + entries + "\n}}\n")


def _detad_entry(recording: Recording, classes: Sequence[str]) -> dict[str, Any]:
    if recording.duration is None and len(recording.labels):
        raise DataError(f"recording {recording.id!r} has no duration, which DETAD's coverage is a share of")
    segments = [
        {
            "segment": [start, end], "label": classes[label], "length": end - start,
            "coverage": (end - start) / float(recording.duration or math.nan), "num-instances": len(recording.labels),
            "context-size": None, "context-distance": None, "agreement": None, "all-segments": None,
        }
        for (start, end), label in zip(recording.segments.tolist(), recording.labels.tolist(), strict=True)
    ]  # fmt: skip
    known = {"duration": recording.duration, "fps": recording.fps}
    return {
        "subset": recording.subset,
        **{key: value for key, value in known.items() if value is not None},
        "annotations": segments,
    }


# Columns of an ActionFormer result


def _columns(content: Any, path: Path, bad: Counter[str] | None) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not all(key in content for key in COLUMNS):
        there = sorted(map(str, content))[:8] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path}: expected an ActionFormer result with {list(COLUMNS)}, found {there}")
    columns = {key: _column(content[key], key, path) for key in COLUMNS}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: columns of different lengths: {lengths}")
    good = np.ones(len(columns["score"]), dtype=bool)
    for key in ("t-start", "t-end", "score"):
        good &= _good_rows(np.isfinite(columns[key]), f"{key!r} is not a finite number", columns, path, bad, good)
    in_order = ~(columns["t-end"] < columns["t-start"])
    good &= _good_rows(in_order, "segment ends before it starts", columns, path, bad, good)
    return {key: column[good] for key, column in columns.items()}


def _column(values: Any, key: str, path: Path) -> np.ndarray:
    """``[N]`` text for the ids, int64 for labels, float64 for the rest."""
    values = values.value if isinstance(values, PickledArray) else values
    try:
        array = np.asarray(values) if isinstance(values, (list, tuple, np.ndarray)) else np.zeros(())
    except ValueError:  # lists of unequal lengths
        array = np.zeros((), dtype=object)
    kinds = {"video-id": "U", "label": "iu"}.get(key, "fiu")
    if array.size == 0 and array.ndim == 1:
        kinds += array.dtype.kind  # an empty list has no type to be wrong
    if array.ndim != 1 or array.dtype.kind not in kinds:
        found = f"{array.dtype} of shape {list(array.shape)}" if array.ndim else f"a {type(values).__name__}"
        what = {"U": "names", "iu": "whole numbers"}.get(kinds, "numbers")
        raise DataError(f"{path}: column {key!r} is {found}, expected a list or array of {what}")
    return array.astype({"video-id": np.str_, "label": np.int64}.get(key, np.float64))


def _good_rows(
    good: np.ndarray, problem: str, columns: Mapping[str, np.ndarray], path: Path, bad: Counter[str] | None,
    considered: np.ndarray,
) -> np.ndarray:  # fmt: skip
    if not good.all() and bad is None:
        i = int(np.argmin(good))
        row = {key: columns[key][i].item() for key in COLUMNS}
        raise DataError(f"{path}: row {i}: {problem}: {row}")
    if bad is not None and (count := int((considered & ~good).sum())):
        bad[problem] += count
    return good


def _class_index(labels: np.ndarray, num_classes: int, label_ids: Sequence[int] | None, path: Path) -> np.ndarray:
    """``[N]`` index into the classes, -1 for a label id that stands for none of them."""
    if label_ids is None:
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if outside.size:
            raise DataError(
                f"{path}: label id {outside[0]} with {num_classes} classes; expected ids from 0 to {num_classes - 1}, "
                "or label_ids that name the id of every class"
            )
        return labels
    index = {int(number): i for i, number in enumerate(label_ids)}
    return np.array([index.get(number, -1) for number in labels.tolist()], dtype=np.int64)


def _by_recording(
    columns: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], in_file_order: bool
) -> dict[str, Detections]:
    names, first, number = np.unique(columns["video-id"], return_index=True, return_inverse=True)
    # Stable: equal scores stay in file order.
    order = np.argsort(number, kind="stable") if in_file_order else np.lexsort((-columns["score"], number))
    segments = np.stack([columns["t-start"], columns["t-end"]], axis=1)
    bounds = np.searchsorted(number[order], np.arange(len(names) + 1))
    found = {}
    for i in np.argsort(first):
        rows = order[bounds[i] : bounds[i + 1]]
        rows = rows[labels[rows] >= 0]
        found[str(names[i])] = Detections(
            segments[rows], columns["score"][rows], labels[rows], classes=tuple(classes), recording=str(names[i])
        )
    return found

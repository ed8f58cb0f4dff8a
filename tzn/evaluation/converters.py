"""Result files of other programs in, ground truth for DETAD out."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import Annotations, Recording, class_label_ids, load_annotations
from tzn.detections import Detections, read_predictions, write_predictions
from tzn.errors import DataError
from tzn.files import atomic_write

COLUMNS = ("video-id", "t-start", "t-end", "label", "score")


def read_any_predictions(
    path: str | Path, classes: Sequence[str], *, label_ids: Sequence[int] | None = None
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

    Returns:
        detections by recording id in file order, by falling score (equal scores in file order), and how many were left
        out because their class is not among ``classes``.

    Raises:
        DataError: unknown suffix, unreadable or malformed file, a pickle that holds anything else, values that are not
            finite, a segment that ends before it starts, a label id outside 0 … C - 1 without ``label_ids``.
        ValueError: ``label_ids`` that do not fit ``classes``.
    """
    path = Path(path)
    if label_ids is not None and len({*label_ids}) != len(classes):
        raise ValueError(f"{len({*label_ids})} distinct label_ids for {len(classes)} classes")
    if path.name.endswith((".json", ".json.gz")):
        return read_predictions(path, classes)
    if path.suffix not in (".pkl", ".pickle"):
        raise DataError(f"{path}: predictions are read from .json, .json.gz, .pkl or .pickle, not from {path.suffix!r}")
    columns = _columns(_load_plain(path), path)
    labels = _class_index(columns["label"], len(classes), label_ids, path)
    return _by_recording(columns, labels), int((labels < 0).sum())


def convert_predictions(source: str | Path, target: str | Path, annotations: str | Path) -> tuple[int, int]:
    """Write the detections of :func:`read_any_predictions` as ActivityNet JSON (or ``.csv``).

    Args:
        annotations: names the classes; its ``label_id`` are what the labels of a pickle refer to, where it has them.

    Returns:
        detections written, detections left out because their class is unknown.

    Raises:
        DataError: see :func:`read_any_predictions` and :func:`tzn.data.annotations.load_annotations`.
    """
    classes = load_annotations(annotations, strict=False).classes
    ids = class_label_ids(annotations)
    found, unknown = read_any_predictions(source, classes, label_ids=[ids[name] for name in classes] if ids else None)
    write_predictions(target, found, classes)
    return sum(len(d.scores) for d in found.values()), unknown


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


def _columns(content: Any, path: Path) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not all(key in content for key in COLUMNS):
        there = sorted(map(str, content))[:8] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path}: expected an ActionFormer result with {list(COLUMNS)}, found {there}")
    columns = {key: _column(content[key], key, path) for key in COLUMNS}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: columns of different lengths: {lengths}")
    start, end = columns["t-start"], columns["t-end"]
    for key in ("t-start", "t-end", "score"):
        _check_rows(np.isfinite(columns[key]), f"{key!r} is not a finite number", columns, path)
    _check_rows(start <= end, "segment ends before it starts", columns, path)
    return columns


def _column(values: Any, key: str, path: Path) -> np.ndarray:
    """``[N]`` text for the ids, int64 for labels, float64 for the rest."""
    values = values.value if isinstance(values, _Array) else values
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


def _check_rows(good: np.ndarray, problem: str, columns: Mapping[str, np.ndarray], path: Path) -> None:
    if not good.all():
        i = int(np.argmin(good))
        row = {key: columns[key][i].item() for key in COLUMNS}
        raise DataError(f"{path}: row {i}: {problem}: {row}")


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


def _by_recording(columns: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, Detections]:
    names, first, number = np.unique(columns["video-id"], return_index=True, return_inverse=True)
    order = np.lexsort((-columns["score"], number))  # stable: equal scores stay in file order
    segments = np.stack([columns["t-start"], columns["t-end"]], axis=1)
    bounds = np.searchsorted(number[order], np.arange(len(names) + 1))
    found = {}
    for i in np.argsort(first):
        rows = order[bounds[i] : bounds[i + 1]]
        rows = rows[labels[rows] >= 0]
        found[str(names[i])] = Detections(segments[rows], columns["score"][rows], labels[rows])
    return found


# Pickles without their power: every name in the file leads to one of the inert stand-ins below or to an error.


def _load_plain(path: Path) -> Any:
    """Content of a pickle that holds only numbers, text, containers and NumPy values; arrays come as :class:`_Array`.

    Raises:
        DataError: missing or damaged file, or anything else in it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return _PlainUnpickler(io.BytesIO(raw)).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can make the decoder raise anything
        raise DataError(f"{path}: not a pickle of plain values ({type(error).__name__}: {error})") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise DataError(f"refused to load {module}.{name}: only numbers, text, lists and NumPy arrays are accepted")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refused to load a reference to something outside the file")


class _StandIn:
    """Base of the stand-ins: none takes state unless it says so. Classes, because functions could be given attributes."""

    def __setstate__(self, state: Any) -> None:
        raise DataError("refused to load something that NumPy did not write")


class _Ndarray(_StandIn):
    """Stand-in for the name ``numpy.ndarray``, which arrays only mention."""

    def __init__(self, *_: Any) -> None:
        raise DataError("refused to load an array that NumPy did not write")


class _Dtype(_StandIn):
    """Stand-in for ``numpy.dtype``: plain numbers, text, or objects kept as a list."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[biufSUO]\d{1,6}", code)):
            raise DataError(f"refused to load an array of type {code!r:.40}: only plain numbers and text are accepted")
        self.dtype = np.dtype(code[0] if code[0] == "O" else code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_StandIn):
    """Stand-in for an array: ``value`` is the array, or a list where it holds objects."""

    value: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _decoded(raw, dtype, shape, "F" if is_fortran else "C")


class _Buffer(_Array):
    """Stand-in for arrays of pickle protocol 5, which come whole."""

    def __init__(self, raw: Any, dtype: _Dtype, shape: Any, order: str) -> None:
        self.value = _decoded(raw, dtype, shape, order)


class _Scalar(_StandIn):
    """Stand-in for NumPy scalars, which become plain Python values."""

    def __new__(cls, dtype: _Dtype, raw: bytes) -> Any:
        return _decoded(raw, dtype, (1,), "C")[0].item()


class _Latin1(_StandIn):
    """Stand-in for ``codecs.encode``, with which pickle protocols 0 to 2 write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise DataError(f"refused to encode text as {encoding!r:.40}")
        return text.encode("latin1")


def _decoded(raw: Any, dtype: _Dtype, shape: Any, order: str) -> Any:
    if isinstance(raw, list) and dtype.dtype.kind == "O":
        return raw
    if dtype.dtype.kind == "O" or not isinstance(raw, (bytes, bytearray)):
        raise DataError("refused to load an array whose values are not plain bytes")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Latin1,
}

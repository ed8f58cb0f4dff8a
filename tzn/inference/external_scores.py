"""Scores of a whole-video classifier, and detections re-scored with them (usual on ActivityNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import read_json
from tzn.detections import Detections
from tzn.errors import DataError
from tzn.plain_pickle import PickledArray, load_plain_pickle

EXPECTED = 'expected {"results": {video: [scores]}} with optional "class": [names], or {video: [scores]}'


def load_video_scores(path: str | Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Read a ``.json``, ``.json.gz`` or ``.pkl`` file of classifier scores, one row per video.

    Rows may lie under ``"results"`` or ``"scores"`` or at the top. A row is a list of scores, ordered like the file's
    ``"class"`` list where there is one and else like ``classes``, or an object ``{class name: score}``. Classes of the
    file that are not in ``classes`` are left out: detections could not name them. In pickles, as ActionFormer has them,
    rows are lists or NumPy arrays; nothing from the file is run.

    Args:
        path: the file.
        classes: names in label order (C of them).

    Returns:
        ``[C]`` float64 scores >= 0 by video id, in file order.

    Raises:
        DataError: unreadable file, another schema, a class without a score, a row of another length, a score that is
            not a finite number >= 0. Names the video.
    """
    path = Path(path)
    rows, names = _rows(path)
    order = tuple(classes) if names is None else names
    return {video: _row(row, order, classes, f"{path}: video {video!r}") for video, row in rows.items()}


def video_score_classes(path: str | Path) -> tuple[str, ...]:
    """The class names that a file of video scores lists, in its order.

    Raises:
        DataError: unreadable file, another schema, no list of classes.
    """
    names = _rows(Path(path))[1]
    if names is None:
        raise DataError(
            f'{path}: has no "class" list, so its scores cannot name detections of recordings without labels'
        )
    return names


def fuse_video_scores(
    detections: Mapping[str, Detections],
    video_scores: Mapping[str, np.ndarray],
    top_classes: int = 2,
    top_segments: int = 200,
) -> dict[str, Detections]:
    """Give the best segments of each recording the classes that a whole-video classifier sees in it.

    Per recording: the ``top_segments`` best detections, whose own labels are discarded, are repeated for each of the
    ``top_classes`` best classes, with score ``sqrt(class score * detection score)``. Meant for detectors of one class
    ("an action"). Source: ActionFormer's fusion of external scores (Zhang, Wu, Li, ECCV 2022).

    Args:
        detections: by recording id.
        video_scores: ``[C]`` scores >= 0 by recording id, e.g. from :func:`load_video_scores`.
        top_classes: classes per recording; all C where there are fewer.
        top_segments: segments per recording.

    Returns:
        Detections by recording id, class by class from the best class on and inside a class by falling score. Of equal
        scores the earlier class and detection go first. Standard errors go with their segments.

    Raises:
        DataError: a recording with detections but without video scores, a negative score.
        ValueError: ``top_classes`` or ``top_segments`` below 1.
    """
    if top_classes < 1 or top_segments < 1:
        raise ValueError(f"top_classes = {top_classes}, top_segments = {top_segments}: expected at least 1")
    missing = [name for name, found in detections.items() if len(found.scores) and name not in video_scores]
    if missing:
        raise DataError(
            f"no video scores for {len(missing)} of {len(detections)} recordings with detections, e.g. {missing[0]!r}; "
            f"there are scores for {len(video_scores)} videos{_example(video_scores)}"
        )
    return {
        name: _fused(found, np.asarray(video_scores[name], np.float64), top_classes, top_segments, name)
        if len(found.scores)
        else found
        for name, found in detections.items()
    }


def _fused(found: Detections, scores: np.ndarray, top_classes: int, top_segments: int, name: str) -> Detections:
    for what, values in (("video score", scores), ("detection score", found.scores)):
        if values.ndim != 1 or not (values >= 0).all():
            raise DataError(f"recording {name!r}: a {what} is not a number >= 0, so its square root does not exist")
    best = np.argsort(-found.scores, kind="stable")[:top_segments]
    chosen = np.argsort(-scores, kind="stable")[:top_classes]
    again = np.tile(best, len(chosen))
    # The detections' threshold and classes are those of their own scores and labels, which end here.
    return Detections(
        found.segments[again],
        np.sqrt(scores[chosen][:, None] * found.scores[best]).ravel(),
        np.repeat(chosen, len(best)).astype(np.int64),
        None if found.std is None else found.std[again],
        recording=found.recording,
    )


def _rows(path: Path) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Rows by video id, and the class names of the file where it has them."""
    content = load_plain_pickle(path) if path.suffix in (".pkl", ".pickle") else read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: found a {type(content).__name__}; {EXPECTED}")
    names = _as_list(content.get("class"))
    if names is not None:
        if not (isinstance(names, list) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names)):
            raise DataError(f'{path}: "class" is not a list of distinct names')
        names = tuple(names)
    key = next((key for key in ("results", "scores") if isinstance(content.get(key), dict)), None)
    rows = content if key is None else content[key]
    # At the top level everything but the list of classes has to be a video.
    rows = {video: row for video, row in rows.items() if key is not None or video != "class"}
    if not rows:
        raise DataError(f"{path}: no videos; {EXPECTED}")
    return rows, names


def _row(row: Any, order: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """``[C]`` scores in the order of ``classes``."""
    row = _as_list(row)
    if isinstance(row, dict):
        by_name = row
    elif isinstance(row, list):
        if len(row) != len(order):
            raise DataError(f"{where}: {len(row)} scores for {len(order)} classes")
        by_name = dict(zip(order, row, strict=True))
    else:
        raise DataError(f"{where}: found {row!r:.80}, not a list of scores; {EXPECTED}")
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise DataError(f"{where}: no score for class {missing[0]!r} ({len(missing)} of {len(classes)} are missing)")
    values = [by_name[name] for name in classes]
    for name, value in zip(classes, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise DataError(f"{where}: score of class {name!r} is {value!r}, expected a finite number >= 0")
    return np.array(values, dtype=np.float64)


def _as_list(value: Any) -> Any:
    """A pickle's array ``[C]`` or ``[1, C]`` as a list; anything else as it is."""
    if isinstance(value, PickledArray):
        value = np.asarray(value.value)
        value = value.ravel() if value.ndim == 2 and len(value) == 1 else value
    return value.tolist() if isinstance(value, np.ndarray) else value


def _example(video_scores: Mapping[str, np.ndarray]) -> str:
    return f", e.g. {next(iter(video_scores))!r}" if video_scores else ""

"""Detections of a recording as an object to hold, and the files they are written to and read from."""

from __future__ import annotations

import dataclasses
import gzip
import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from tzn.calibration import Intervals, gaussian_factor
from tzn.data.annotations import Recording, read_json
from tzn.errors import DataError, TznError
from tzn.files import atomic_write
from tzn.formats import FORMATS, format_of, text_of

MAX_HTML_ROWS = 20


@dataclass(frozen=True)
class Segment:
    """One detection.

    Attributes:
        start, end: seconds.
        label: name of its class; the number as text where the names are not known.
        score: in [0, 1].
        start_std, end_std: standard errors of start and end in seconds, NaN where unknown.
        probability: calibrated chance that the detection is right; NaN: the model was not calibrated.
        intervals: calibrated widths; None: the model was not calibrated.

    >>> run = Segment(2.0, 5.5, "run", 0.9, start_std=0.1, end_std=0.2)
    >>> (low, high), _ = run.interval(0.95)
    >>> round(low, 2), round(high, 2)
    (1.8, 2.2)
    """

    start: float
    end: float
    label: str
    score: float
    start_std: float = math.nan
    end_std: float = math.nan
    probability: float = math.nan
    intervals: Intervals | None = None

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`interval` and ``probability`` come from errors measured on unseen groups (``tzn calibrate``)."""
        return self.intervals is not None

    def interval(
        self, coverage: float = 0.9, *, guarantee: bool = False
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of the start and of the end in seconds; NaN where the standard error is unknown.

        Args:
            coverage: share of true boundaries inside, in (0, 1). Calibrated: of a new group's, on average over groups. Else:
                if errors were Gaussian with these standard errors, which are usually too small.
            guarantee: the wider intervals of the hierarchical conformal rule (:mod:`tzn.calibration`); infinite where there
                were too few groups.

        Raises:
            ValueError: coverage out of range, a guarantee of a model that was not calibrated.
        """
        reach = _reach(self.intervals, coverage, guarantee)
        start, end = reach * self.start_std, reach * self.end_std
        return (self.start - start, self.start + start), (self.end - end, self.end + end)


@dataclass(frozen=True, eq=False)
class Detections(Sequence[Segment]):
    """Detections of one recording, by falling score: a sequence of :class:`Segment`, and its arrays.

    Attributes:
        segments: ``[N, 2]`` float64 (start, end) in seconds.
        scores: ``[N]`` float64 in [0, 1].
        labels: ``[N]`` int64, index into the classes.
        std: ``[N, 2]`` float64, standard errors of start and end in seconds, NaN where unknown; None: all unknown.
        classes: names in label order, or None where they are not known.
        recording: id of the recording, or None.
        score_threshold: score from which on the model that made them calls a detection confident; None: not known.
        probability: ``[N]`` float64, calibrated chance of each to be right; None: the model was not calibrated.
        intervals: calibrated widths, in standard errors; None: the model was not calibrated.

    >>> found = Detections(np.array([[2.0, 5.5], [7.0, 9.0]]), np.array([0.9, 0.4]), np.array([1, 0]), classes=("sit", "run"))
    >>> len(found), found[0].label, found[-1].end
    (2, 'run', 9.0)
    >>> [segment.start for segment in found.filter(score=0.5)]
    [2.0]
    >>> found.filter(labels="sit").scores
    array([0.4])
    """

    segments: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    std: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    recording: str | None = None
    score_threshold: float | None = None
    probability: np.ndarray | None = None
    intervals: Intervals | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray | Sequence[int]) -> Detections: ...
    def __getitem__(self, index: Any) -> Segment | Detections:
        """A segment; of a slice, a mask or a list of places, the detections there."""
        if isinstance(index, (int, np.integer)):
            start_std, end_std = (math.nan, math.nan) if self.std is None else self.std[index].tolist()
            start, end = self.segments[index].tolist()
            name = self.names[int(self.labels[index])]
            of_one = math.nan if self.probability is None else float(self.probability[index])
            return Segment(start, end, name, float(self.scores[index]), start_std, end_std, of_one, self.intervals)
        if not isinstance(index, slice):
            index = np.asarray(index, None if len(index) else np.int64)
        std = None if self.std is None else self.std[index]
        kept = self.segments[index], self.scores[index], self.labels[index]
        chance = None if self.probability is None else self.probability[index]
        return dataclasses.replace(self, segments=kept[0], scores=kept[1], labels=kept[2], std=std, probability=chance)

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`interval` and ``probability`` come from errors measured on unseen groups (``tzn calibrate``)."""
        return self.intervals is not None

    def interval(self, coverage: float = 0.9, *, guarantee: bool = False) -> np.ndarray:
        """``[N, 2, 2]`` (low, high) of every start and end in seconds, as :meth:`Segment.interval`.

        >>> one = Detections(np.array([[2.0, 5.5]]), np.array([0.9]), np.array([0]), np.array([[0.1, 0.2]]))
        >>> one.interval(0.95).round(2).tolist()
        [[[1.8, 2.2], [5.11, 5.89]]]
        """
        std = np.full(self.segments.shape, np.nan) if self.std is None else self.std
        reach = _reach(self.intervals, coverage, guarantee) * std
        return np.stack([self.segments - reach, self.segments + reach], axis=-1)

    def __iter__(self) -> Iterator[Segment]:
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> Sequence[str]:
        """Class names in label order; numbers where they are not known."""
        if self.classes is not None:
            return self.classes
        return [str(i) for i in range(int(np.max(self.labels, initial=-1)) + 1)]

    def filter(self, *, score: float | None = None, labels: str | Sequence[str] | None = None) -> Detections:
        """Those with a score of at least ``score`` and a class named in ``labels`` (None: all).

        Raises:
            DataError: a name that is no class.
        """
        keep = np.ones(len(self), dtype=bool) if score is None else self.scores >= score
        if labels is not None:
            wanted = [labels] if isinstance(labels, str) else list(labels)
            names = list(self.names)
            if unknown := [name for name in wanted if name not in names]:
                raise DataError(f"labels: no class {unknown[0]!r}; expected some of {', '.join(names[:8])}")
            keep = keep & np.isin(self.labels, [names.index(name) for name in wanted])
        return self[keep]

    def to_dataframe(self) -> Any:
        """A pandas table, one row a detection: start, end, label, score, start_std, end_std, after recording if known;
        of a calibrated model also probability.

        Raises:
            TznError: pandas is not installed.

        >>> one = Detections(np.array([[2.0, 5.5]]), np.array([0.9]), np.array([0]), classes=("run",), recording="a")
        >>> one.to_dataframe()[["recording", "start", "end", "label"]].values.tolist()
        [['a', 2.0, 5.5, 'run']]
        """
        try:
            import pandas
        except ImportError as error:
            raise TznError("to_dataframe needs the package pandas: pip install 'tzn[table]'") from error
        std = np.full((len(self), 2), np.nan) if self.std is None else self.std
        known = {} if self.recording is None else {"recording": self.recording}
        return pandas.DataFrame(
            {
                **{name: [value] * len(self) for name, value in known.items()},
                "start": self.segments[:, 0], "end": self.segments[:, 1],
                "label": [self.names[i] for i in self.labels.tolist()], "score": self.scores,
                "start_std": std[:, 0], "end_std": std[:, 1],
                **({} if self.probability is None else {"probability": self.probability}),
            }
        )  # fmt: skip

    def to_json(self, path: str | Path) -> None:
        """Write ActivityNet's JSON (:func:`write_predictions`); a suffix ``.gz`` compresses it."""
        self._write(path, "json")

    def to_csv(self, path: str | Path) -> None:
        """Write one detection a row."""
        self._write(path, "csv")

    def to_srt(self, path: str | Path) -> None:
        """Write subtitles "label score"."""
        self._write(path, "srt")

    def to_vtt(self, path: str | Path) -> None:
        """Write WebVTT subtitles "label score", for HTML's ``<track>``."""
        self._write(path, "vtt")

    def to_textgrid(self, path: str | Path) -> None:
        """Write a Praat TextGrid with a tier per class; overlapping detections of a class go to further tiers."""
        self._write(path, "textgrid")

    def to_audacity(self, path: str | Path) -> None:
        """Write an Audacity label track: start, end and label, separated by tabs."""
        self._write(path, "audacity")

    def _write(self, path: str | Path, fmt: str) -> None:
        write_predictions(path, {self.recording or Path(path).name.split(".")[0]: self}, fmt=fmt)

    def plot(self, path: str | Path | None = None, *, min_score: float | None = None) -> Any:
        """A matplotlib figure of the detections along time, written to ``path`` (``.png``, ``.svg``) if there is one.

        Args:
            min_score: least score drawn; None: ``score_threshold``, or all where that is not known.

        Raises:
            DataError: another suffix. TznError: matplotlib is not installed.
        """
        from tzn.visualization.style import save_figure
        from tzn.visualization.timeline import draw_timeline

        nothing = np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
        blank = Recording(self.recording or "", "", None, None, *nothing)
        figure = draw_timeline(blank, self.names, self, min_score=min_score)
        if path is not None:
            save_figure(figure, path)
        return figure

    def __repr__(self) -> str:
        of = "" if self.recording is None else f" of {self.recording!r}"
        return f"<{len(self)} detections{of}>"

    def _repr_html_(self) -> str:
        """A table for notebooks, the strongest detections first."""
        head = "".join(f"<th>{name}</th>" for name in ("start", "end", "label", "score", "± start", "± end"))
        body = []
        for i in range(min(len(self), MAX_HTML_ROWS)):
            s = self[i]
            numbers = [f"{s.start:.3f}", f"{s.end:.3f}", html.escape(s.label), f"{s.score:.3f}"]
            numbers += ["" if math.isnan(x) else f"{x:.3f}" for x in (s.start_std, s.end_std)]
            body.append("<tr>" + "".join(f"<td>{x}</td>" for x in numbers) + "</tr>")
        more = f"<p>and {len(self) - MAX_HTML_ROWS} more</p>" if len(self) > MAX_HTML_ROWS else ""
        title = html.escape(repr(self)[1:-1])
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{more}"


def _reach(intervals: Intervals | None, coverage: float, guarantee: bool) -> float:
    """Half width of an interval in standard errors."""
    if intervals is not None:
        return intervals.factor(coverage, guarantee=guarantee)
    if guarantee:
        raise ValueError("guarantee: these detections are of a model that was not calibrated; see 'tzn calibrate'")
    return gaussian_factor(coverage)


def write_predictions(
    path: str | Path,
    detections: Mapping[str, Detections],
    classes: Sequence[str] | None = None,
    *,
    fmt: str | None = None,
) -> None:
    """Write detections in a format of :data:`tzn.formats.FORMATS`.

    ``json`` (a path that ends in ``.gz`` is compressed): the ActivityNet schema plus ``segment_std``, one detection a
    line, numbers exact, so that reading gives the same detections; of a calibrated model also ``probability`` and
    ``segment_interval`` of 90 %. ``csv``: one detection a row, microseconds. Of one
    recording: ``srt`` and ``vtt`` (subtitles), ``textgrid`` (Praat) and ``audacity`` (label track).

    Args:
        path: file to write or replace; missing parent folders are made.
        detections: by recording id.
        classes: names in label order; None: the detections' own.
        fmt: the format; None: by the suffix.

    Raises:
        DataError: another suffix or format, or one for a single recording with more or fewer than one.
    """
    path = Path(path)
    fmt = fmt or format_of(path.name)
    if fmt is None:
        suffixes = ", ".join([".json.gz", *(known.suffix for known in FORMATS.values())])
        raise DataError(f"{path}: predictions are written as {suffixes}, not as {path.suffix!r}")
    try:
        text = text_of(detections, fmt, classes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if path.suffix == ".gz":
        # Without a name and a time stamp, the same detections give the same bytes.
        with atomic_write(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            packed.writelines(part.encode() for part in text)
        return
    with atomic_write(path) as file:
        file.writelines(text)


def write_folder(
    folder: str | Path, detections: Mapping[str, Detections], classes: Sequence[str] | None = None, *, fmt: str = "srt"
) -> None:
    """Write a file ``<recording id><suffix>`` per recording, see :func:`write_predictions`.

    Raises:
        DataError: a recording id that is no file name; nothing is written then. Unknown format.
    """
    for name in detections:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise DataError(f"recording id {name!r} cannot name a file in {folder}")
    for name, found in detections.items():
        write_predictions(Path(folder) / (name + FORMATS[fmt].suffix), {name: found}, classes, fmt=fmt)


def read_predictions(
    path: str | Path,
    classes: Sequence[str],
    *,
    bad: Counter[str] | None = None,
    in_file_order: bool = False,
) -> tuple[dict[str, Detections], int]:
    """Read an ActivityNet JSON file (``.json`` or ``.json.gz``).

    Args:
        path: ``{"results": {id: [{"segment": [start, end], "label", "score", "segment_std": optional}]}}``.
        classes: names in label order.
        bad: None: malformed detections are an error. A counter: they are left out, and counted there by what is wrong.
        in_file_order: leave detections as they come; for scoring that breaks ties by their order in the file.

    Returns:
        detections by recording id in file order, by falling score (equal scores in file order), and how many were left
        out because their label is not in ``classes``.

    Raises:
        DataError: unreadable file, recording id twice; unless ``bad`` counts them: missing key, segment not a pair of
            finite numbers or with end < start, score not finite, negative standard error. Names the recording and the
            detection.
    """
    path = Path(path)
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise DataError(f'{path}: expected an object with "results": {{id: [{{"segment", "label", "score"}}]}}')
    threshold = content.get("score_threshold")
    if threshold is not None and not _is_number(threshold):
        raise DataError(f'{path}: "score_threshold" is {_shortened(threshold)}, expected a score')
    intervals = None
    if content.get("intervals") is not None:
        try:
            intervals = Intervals.from_dict(content["intervals"])
        except ValueError as error:
            raise DataError(f'{path}: "intervals": {error}') from None
    index = {label: i for i, label in enumerate(classes)}
    found, unknown = {}, 0
    for name, rows in results.items():
        where = f"{path}: recording {name!r}"
        if not isinstance(rows, list):
            raise DataError(f"{where}: expected a list of detections, not {type(rows).__name__}")
        every = _parsed(rows, index, where, bad)
        known = every.labels >= 0
        unknown += int((~known).sum())
        order = np.flatnonzero(known)
        if not in_file_order:
            order = order[np.argsort(-every.scores[order], kind="stable")]
        known_threshold = None if threshold is None else float(threshold)
        found[name] = dataclasses.replace(
            every[order], classes=tuple(classes), recording=name, score_threshold=known_threshold, intervals=intervals
        )
    return found, unknown


def _parsed(rows: list[Any], index: Mapping[str, int], where: str, bad: Counter[str] | None) -> Detections:
    """Detections in the order of ``rows``; label -1 where it is not in ``index``."""
    every = _arrays(rows, index)
    if every is None and bad is not None:
        problems = [next(_problems(row), None) for row in rows]
        bad.update(problem for problem in problems if problem)
        every = _arrays([row for row, problem in zip(rows, problems, strict=True) if problem is None], index)
    if every is None:
        raise _fault(rows, where)
    return every


def _arrays(rows: list[Any], index: Mapping[str, int]) -> Detections | None:
    """Detections of ``rows``, or None where one of them is not as it should be."""
    try:
        segments = np.array([row["segment"] for row in rows]).reshape(-1, 2) if rows else np.zeros((0, 2))
        scores = np.array([row["score"] for row in rows]) if rows else np.zeros(0)
        labels = np.array([index.get(str(row["label"]), -1) for row in rows], dtype=np.int64)
        std = None
        if any("segment_std" in row for row in rows):
            std = np.array([row.get("segment_std") or (None, None) for row in rows], dtype=np.float64)
        chance = None
        if rows and all("probability" in row for row in rows):
            chance = np.array([row["probability"] for row in rows])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    numbers = segments.dtype.kind in "if" and scores.dtype.kind in "if" and segments.shape == (scores.size, 2)
    if (
        not numbers
        or scores.ndim != 1
        or not (np.isfinite(segments).all() and np.isfinite(scores).all())
        or (segments[:, 1] < segments[:, 0]).any()
        or (std is not None and (std.shape != segments.shape or (std < 0).any() or np.isinf(std).any()))
        or (chance is not None and (chance.dtype.kind not in "if" or not ((chance >= 0) & (chance <= 1)).all()))
    ):
        return None
    chance = None if chance is None else chance.astype(np.float64)
    return Detections(segments.astype(np.float64), scores.astype(np.float64), labels, std, probability=chance)


def _fault(rows: list[Any], where: str) -> DataError:
    """The first thing wrong with ``rows``."""
    for i, row in enumerate(rows):
        if problem := next(_problems(row), None):
            return DataError(f"{where}, detection {i}: {problem}: {_shortened(row)}")
    return DataError(f"{where}: detections are not {{segment, label, score}} objects of plain numbers")


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield "expected an object"
        return
    for key in ("segment", "label", "score"):
        if key not in row:
            yield f"no {key!r}"
            return
    segment, std = row["segment"], row.get("segment_std")
    if not (isinstance(segment, list) and len(segment) == 2 and all(map(_is_number, segment))):
        yield "segment is not a [start, end] pair of finite numbers"
    elif segment[1] < segment[0]:
        yield "segment ends before it starts"
    if not _is_number(row["score"]):
        yield "score is not a finite number"
    if std is not None and not (
        isinstance(std, list) and len(std) == 2 and all(x is None or (_is_number(x) and x >= 0) for x in std)
    ):
        yield "segment_std is not a pair of numbers >= 0 or null"
    if "probability" in row and not (_is_number(row["probability"]) and 0 <= row["probability"] <= 1):
        yield "probability is not a number in [0, 1]"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shortened(row: Any) -> str:
    text = repr(row)
    return text if len(text) <= 120 else text[:117] + "..."

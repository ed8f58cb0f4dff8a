"""What a page shows, brought together from prediction, annotation, trace, media and signal files."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.annotations import Problem, class_label_ids, parse_annotations, read_database, read_json
from tzn.data.features import load_features
from tzn.data.signal import TEXT_SUFFIXES, load_signal
from tzn.detections import Detections, read_predictions
from tzn.errors import DataError
from tzn.readers import SIGNAL_SUFFIXES as READ_SUFFIXES
from tzn.readers import SOUND_SUFFIXES, has_times, read_recording
from tzn.readers.front_end import recording_id
from tzn.visualization.pictures import load_trace

MEDIA_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".mkv", ".ogv", ".ogg", ".mp3", ".m4a", ".wav", ".flac")
UNPLAYABLE = (".avi", ".wmv", ".flv", ".mpg", ".mpeg")  # no browser plays these
SIGNAL_SUFFIXES = (".npy", ".npz", *READ_SUFFIXES)
MAX_CHANNELS = 12  # drawn without --channels


@dataclass(frozen=True, eq=False)
class Signal:
    """Curves of a recording: ``samples`` ``[N, C]`` float32, ``rate`` samples per second, names of the C channels."""

    samples: np.ndarray
    rate: float
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PageRecording:
    """One recording of a page; everything but the name may be missing.

    Attributes:
        id: its name.
        entry: its object in the annotation file, or None.
        segments, labels: annotated, ``[N, 2]`` seconds and ``[N]`` index into the classes.
        origin: ``[N]`` position in the annotation list of ``entry``.
        detections: found ones, or None.
        trace: arrays of :func:`tzn.inference.traces.trace_arrays`, or None.
        media: a file that a browser plays, or None.
        signal: curves, or None.
        duration: seconds, where any source says.
    """

    id: str
    entry: Mapping[str, Any] | None
    segments: np.ndarray
    labels: np.ndarray
    origin: np.ndarray
    detections: Detections | None
    trace: Mapping[str, np.ndarray] | None
    media: Path | None
    signal: Signal | None
    duration: float | None


@dataclass(frozen=True, eq=False)
class Sources:
    """Recordings and classes of a page.

    Attributes:
        classes: names in label order; label_ids: the annotation file's id of each, None where it has none.
        recordings: in the order of the list on the page.
        original: content of the annotation file, or None; corrections are written into a copy of it.
        warnings: what was left out.
        predicted: there are predictions. threshold: their file's "score_threshold", or None.
    """

    classes: tuple[str, ...]
    label_ids: tuple[int | None, ...]
    recordings: tuple[PageRecording, ...]
    original: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    predicted: bool = False
    threshold: float | None = None


@dataclass
class _Truth:
    entries: dict[str, Any] = field(default_factory=dict)
    segments: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    durations: dict[str, float | None] = field(default_factory=dict)


def gather(
    files: Sequence[Path] = (),
    *,
    media: Sequence[Path] = (),
    traces: Path | None = None,
    recordings: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    rate: float | None = None,
    channels: Sequence[int | str] | None = None,
) -> Sources:
    """Read everything that a page is made from.

    Args:
        files: at most one predictions file (it has "results") and one annotation file (it has "database").
        media: videos, audio, or signals (``.npy``/``.npz`` ``[samples, channels]``, and whatever
            :func:`tzn.readers.read_recording` takes for samples: tables, EDF, WFDB), or folders of them; each belongs to
            the recording of its name, or a single one to the only recording. Sound without a signal is drawn as its level.
        traces: folder from ``tzn predict --traces``.
        recordings: only these; default: those of the predictions, else of the annotations, else of the media.
        classes: names beyond those in the files, for drawing.
        rate: samples per second of signals that do not say it themselves; default: samples over the recording's duration.
        channels: which channels of the signals to draw, from 0 or by name; default: the first 12.

    Raises:
        DataError: unreadable files, two of a kind, names that do not fit together, unknown recording, unknown rate.
    """
    kinds = _by_kind(files)
    predictions, content = kinds.get("results", (None, {}))
    annotations, original = kinds.get("database", (None, None))
    names = _classes(content.get("results"), annotations, classes)
    truth = _truth(annotations, names)
    found = read_predictions(predictions, names)[0] if predictions else {}
    curves, clips = _split_media(media)
    listed = [*(found or truth.entries)] or sorted({*curves, *clips})
    if recordings:
        known = dict.fromkeys([*found, *truth.entries, *curves, *clips])
        _check_known(recordings, known, "--recording")
        listed = list(dict.fromkeys(recordings))
    if not listed:
        raise DataError(
            "nothing to show: give predictions.json, annotations.json, or --annotate with a video or signal"
        )
    curves, clips = (_assigned(given, listed, bool(recordings)) for given in (curves, clips))
    pages = []
    warnings = [f"{annotations}: left out: {problem}" for problem in truth.problems]
    for name in listed:
        trace = _trace(traces, name)
        duration = truth.durations.get(name)
        signal = None
        if name in curves:
            signal = _signal(curves[name], rate, channels, duration or _trace_duration(trace))
        elif name in clips and clips[name].suffix.lower() in SOUND_SUFFIXES:
            try:
                signal = _level(clips[name])
            except DataError as error:  # it can be heard all the same
                warnings.append(f"drawn without its level: {error}")
        if duration is None:  # the frames of a sound's level end before it does: the page asks the sound itself
            own = signal if name in curves else None
            duration = len(own.samples) / own.rate if own else _trace_duration(trace)
        nothing = np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
        segments, labels, origin = truth.segments.get(name, nothing)
        pages.append(
            PageRecording(
                name,
                truth.entries.get(name),
                segments,
                labels,
                origin,
                found.get(name),
                trace,
                clips.get(name),
                signal,
                duration,
            )
        )
    if traces is not None and all(page.trace is None for page in pages):
        raise DataError(f"{traces}: no trace of {listed[0]!r} or any other recording here; see 'tzn predict --traces'")
    ids: dict[str, int] = class_label_ids(annotations) if annotations else {}
    return Sources(
        names, tuple(ids.get(n) for n in names), tuple(pages), original, tuple(warnings), predictions is not None,
        _threshold(content),
    )  # fmt: skip


def _by_kind(files: Sequence[Path]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The predictions ("results") and the annotations ("database") among ``files``: path and content."""
    kinds: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in files:
        content = read_json(path)
        kind = next((k for k in ("results", "database") if isinstance(content, dict) and k in content), None)
        if kind is None:
            raise DataError(f'{path}: neither predictions (an object with "results") nor annotations ("database")')
        if kind in kinds:
            what = {"results": "predictions", "database": "annotations"}[kind]
            raise DataError(f"{kinds[kind][0]} and {path} both hold {what}; expected at most one file of them")
        kinds[kind] = path, content
    return kinds


def _classes(results: Any, annotations: Path | None, more: Sequence[str]) -> tuple[str, ...]:
    """Names in the annotations' order, then those that only the predictions have, then ``more``."""
    names = list(parse_annotations(annotations, overhang=math.inf)[0].classes) if annotations else []
    # Whatever is malformed here is reported when the predictions are read.
    lists = results.values() if isinstance(results, dict) else ()
    rows = (row for rows in lists if isinstance(rows, list) for row in rows)
    names += sorted({str(row["label"]) for row in rows if isinstance(row, dict) and "label" in row} - set(names))
    return tuple(dict.fromkeys([*names, *more]))


def _threshold(content: Mapping[str, Any]) -> float | None:
    """The score from which on the model itself calls a detection confident, where the file says so."""
    value = content.get("score_threshold")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _truth(annotations: Path | None, classes: Sequence[str]) -> _Truth:
    if annotations is None:
        return _Truth()
    # With no limit to overhang, every problem is a segment left out: what stays keeps its place in the file's list.
    parsed, problems = parse_annotations(annotations, classes=classes, overhang=math.inf)
    entries = read_database(annotations)
    dropped = {(p.recording, p.index) for p in problems}
    segments = {}
    for name, recording in parsed.recordings.items():
        places = range(len(entries[name].get("annotations") or []))
        origin = np.array([i for i in places if (name, i) not in dropped], np.int64)
        segments[name] = recording.segments, recording.labels, origin
    return _Truth(entries, segments, problems, {name: r.duration for name, r in parsed.recordings.items()})


def _split_media(media: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Signals and clips by file name without suffix."""
    signals: dict[str, Path] = {}
    clips: dict[str, Path] = {}
    for path in _media_files(media):
        kind, name = signals if path.name.lower().endswith(SIGNAL_SUFFIXES) else clips, recording_id(path)
        if name in kind:
            raise DataError(f"{kind[name]} and {path}: two files of one name; recording names must differ")
        kind[name] = path
    return signals, clips


def _media_files(media: Sequence[Path]) -> Iterator[Path]:
    for path in media:
        suffix = path.suffix.lower()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.lower().endswith((*MEDIA_SUFFIXES, *SIGNAL_SUFFIXES)))
            if not inside:
                raise DataError(f"{path}: no video, audio or signal files in this folder")
            yield from inside
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        elif suffix in UNPLAYABLE:
            raise DataError(f"{path}: browsers do not play {suffix}; convert it: ffmpeg -i {path.name} {path.stem}.mp4")
        elif path.name.lower().endswith((*MEDIA_SUFFIXES, *SIGNAL_SUFFIXES)):
            yield path
        elif path.name.endswith((".json", ".json.gz")):
            raise DataError(f"{path}: no video, audio or signal; predictions and annotations come before --media")
        else:
            raise DataError(f"{path}: expected one of {', '.join((*MEDIA_SUFFIXES, *SIGNAL_SUFFIXES))}")


def _assigned(given: dict[str, Path], listed: Sequence[str], chosen: bool) -> dict[str, Path]:
    """Files by recording; of several recordings each file must name one, unless only some were ``chosen``."""
    if len(given) == len(listed) == 1 and not chosen:
        return {listed[0]: next(iter(given.values()))}
    if not chosen:
        _check_known(list(given), listed, "media")
    return {name: path for name, path in given.items() if name in listed}


def _check_known(names: Sequence[str], known: Sequence[str] | Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1) or list(known)[:1]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{what} {name!r}: no recording of this name{hint}")


def _trace(folder: Path | None, name: str) -> Mapping[str, np.ndarray] | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; 'tzn predict --traces FOLDER' writes it")
    path = folder / f"{name}.npz"
    return load_trace(path) if path.is_file() else None


def _trace_duration(trace: Mapping[str, np.ndarray] | None) -> float | None:
    if trace is None or len(trace["time"]) < 2:
        return None
    time = trace["time"]
    return float(time[-1] + (time[1] - time[0]) / 2)


def _signal(path: Path, rate: float | None, channels: Sequence[int | str] | None, duration: float | None) -> Signal:
    numbers = path.suffix.lower() in (".npy", ".npz")
    if not numbers and has_times(path):
        recording = read_recording(path)
        samples, names, rate = recording.values, list(recording.channels), recording.rate
    elif numbers:
        samples = load_features(path)
        names = [f"channel {i}" for i in range(samples.shape[1])]
    elif path.suffix.lower() in TEXT_SUFFIXES:
        names = _column_names(path)
        samples = load_signal(path, len(names))
    else:
        recording = read_recording(path, sample_rate=rate or 1.0)  # a rate that no sample is moved for
        samples, names = recording.values, list(recording.channels)
    drawn = (
        list(range(min(len(names), MAX_CHANNELS))) if channels is None else [_channel(c, names, path) for c in channels]
    )
    if rate is None:
        if duration is None:
            raise DataError(f"{path}: how many samples are a second? Add --rate")
        rate = len(samples) / duration
    return Signal(samples[:, drawn], rate, tuple(names[i] for i in drawn))


def _channel(channel: int | str, names: Sequence[str], path: Path) -> int:
    if isinstance(channel, str) and channel in names:
        return names.index(channel)
    if isinstance(channel, str) or not 0 <= channel < len(names):
        raise DataError(f"--channels {channel}: {path} has channels 0 to {len(names) - 1}: {', '.join(names[:20])}")
    return channel


def _level(path: Path) -> Signal:
    """How loud a sound is: the mean of its log-mel bands, 100 times a second."""
    recording = read_recording(path)
    return Signal(recording.values.mean(1, keepdims=True), recording.rate, ("level",))


def _column_names(path: Path) -> list[str]:
    """Names in the first line of a text file, or "column i" where it holds numbers."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    fields = first.translate(str.maketrans(",;\t", "   ")).split()
    try:
        [float(field) for field in fields]
    except ValueError:
        return fields
    return [f"column {i}" for i in range(len(fields))]

"""Annotations of other programs: Audacity, ELAN, Praat, VIA, CVAT and CSV, as our annotation file.

Apart from :mod:`tzn.data.annotations`, which reads the one schema that everything here works with.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tzn.data.annotations import read_json
from tzn.errors import DataError
from tzn.files import atomic_write
from tzn.optional import require

SUFFIXES = (".csv", ".eaf", ".json", ".textgrid", ".tsv", ".txt", ".xml")
COLUMNS = ("recording", "start", "end", "label")


@dataclass
class Labelled:
    """Labels of one recording.

    Attributes:
        segments: (start, end, label), times in seconds.
        duration: seconds, where the file says.
        fps: frames a second, where the file says or it was given.
        subset: where the file says.
        points: labels of a moment, which are no segments and were left out.
    """

    segments: list[tuple[float, float, str]] = field(default_factory=list)
    duration: float | None = None
    fps: float | None = None
    subset: str | None = None
    points: int = 0

    def add(self, start: float, end: float, label: str) -> None:
        """Keep a segment; a point is only counted."""
        if not (math.isfinite(start) and math.isfinite(end)) or end < start or end <= 0:
            raise DataError(f"segment [{start:g}, {end:g}] of {label!r}: expected 0 <= start <= end in seconds")
        label = " ".join(label.split())
        if not label:
            return
        if end == start:
            self.points += 1
        else:
            self.segments.append((max(start, 0.0), end, label))


Recordings = dict[str, Labelled]


def convert_labels(
    source: Path, target: Path, *, subset: str = "training", fps: float | None = None, tiers: Sequence[str] = ()
) -> tuple[int, int]:
    """Write labels of another program as an annotation file; returns (segments, recordings).

    Args:
        source: a file (``.txt``: Audacity; ``.eaf``: ELAN; ``.TextGrid``: Praat; ``.xml``: CVAT; ``.json``: VIA 3 or
            CVAT; ``.csv``, ``.tsv`` with columns recording, start, end, label and perhaps subset, duration), or a
            folder of such files.
        target: ``.json``.
        subset: of recordings whose file does not name one.
        fps: frames a second of the recordings; needed by CVAT, whose exports count frames.
        tiers: of ELAN and Praat; none: all.

    Raises:
        DataError: nothing to read, damaged or hostile file, times that are no times, one recording in two files.
    """
    if target.suffix != ".json":
        raise DataError(f"{target}: annotations are written as .json")
    found: Recordings = {}
    for path in _files(source):
        for name, labelled in read_labels(path, fps=fps, tiers=tiers).items():
            if name in found:
                raise DataError(f"{path}: recording {name!r} has labels in another file already")
            found[name] = labelled
    count = sum(len(labelled.segments) for labelled in found.values())
    if not count:
        raise DataError(f"{source}: holds no segments")
    points = sum(labelled.points for labelled in found.values())
    if points:
        warnings.warn(f"{source}: {points} labels without length were left out", stacklevel=2)
    database = {name: _entry(labelled, subset) for name, labelled in sorted(found.items())}
    with atomic_write(target) as file:
        json.dump({"database": database}, file, indent=1, ensure_ascii=False, allow_nan=False)
    return count, len(found)


def read_labels(path: Path, *, fps: float | None = None, tiers: Sequence[str] = ()) -> Recordings:
    """Labels of a file by recording id; arguments and errors as of :func:`convert_labels`."""
    readers: dict[str, Callable[[], Recordings]] = {
        ".txt": lambda: _audacity(path),
        ".csv": lambda: _csv(path),
        ".tsv": lambda: _csv(path),
        ".eaf": lambda: _elan(path, tiers),
        ".textgrid": lambda: _praat(path, tiers),
        ".xml": lambda: _cvat_xml(path, fps),
        ".json": lambda: _json(path, fps),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path}: labels are read from {', '.join(SUFFIXES)}, not from {path.suffix!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return readers[suffix]()
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = [path for path in sorted(source.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{source}: no files of labels in this folder ({', '.join(SUFFIXES)})")
    return files


def _entry(labelled: Labelled, subset: str) -> dict[str, Any]:
    known = {"subset": labelled.subset or subset, "duration": labelled.duration, "fps": labelled.fps}
    segments = [{"segment": [start, end], "label": label} for start, end, label in sorted(labelled.segments)]
    return {**{name: value for name, value in known.items() if value is not None}, "annotations": segments}


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file in UTF-8 ({error})") from None


def _seconds(text: str | None, where: str) -> float:
    try:
        return float((text or "").strip().replace(",", "."))
    except ValueError:
        raise DataError(f"{where}: {text!r} is no time in seconds") from None


def _audacity(path: Path) -> Recordings:
    """A label track: start, end and label between tabs; lines with a backslash hold frequencies."""
    found = Labelled()
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("\\"):
            continue
        fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(
                f"line {number}: {line[:40]!r}, expected start, end and label between tabs (Audacity labels)"
            )
        start, end = (_seconds(text, f"line {number}") for text in fields[:2])
        found.add(start, end, fields[2] if len(fields) > 2 else "")
    return {path.stem: found}


def _csv(path: Path) -> Recordings:
    text = _text(path)
    first = text.partition("\n")[0]
    delimiter = next((sign for sign in "\t;," if sign in first), ",")
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"no column {', '.join(missing)}; expected {', '.join(COLUMNS)}, found {', '.join(names)}")
    found: Recordings = {}
    for row in rows:
        where = f"line {rows.line_num}"
        name, start, end, label = ((row[names[column]] or "").strip() for column in COLUMNS)
        if not name or not label:
            raise DataError(f"{where}: the {'label' if name else 'recording'} is missing")
        labelled = found.setdefault(name, Labelled())
        labelled.add(_seconds(start, where), _seconds(end, where), label)
        labelled.subset = (row[names["subset"]] or "").strip() or None if "subset" in names else None
        duration = (row[names["duration"]] or "").strip() if "duration" in names else ""
        labelled.duration = _seconds(duration, where) if duration else None
    return found


def _elan(path: Path, tiers: Sequence[str]) -> Recordings:
    """Annotations of an ``.eaf`` file; the recording is named after its first media file, else after the file."""
    root = _xml(path)
    if root.tag != "ANNOTATION_DOCUMENT":
        raise DataError(f"<{root.tag}> at the top, expected <ANNOTATION_DOCUMENT> of ELAN")
    elan = require("pympi", "reading .eaf files", "labels", "pympi-ling")
    try:
        document = elan.Eaf(str(path))
        chosen = _chosen(list(document.get_tier_names()), tiers)
        rows = [row for tier in chosen for row in document.get_annotation_data_for_tier(tier)]
        media = [entry.get("MEDIA_URL") or "" for entry in document.media_descriptors]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not an ELAN file that can be read ({type(error).__name__}: {error})") from None
    found = Labelled()
    for start, end, label, *_ in rows:
        found.add(start / 1000, end / 1000, label or "")
    name = media[0].replace("\\", "/").rpartition("/")[2].rpartition(".")[0] if media else ""
    return {name or path.stem: found}


def _praat(path: Path, tiers: Sequence[str]) -> Recordings:
    textgrid = require("praatio.textgrid", "reading .TextGrid files", "labels", "praatio")
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    except Exception as error:  # praatio lets whatever a damaged file makes it meet through
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"not a TextGrid that can be read ({type(error).__name__}: {reason})") from None
    found = Labelled(duration=grid.maxTimestamp)
    for name in _chosen(list(grid.tierNames), tiers):
        tier = grid.getTier(name)
        for entry in tier.entries:
            start, end = (entry.start, entry.end) if hasattr(entry, "start") else (entry.time, entry.time)
            found.add(start, end, entry.label)
    return {path.stem: found}


def _chosen(names: list[str], tiers: Sequence[str]) -> list[str]:
    missing = [name for name in tiers if name not in names]
    if missing:
        raise DataError(f"no tier {missing[0]!r}; the file has: {', '.join(names)}")
    return list(tiers) or names


def _xml(path: Path) -> Any:
    """Root of an XML file; one that declares entities, as hostile files do, is refused."""
    tree = require("defusedxml.ElementTree", "reading XML", "labels", "defusedxml")
    common = require("defusedxml.common", "reading XML", "labels", "defusedxml")
    try:
        return tree.parse(path, forbid_dtd=True).getroot()
    except common.DefusedXmlException as error:
        raise DataError(f"refused: the XML declares a document type or entities ({type(error).__name__})") from None
    except tree.ParseError as error:
        raise DataError(f"not valid XML ({error})") from None


def _cvat_xml(path: Path, fps: float | None) -> Recordings:
    """ "CVAT for video" (a segment from a track's first frame in view to its last) and "CVAT for images" (tags)."""
    root = _xml(path)
    if root.tag != "annotations":
        raise DataError(f"<{root.tag}> at the top, expected <annotations> of CVAT")
    found = Labelled(fps=_cvat_rate(fps))
    for track in root.iter("track"):
        states = [(int(shape.get("frame", -1)), shape.get("outside") == "1") for shape in track if shape.get("frame")]
        _add_frames(found, _in_view(states), track.get("label") or "")
    tagged: dict[str, set[int]] = {}
    for image in root.iter("image"):
        for tag in image.iter("tag"):
            tagged.setdefault(tag.get("label") or "", set()).add(int(image.get("id", -1)))
    for label, frames in tagged.items():
        _add_frames(found, _runs(frames), label)
    source = root.findtext(".//source") or root.findtext(".//task/name") or ""
    return {Path(source.replace("\\", "/")).stem or path.stem: found}


def _json(path: Path, fps: float | None) -> Recordings:
    content = read_json(path)
    try:
        if isinstance(content, dict) and {"file", "view", "metadata"} <= set(content):
            return _via(content)
        tasks = content if isinstance(content, list) else [content]
        if tasks and all(isinstance(task, dict) and "tracks" in task for task in tasks):
            return {path.stem: _cvat_json(tasks, fps)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a VIA or CVAT export that can be read ({type(error).__name__}: {error})") from None
    raise DataError("expected a project of VIA 3 (file, view, metadata) or annotations of CVAT (tracks, tags)")


def _via(content: dict[str, Any]) -> Recordings:
    """A project of the VGG Image Annotator, version 3: temporal segments with the value of their first attribute."""
    names = {key: Path(entry["fname"].replace("\\", "/")).stem for key, entry in content["file"].items()}
    files = {view: [names[str(fid)] for fid in entry["fid_list"]] for view, entry in content["view"].items()}
    found: Recordings = {name: Labelled() for view in files.values() for name in view[:1]}
    options = {key: entry.get("options") or {} for key, entry in content.get("attribute", {}).items()}
    for entry in content["metadata"].values():
        times = entry["z"]
        if not times or not entry["av"]:
            continue
        key, value = next(iter(entry["av"].items()))
        label = str(options.get(key, {}).get(str(value), value))
        labelled = found[files[str(entry["vid"])][0]]
        labelled.add(float(times[0]), float(times[-1]), label)
    return found


def _cvat_json(tasks: list[dict[str, Any]], fps: float | None) -> Labelled:
    """``annotations.json`` of a CVAT task: tracks with shapes, and tags of frames."""
    found = Labelled(fps=_cvat_rate(fps))
    for task in tasks:
        for track in task["tracks"]:
            states = [(int(shape["frame"]), bool(shape.get("outside"))) for shape in track["shapes"]]
            _add_frames(found, _in_view(states), str(track["label"]))
        tags = sorted((str(tag["label"]), int(tag["frame"])) for tag in task.get("tags", ()))
        for label, group in itertools.groupby(tags, key=lambda tag: tag[0]):
            _add_frames(found, _runs({frame for _, frame in group}), label)
    return found


def _cvat_rate(fps: float | None) -> float:
    if fps is None:
        raise DataError("CVAT counts frames: say how many a second the recording has (--fps)")
    return fps


def _add_frames(found: Labelled, spans: Iterable[tuple[int, int]], label: str) -> None:
    assert found.fps is not None
    for first, end in spans:
        found.add(first / found.fps, end / found.fps, label)


def _in_view(states: list[tuple[int, bool]]) -> Iterable[tuple[int, int]]:
    """[first, end) of a track from (frame, outside) key frames; what is in view at the last one ends after it."""
    begin, last = None, -1
    for frame, outside in sorted(states):
        if outside and begin is not None:
            yield begin, frame
            begin = None
        elif not outside and begin is None:
            begin = frame
        last = frame
    if begin is not None:
        yield begin, last + 1


def _runs(frames: set[int]) -> Iterable[tuple[int, int]]:
    """[first, end) of runs of consecutive frames."""
    begin = last = None
    for frame in sorted(frames):
        if last is None or frame > last + 1:
            if begin is not None and last is not None:
                yield begin, last + 1
            begin = frame
        last = frame
    if begin is not None and last is not None:
        yield begin, last + 1

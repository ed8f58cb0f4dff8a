"""The formats that detections are written in, as text; :mod:`tzn.detections` reads them, and writes what comes from here.

Apart from the class so that the command line can list ``FORMATS`` without loading NumPy.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tzn.errors import DataError

if TYPE_CHECKING:
    from tzn.detections import Detections

CSV_HEADER = ("video", "start", "end", "label", "score", "start_std", "end_std")
CSV_CALIBRATED = ("probability", "start_low", "start_high", "end_low", "end_high")  # after those, of a calibrated model
INTERVAL = 0.9  # coverage of the intervals in files
SHORTEST_CUE = 0.001  # seconds; WebVTT has no cue without length

Many = Mapping[str, "Detections"]


@dataclass(frozen=True)
class Format:
    """One way to write detections.

    Attributes:
        text: (detections by recording id, class names or None for the detections' own) -> content of the file, in parts
            of one recording at most, so that no more need be in memory.
        suffix: of its files.
        single: a file holds one recording.
    """

    text: Callable[[Many, Sequence[str] | None], Iterator[str]]
    suffix: str
    single: bool = False


def format_of(name: str) -> str | None:
    """The format that a file name's suffix stands for, or None."""
    name = name.lower().removesuffix(".gz") if name.lower().endswith(".json.gz") else name.lower()
    return next((fmt for fmt, known in FORMATS.items() if name.endswith(known.suffix)), None)


def rows(found: Detections, classes: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """One dict a detection, as the JSON file has it."""
    names = found.names if classes is None else classes
    std = None if found.std is None else found.std.tolist()
    chance = None if found.probability is None else found.probability.tolist()
    bounds = found.interval(INTERVAL).tolist() if found.calibrated and std is not None else None
    for i, (segment, label, score) in enumerate(
        zip(found.segments.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ):
        row = {"segment": segment, "label": names[label], "score": score}
        if std is not None:
            row["segment_std"] = [x if math.isfinite(x) else None for x in std[i]]
        if bounds is not None:
            row["segment_interval"] = [[x if math.isfinite(x) else None for x in pair] for pair in bounds[i]]
        if chance is not None:
            row["probability"] = chance[i]
        yield row


def _json(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    first = next(iter(detections.values()), None)
    known = first is not None and first.score_threshold is not None
    head = f'"score_threshold": {json.dumps(first.score_threshold)}, ' if first is not None and known else ""
    if first is not None and first.intervals is not None:
        head += f'"interval_coverage": {INTERVAL}, "intervals": {json.dumps(first.intervals.to_dict())}, '
    before = f'{{"version": "tzn 1", {head}"results": {{\n '
    for name, found in detections.items():
        lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows(found, classes))
        yield f"{before}{json.dumps(name)}: " + (f"[\n  {lines}\n ]" if lines else "[]")
        before = ",\n "
    yield ("" if before == ",\n " else before) + "\n}}\n"


def _csv(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    first = next(iter(detections.values()), None)
    calibrated = first is not None and first.calibrated
    yield ",".join([*CSV_HEADER, *(CSV_CALIBRATED if calibrated else ())]) + "\n"
    for name, found in detections.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows(found, classes):
            start, end = (f"{x:.6f}" for x in row["segment"])
            std = ["" if x is None else f"{x:.6f}" for x in row.get("segment_std", (None, None))]
            more = []
            if calibrated:
                chance, unknown = row.get("probability"), [[None, None]] * 2
                sides = [x for pair in row.get("segment_interval", unknown) for x in pair]
                more = ["" if chance is None else f"{chance:.6f}", *("" if x is None else f"{x:.6f}" for x in sides)]
            writer.writerow([name, start, end, row["label"], f"{row['score']:.9g}", *std, *more])
        yield text.getvalue()


def _by_start(detections: Many, classes: Sequence[str] | None) -> list[tuple[float, float, str, float]]:
    """(start, end, label on one line, score) of the only recording, by rising start."""
    found = next(iter(detections.values()))
    every = [(*row["segment"], " ".join(row["label"].split()), row["score"]) for row in rows(found, classes)]
    return sorted(every, key=lambda row: row[0])


def _srt(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    yield "\n".join(
        f"{i}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{label} {score:.2f}\n"
        for i, (start, end, label, score) in enumerate(_by_start(detections, classes), start=1)
    )


def _vtt(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    cues = ["WEBVTT\n"]
    for start, end, label, score in _by_start(detections, classes):
        start = max(start, 0.0)
        end = max(end, start + SHORTEST_CUE)
        cues.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(label, quote=False)} {score:.2f}\n")
    yield "\n".join(cues)


def _clock(seconds: float, point: str) -> str:
    rest, milliseconds = divmod(round(max(seconds, 0.0) * 1000), 1000)
    minutes, whole = divmod(rest, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{point}{milliseconds:03d}"


def _audacity(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    yield "".join(f"{start:.6f}\t{end:.6f}\t{label}\n" for start, end, label, _ in _by_start(detections, classes))


def _textgrid(detections: Many, classes: Sequence[str] | None) -> Iterator[str]:
    """A tier a class. Intervals of a tier cannot overlap or be empty: overlaps go to further tiers, points to their own."""
    every = _by_start(detections, classes)
    first = min([0.0, *(start for start, *_ in every)])
    last = max([first, *(end for _, end, *_ in every)]) or 1.0
    intervals: dict[str, list[list[tuple[float, float]]]] = {}
    points: dict[str, list[float]] = {}
    for start, end, label, _ in every:
        if not end > start:
            points.setdefault(label, []).append(start)
            continue
        tiers = intervals.setdefault(label, [])
        tier = next((tier for tier in tiers if tier[-1][1] <= start), None)
        if tier is None:
            tiers.append(tier := [])
        tier.append((start, end))
    texts = []
    for label in sorted(intervals):
        for i, tier in enumerate(intervals[label]):
            name = label if i == 0 else f"{label} {i + 1}"
            texts.append(_tier("IntervalTier", name, first, last, "intervals", _covering(tier, label, first, last)))
    for label in sorted(points):
        marks = [f"            number = {t!r}\n            mark = {_quoted(label)}\n" for t in sorted({*points[label]})]
        texts.append(_tier("TextTier", f"{label} (points)", first, last, "points", marks))
    if not texts:
        texts.append(_tier("IntervalTier", "detections", first, last, "intervals", _covering([], "", first, last)))
    head = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = {first!r}\nxmax = {last!r}\n'
    items = "".join(f"    item [{i}]:\n{text}" for i, text in enumerate(texts, start=1))
    yield f"{head}tiers? <exists>\nsize = {len(texts)}\nitem []:\n{items}"


def _tier(kind: str, name: str, first: float, last: float, what: str, items: list[str]) -> str:
    head = (
        f'        class = "{kind}"\n        name = {_quoted(name)}\n        xmin = {first!r}\n        xmax = {last!r}\n'
    )
    body = "".join(f"        {what} [{i}]:\n{item}" for i, item in enumerate(items, start=1))
    return f"{head}        {what}: size = {len(items)}\n{body}"


def _covering(tier: list[tuple[float, float]], label: str, first: float, last: float) -> list[str]:
    """Intervals of a tier with empty ones between them, from ``first`` to ``last``."""
    edges: list[tuple[float, float, str]] = []
    at = first
    for start, end in tier:
        edges += [(at, start, "")] * (start > at) + [(start, end, label)]
        at = end
    edges += [(at, last, "")] * (last > at)
    indent = " " * 12
    return [f"{indent}xmin = {a!r}\n{indent}xmax = {b!r}\n{indent}text = {_quoted(text)}\n" for a, b, text in edges]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


FORMATS = {
    "json": Format(_json, ".json"),
    "csv": Format(_csv, ".csv"),
    "srt": Format(_srt, ".srt", single=True),
    "vtt": Format(_vtt, ".vtt", single=True),
    "textgrid": Format(_textgrid, ".textgrid", single=True),
    "audacity": Format(_audacity, ".txt", single=True),
}


def text_of(detections: Many, fmt: str, classes: Sequence[str] | None = None) -> Iterator[str]:
    """Content of a file in a format of ``FORMATS``, in parts.

    Raises:
        DataError: unknown format, or one for a single recording with more or fewer of them.
    """
    if fmt not in FORMATS:
        raise DataError(f"format {fmt!r}: expected one of {', '.join(FORMATS)}")
    known = FORMATS[fmt]
    if known.single and len(detections) != 1:
        raise DataError(
            f"one {known.suffix} file holds one recording, there are {len(detections)}; "
            f"give a folder to write a file each (--format {fmt})"
        )
    return known.text(detections, classes)

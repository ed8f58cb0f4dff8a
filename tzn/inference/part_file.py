"""Finished recordings of a prediction under way: a journal beside its output, so that a crash loses none of them.

Private to ``tzn predict`` and only ever appended to, unlike the files of :mod:`tzn.detections`, which users read and which
are written whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tzn.calibration import Intervals
from tzn.detections import Detections
from tzn.errors import DataError

FORMAT = 1


class PartFile(Mapping[str, Detections]):
    """Detections by recording id, one line of JSON each after a line with the settings; read back one at a time.

    Args:
        path: of the journal; its folder exists.
        settings: plain data by name; detections made with other settings must not be mixed.
        resume: continue a journal that is there. A line cut off by a crash is dropped.

    Raises:
        DataError: a journal is there and ``resume`` is off, it was begun with other settings, or it is none.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.score_threshold: float | None = None  # of the model, for those who read the detections
        self.intervals: Intervals | None = None  # likewise
        self._places: dict[str, int] = {}
        self._end = 0
        if path.exists() and not resume:
            raise DataError(f"{path}: an unfinished prediction; continue it with --resume, or delete the file")
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
        self._reader = open(path, "rb")  # noqa: SIM115
        header = {"tzn predict": FORMAT, "settings": dict(settings)}
        self._recover(json.loads(json.dumps(header)))
        self._file.truncate(self._end)
        if self._end == 0:
            self._append(json.dumps(header) + "\n")

    def __getitem__(self, name: str) -> Detections:
        self._reader.seek(self._places[name])
        row = json.loads(self._reader.readline())
        std = None if row["std"] is None else np.array(row["std"], np.float64).reshape(-1, 2)
        return Detections(
            np.array(row["segments"], np.float64).reshape(-1, 2), np.array(row["scores"], np.float64),
            np.array(row["labels"], np.int64), std, score_threshold=self.score_threshold,
            probability=None if row.get("probability") is None else np.array(row["probability"], np.float64),
            intervals=self.intervals,
        )  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, found: Mapping[str, Detections]) -> None:
        """Append recordings; they are on the disk when this returns, and after an error none of them is."""
        text, places = [], {}
        at = self._end
        for name, d in found.items():
            std = None if d.std is None else d.std.tolist()
            row = {
                "id": name,
                "segments": d.segments.tolist(),
                "scores": d.scores.tolist(),
                "labels": d.labels.tolist(),
            }
            if d.probability is not None:
                row["probability"] = d.probability.tolist()
            text.append(json.dumps({**row, "std": std}) + "\n")  # ASCII: a character is a byte
            places[name] = at
            at += len(text[-1])
        self._append("".join(text))
        self._places |= places

    def arrange(self, names: Sequence[str]) -> None:
        """Iterate in the order of ``names``, which are all that is here and perhaps more.

        Raises:
            DataError: a recording that is not among them.
        """
        foreign = self._places.keys() - set(names)
        if foreign:
            raise DataError(f"{self.path}: holds recordings that are not among the inputs, such as {min(foreign)!r}")
        self._places = {name: self._places[name] for name in names if name in self._places}

    def close(self, *, delete: bool) -> None:
        self._file.close()
        self._reader.close()
        if delete:
            self.path.unlink()

    def _append(self, text: str) -> None:
        rest = memoryview(text.encode("ascii"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(text)

    def _recover(self, wanted: dict[str, Any]) -> None:
        """Find the whole lines of what is there."""
        first = self._reader.readline()
        if not first.endswith(b"\n"):
            if not json.dumps(wanted).startswith(first[:16].decode("ascii", "replace")):
                raise DataError(f"{self.path}: not written by 'tzn predict'")
            return
        header = _parsed(first)
        if header is None or header.get("tzn predict") != FORMAT:
            raise DataError(f"{self.path}: not written by this 'tzn predict'")
        mine, theirs = wanted["settings"], header["settings"]
        changed = [f"{k}: {theirs.get(k)} -> {mine.get(k)}" for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
        if changed:
            raise DataError(
                f"{self.path}: begun with other settings ({'; '.join(changed)}); give the same, or delete the file"
            )
        self._end = len(first)
        for line in self._reader:
            row = _parsed(line) if line.endswith(b"\n") else None
            if row is None or "std" not in row:
                return
            self._places[row["id"]] = self._end
            self._end += len(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

"""The work of a corpus, cut into parts that are done or not: what makes a stopped run go on where it was.

Beside the output lies a folder ``OUT.parts``: ``plan.json`` says which recordings make part n, ``part-n.parquet`` is there,
whole, once part n is done. A part is a pure function of the plan, so whoever writes it, and however often, it is the same.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tzn.corpus.table import KEY, Run, join, open_results, rows_of, schema, write_table
from tzn.detections import Detections
from tzn.errors import DataError
from tzn.files import atomic_write, remove_temporary

FORMAT = 1
BASE = "base.parquet"  # among the parts: a finished output that is added to
FAILED = b"tzn.failed"  # in a part's metadata: why recordings are not in it
PART_STEPS = 65_536  # feature steps of a part; a second or two of one core
PART_RECORDINGS = 128  # what fits into a pipe three times, so that giving work never waits


def pack(lengths: Sequence[int], steps: int = PART_STEPS, most: int = PART_RECORDINGS) -> list[list[int]]:
    """Places of recordings, longest first, cut into parts of up to ``steps`` feature steps or one recording."""
    parts: list[list[int]] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not parts or total + lengths[place] > steps or len(parts[-1]) == most:
            parts.append([])
            total = 0
        parts[-1].append(place)
        total += lengths[place]
    return parts


class Plan:
    """The folder ``OUT.parts``.

    Args:
        out: the Parquet file that it will become.
        run: model and settings.

    Attributes:
        folder: of the parts.
        parts: recording ids of every part.
        base: recordings that a finished output had already; its rows stay.

    Raises:
        DataError: see :meth:`begin`.
    """

    def __init__(self, out: Path, run: Run) -> None:
        self.out, self.run = out, run
        self.folder = out.parent / f"{out.name}.parts"
        self.parts: list[list[str]] = []
        self.base: set[str] = set()
        self._lock = FileLock(str(self.folder / "lock"))

    @contextlib.contextmanager
    def begin(self, lengths: Mapping[str, int], resume: bool, facts: Mapping[str, Any]) -> Iterator[None]:
        """Make or go on with the folder; inside, nobody else writes there.

        Args:
            lengths: feature steps of every recording of the corpus.
            resume: go on with parts that are there. Recordings that the plan does not know become further parts.
            facts: what else a recording's detections depend on (rate, duration), by recording.

        Raises:
            DataError: another process is at work, parts are there and ``resume`` is off, they were begun with other
                settings, or they hold recordings that the corpus does not.
        """
        if self.folder.exists() and not resume and any(self.folder.glob("plan.json")):
            raise DataError(f"{self.folder}: an unfinished prediction; continue it with --resume, or delete the folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{self.folder}: another process is at work there") from None
        try:
            remove_temporary(self.folder)
            self._load_or_make(lengths, resume, facts)
            yield
        finally:
            self._lock.release()

    def _load_or_make(self, lengths: Mapping[str, int], resume: bool, facts: Mapping[str, Any]) -> None:
        path = self.folder / "plan.json"
        mine = {"format": FORMAT, "model": self.run.model, "settings": self.run.settings}
        if path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                theirs, self.parts = {k: known[k] for k in mine}, known["parts"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}: damaged; delete the folder {self.folder}") from None
            if changed := _changes(theirs, json.loads(json.dumps(mine))):
                raise DataError(
                    f"{self.folder}: begun with other settings ({changed}); give the same, or delete the folder"
                )
            others = [n for part in self.parts for n in part if known.get("facts", {}).get(n) != facts.get(n)]
            if others:
                raise DataError(
                    f"{self.folder}: begun with another fps or duration of {len(others)} recordings, such as "
                    f"{others[0]!r}; give the same, or delete the folder"
                )
        elif resume and self.out.is_file():
            self._take_over()
        base = self.folder / BASE
        self.base = open_results(base).recordings() if base.is_file() else set()
        planned = {name for part in self.parts for name in part} | self.base
        if foreign := planned - lengths.keys():
            raise DataError(f"{self.folder}: holds recordings that are not among the inputs, such as {min(foreign)!r}")
        names = [name for name in lengths if name not in planned]
        if names:
            self.parts += [[names[i] for i in places] for places in pack([lengths[name] for name in names])]
            with atomic_write(path) as file:
                json.dump({**mine, "facts": dict(facts), "parts": self.parts}, file)

    def _take_over(self) -> None:
        """What an earlier run with these settings finished: only what it has not is to be done."""
        try:
            if [run.key for run in open_results(self.out).runs] != [self.run.key]:
                return
        except DataError:  # some other file, which this run replaces
            return
        with atomic_write(self.folder / BASE, "wb") as file, open(self.out, "rb") as source:
            shutil.copyfileobj(source, file)

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def done(self) -> dict[int, dict[str, str]]:
        """The parts that are there: recordings that failed in them, with reasons."""
        found = {}
        for part in range(len(self.parts)):
            if self.path(part).is_file():
                results = open_results(self.path(part))
                found[part] = json.loads(results.file.metadata.metadata[FAILED])
        return found

    def finish(self) -> int:
        """Join all parts in the order of the plan to the output and delete the folder; the rows written."""
        runs: list[Run] = []
        empty: set[str] = set()

        def tables() -> Iterator[Any]:
            base = [self.folder / BASE] if self.base else []
            for path in [*base, *map(self.path, range(len(self.parts)))]:
                results = open_results(path)
                empty.update(results.runs[0].empty)
                yield from results.groups()
            runs.append(Run(**{**vars(self.run), "empty": sorted(empty)}))

        rows = join(tables(), runs, self.out)
        self.discard_all()
        return rows

    def discard_all(self) -> None:
        """Delete the folder."""
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Delete the folder if no part is in it."""
        if not any(self.folder.glob("part-*.parquet")):
            self.discard_all()


def write_part(path: Path, found: Mapping[str, Detections], failed: Mapping[str, str], run: Run) -> int:
    """Write what was found in the recordings of a part; the rows."""
    empty = sorted(name for name, d in found.items() if not len(d))
    table = rows_of(found, run)
    own = schema([Run(run.model, run.configuration, empty=empty)]).metadata[KEY]
    table = table.replace_schema_metadata({KEY: own, FAILED: json.dumps(dict(failed)).encode()})
    write_table(path, table)
    return len(table)


def _changes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    old, new = ({**x, **x["settings"]} for x in (theirs, mine))
    keys = [key for key in {**old, **new} if key != "settings" and old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)

"""Localizers on engines for many machines: a class that maps batches of recordings to detections, and a corpus on Ray Data.

``Predictor`` needs no engine: Ray Data takes it as it is, Daft in a UDF, Spark in ``mapInPandas`` (``docs/corpus.md``).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tzn.corpus.manifest import Item, id_of, length_of
from tzn.corpus.run import Corpus, Recipe, detect, keep_memory, read
from tzn.corpus.table import COLUMNS, Run, arrow, join, rows_of
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError, TznError
from tzn.files import atomic_write, remove_temporary
from tzn.localizer import Localizer
from tzn.optional import require

LOG = logging.getLogger("tzn")
FORMAT = 1
BAR_SECONDS = 1.0  # between two looks at what is written
ROWS = ("detections", "recordings")
FOUND = tuple(name for name in COLUMNS if name not in ("recording", "model", "configuration"))


class Predictor:
    """Batches of recordings in, detections out, in the kind of table that came in.

    An object is plain data until its first call, which loads the model in that process; so it can be sent anywhere.

    Args:
        model: as :func:`tzn.load` takes it; on a cluster, a path that every machine sees.
        overrides, device, min_score, top, threads: as of :class:`tzn.corpus.run.Recipe`.
        rows: "detections": a row for each, with the columns :data:`tzn.corpus.table.COLUMNS`. "recordings": a row for each
            recording, with ``recording``, ``failed`` (why there is nothing, else null) and a list of detections.
        skip: with rows of detections, leave out recordings that cannot be used, with a warning, instead of raising.

    >>> predict = Predictor("hapt", min_score=0.3)
    >>> found = predict({"recording": np.array(["still"]), "signal": [np.zeros((500, 6))]})
    >>> sorted(found)[:4], len(found["start"]) == len(found["label"])
    (['configuration', 'end', 'label', 'model'], True)
    """

    def __init__(
        self, model: str, overrides: Sequence[str] = (), *, device: str = "cpu", min_score: float | None = None,
        top: int | None = None, threads: int | None = None, rows: str = "detections", skip: bool = False,
    ) -> None:  # fmt: skip
        if rows not in ROWS:
            raise ConfigError(f"rows = {rows!r}: expected one of {', '.join(ROWS)}")
        self.recipe = Recipe(str(model), tuple(overrides), device, min_score, top, threads)
        self.rows, self.skip = rows, skip
        self._model: Localizer | None = None
        self._run: Run | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_run": None}

    def __call__(self, batch: Any) -> Any:
        """Detections of a batch.

        Args:
            batch: a pandas ``DataFrame``, an Arrow ``Table``, or a dict of columns (arrays or lists of equal length). Either
                ``path`` (files, containers, addresses) or ``signal`` (arrays ``[T, C]``, or nested lists) names the
                recordings; ``recording`` their ids (of paths: the file names by default); ``fps`` and ``duration`` are as of
                a call of the localizer, null where it is to find them.

        Raises:
            DataError: a batch of another kind or without those columns; a recording that cannot be used, unless they are
                skipped or rows are recordings.
        """
        rows = list(_rows(batch))
        found, failed = self._detect(rows)
        if failed and self.rows == "detections":
            name, reason = next(iter(failed.items()))
            if not self.skip:
                raise DataError(f"{name}: {reason}")
            LOG.warning("left out %d recordings, such as %s: %s", len(failed), name, reason)
        assert self._run is not None
        table = rows_of(found, self._run).replace_schema_metadata(None)
        if self.rows == "recordings":
            table = _nested(found, failed, table, [name for name, _ in rows], self._run)
        return _like(batch, table)

    def frames(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Each batch's detections, for engines that hand over an iterator (Spark's ``mapInPandas``)."""
        return map(self, batches)

    def _detect(self, rows: Sequence[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Detections], dict[str, str]]:
        if self._model is None:
            keep_memory()
            self._model = self.recipe.load()
            self._run = self.recipe.run(self._model)
        model, good, failed = self._model, [], {}
        for name, row in rows:
            try:
                if row.get("signal") is not None:
                    array = _array(name, row["signal"])
                    good.append(model._read(name, array, row.get("fps"), row.get("duration")))
                else:
                    good.append(read(model, Item(name, str(row["path"]), row.get("fps"), row.get("duration"))))
            except (TznError, OSError, MemoryError) as error:
                failed[name] = " ".join(str(error).split())[:300] or type(error).__name__
        found, wrong = detect(model, good, self.recipe)
        return found, {**failed, **wrong}


def _rows(batch: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(recording, columns by name) of a batch; numbers that are missing are None."""
    kind = type(batch).__module__.split(".")[0]
    if kind == "pandas":
        columns = {name: batch[name].tolist() for name in batch.columns}
    elif kind == "pyarrow":
        columns = batch.to_pydict()
    elif isinstance(batch, Mapping):
        columns = {name: list(values) for name, values in batch.items()}
    else:
        raise DataError(f"batch: a {type(batch).__name__}, expected a DataFrame, an Arrow table or a dict of columns")
    if "path" not in columns and not {"signal", "recording"} <= columns.keys():
        raise DataError(f"batch: columns {', '.join(columns)}; expected path, or recording and signal")
    sizes = {len(values) for values in columns.values()}
    if len(sizes) > 1:
        raise DataError(f"batch: columns of {', '.join(map(str, sorted(sizes)))} rows, expected one length")
    seen = set()
    for place in range(sizes.pop() if sizes else 0):
        row = {name: values[place] for name, values in columns.items()}
        for name in ("fps", "duration"):
            value = row.get(name)
            row[name] = None if value is None or value != value else float(value)
        name = str(row["recording"]) if row.get("recording") is not None else id_of(str(row["path"]))
        if name in seen:
            raise DataError(f"batch: two recordings are named {name!r}")
        seen.add(name)
        yield name, row


def _array(name: str, values: Any) -> np.ndarray:
    try:
        if isinstance(values, np.ndarray) and values.dtype == object:
            values = np.stack(list(values))
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: signal is no array [T, C] of numbers ({error})") from None


def _nested(
    found: Mapping[str, Detections], failed: Mapping[str, str], table: Any, names: Sequence[str], run: Run
) -> Any:  # fmt: skip
    """A row a recording, in the order of ``names``, of a row a detection."""
    pa = arrow()
    counts = [len(found[name]) if name in found else 0 for name in names]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    columns = [table[column].combine_chunks() for column in FOUND]
    structs = pa.StructArray.from_arrays(columns, names=list(FOUND))
    return pa.table(
        {
            "recording": pa.array(names, pa.string()),
            "failed": pa.array([failed.get(name) for name in names], pa.string()),
            "detections": pa.ListArray.from_arrays(offsets, structs),
            "model": pa.array([run.model] * len(names), pa.string()),
            "configuration": pa.array([run.configuration] * len(names), pa.string()),
        }
    )


def _like(batch: Any, table: Any) -> Any:
    kind = type(batch).__module__.split(".")[0]
    if kind == "pandas":
        return table.to_pandas()
    if kind == "pyarrow":
        return table
    return {name: table[name].to_numpy() for name in table.column_names}


# ---- a corpus on Ray Data ----


class RowWriter:
    """What an actor of the pool runs: detections of a batch, written by the actor itself as a whole file of rows.

    Ray's own writing is a task for every file, in processes beside the actors: on a machine whose cores the actors have, those
    and the way of the rows to them took a tenth of it. A batch that is done again becomes a second file.

    Args:
        predict: of rows "recordings".
        folder: of the files.
    """

    def __init__(self, predict: Predictor, folder: str) -> None:
        self.predict, self.folder = predict, folder

    def __call__(self, batch: Any) -> Any:
        """The recordings of an Arrow table that are in the file now."""
        table = self.predict(batch)
        with atomic_write(Path(self.folder) / f"{uuid.uuid4().hex}.parquet", "wb") as file:
            require("pyarrow.parquet", "tzn corpus", "corpus", "pyarrow").write_table(table, file)
        return table.select(["recording"])


def predict_on_ray(
    recipe: Recipe,
    items: Sequence[Item],
    out: Path,
    *,
    address: str = "local",
    actors: int | None = None,
    batch_size: int = 32,
    gpus: float = 0.0,
    cpus: float = 1.0,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Detections of many recordings by a pool of actors, on this machine or a cluster: ``OUT/predictions.parquet``.

    read -> map -> write: batches of the manifest's rows go to :class:`Predictor` actors, which read the recordings and write
    ``OUT/rows``, a row a recording. Started again after a stop of any kind, it does the recordings that are in
    no whole file there; where two files hold one, the join takes it once.

    Args:
        recipe: the model and what is kept; its paths must be seen by every machine.
        items: the corpus.
        out: folder, seen by every machine.
        address: "local": a Ray of its own on this machine; "auto" or an address: a cluster that runs.
        actors: in the pool; None: as many as the CPUs (or GPUs) carry.
        batch_size: recordings that an actor takes at a time; what is lost when it dies.
        gpus, cpus: of an actor; a fraction shares a GPU.
        progress: a bar on stderr, where that is a terminal.
        say: takes what a user should know.

    Raises:
        DataError: Ray is not installed, a folder of other settings, recordings that no actor could finish.
        ConfigError: options out of range.
    """
    for name, value, low in (
        ("actors", actors, 1),
        ("batch_size", batch_size, 1),
        ("gpus", gpus, 0),
        ("cpus", cpus, 0),
    ):
        if value is not None and not value >= low:
            raise ConfigError(f"{name} = {value}: expected a number of at least {low}")
    if not items:
        raise DataError("no recordings, expected at least one")
    ray = require("ray", "tzn corpus", "ray")
    require("ray.data", "tzn corpus", "ray", "ray")
    model = dataclasses.replace(recipe, device="cpu").load()
    run = recipe.run(model)
    order = sorted(items, key=lambda item: (-length_of(item, model.config, model.signal), item.recording))
    rows = out / "rows"
    _begin(out, run)
    remove_temporary(rows)
    there = _written(rows, remove=True)
    done = {name for name, (_, _, failed) in there.items() if failed is None}
    if done:
        say(f"{len(done & {item.recording for item in items})} of {len(items)} recordings are done already")
    todo = [item for item in order if item.recording not in done]
    if todo:
        _map(ray, recipe, todo, out, address, actors, batch_size, gpus, cpus, len(order) - len(todo), progress)
    return _finish(out, run, order)


def _begin(out: Path, run: Run) -> None:
    """The folder's settings are these, or become them."""
    (out / "rows").mkdir(parents=True, exist_ok=True)
    mine = {"format": FORMAT, "model": run.model, "configuration": run.configuration, "settings": run.settings}
    path = out / "corpus.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in ("format", "model", "configuration") if known.get(key) != mine[key]]:
            was, now = known.get("settings", {}), run.settings
            keys = [k for k in {**was, **now} if was.get(k) != now.get(k)] or changed
            raise DataError(f"{out}: begun with other settings ({', '.join(keys)}); give the same, or another folder")
        return
    with atomic_write(path) as file:
        json.dump(mine, file)


def _map(
    ray: Any, recipe: Recipe, todo: Sequence[Item], out: Path, address: str, actors: int | None, batch_size: int,
    gpus: float, cpus: float, before: int, progress: bool,
) -> None:  # fmt: skip
    pa = arrow()
    fields = {"recording": pa.string(), "path": pa.string(), "fps": pa.float64(), "duration": pa.float64()}
    blocks = []  # a block is a task and a file of rows; files of a manifest Ray would put together
    for begin in range(0, len(todo), batch_size):
        part = todo[begin : begin + batch_size]
        blocks.append(
            pa.table({name: pa.array([getattr(item, name) for item in part], kind) for name, kind in fields.items()})
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mine = not ray.is_initialized()
    if mine:
        own = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    try:
        there = ray.cluster_resources()
        if actors is None:
            actors = max(int(there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1) / max(cpus, 0.01)), 1)
        if gpus > there.get("GPU", 0):
            raise ConfigError(f"gpus = {gpus:g}: this Ray has {there.get('GPU', 0):g} GPUs")
        device = recipe.device if not gpus or recipe.device != "cpu" else "cuda"
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # they count blocks and operators, not recordings
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        settings = {
            "overrides": recipe.overrides, "device": device, "min_score": recipe.min_score, "top": recipe.top,
            "threads": recipe.threads or max(int(cpus), 1), "rows": "recordings",
        }  # fmt: skip
        predict = Predictor(recipe.source, **settings)  # type: ignore[arg-type]
        done = ray.data.from_arrow(blocks).map_batches(
            RowWriter, fn_constructor_args=(predict, str((out / "rows").absolute())), batch_size=batch_size,
            batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=actors), num_gpus=gpus or None, num_cpus=cpus,
        )  # fmt: skip
        # That an actor is started again, and its batch done again, however often, is what a pool does by itself.
        with _bar(out / "rows", before, len(todo), progress):
            done.materialize()
    finally:
        if mine:
            ray.shutdown()


@contextlib.contextmanager
def _bar(rows: Path, before: int, todo: int, progress: bool) -> Iterator[tqdm[Any]]:
    """Recordings done, their rate and the time left, by the files that appear in ``rows``."""
    known = {path.name for path in rows.glob("*.parquet")}
    over = threading.Event()
    bar = tqdm(
        total=before + todo,
        initial=before,
        desc="corpus",
        unit="recording",
        smoothing=0.05,
        disable=None if progress else True,
    )

    def watch() -> None:
        while not over.wait(BAR_SECONDS):
            look()

    def look() -> None:
        for path in rows.glob("*.parquet"):
            if path.name not in known:
                with contextlib.suppress(OSError, ValueError):  # it is being written
                    bar.update(
                        int(require("pyarrow.parquet", "tzn corpus", "corpus", "pyarrow").read_metadata(path).num_rows)
                    )
                    known.add(path.name)

    watcher = threading.Thread(target=watch, daemon=True)
    with bar:
        if not bar.disable:
            watcher.start()
        try:
            yield bar
        finally:
            over.set()
            if not bar.disable:
                watcher.join()
                look()


def _written(rows: Path, *, remove: bool = False) -> dict[str, tuple[Path, int, str | None]]:
    """(file, row, why it failed) of every recording in whole files; of several, one that did not fail goes first."""
    parquet = require("pyarrow.parquet", "tzn corpus", "corpus", "pyarrow")
    found: dict[str, tuple[Path, int, str | None]] = {}
    for path in sorted(rows.glob("*.parquet")):
        try:
            table = parquet.read_table(path, columns=["recording", "failed"])
        except (OSError, ValueError):  # a kill cut it off: its recordings are done again
            if remove:
                path.unlink()
            continue
        for place, (name, failed) in enumerate(zip(*(table[c].to_pylist() for c in table.column_names), strict=True)):
            if name not in found or (found[name][2] is not None and failed is None):
                found[name] = (path, place, failed)
    return found


def _finish(out: Path, run: Run, order: Sequence[Item]) -> Corpus:
    """Join the rows in the order of ``order``, one recording once."""
    pa, parquet = arrow(), require("pyarrow.parquet", "tzn corpus", "corpus", "pyarrow")
    written = _written(out / "rows")
    missing = [item.recording for item in order if item.recording not in written]
    if missing:
        raise DataError(f"{out}: {len(missing)} recordings were not done, such as {missing[0]!r}; start it again")
    failed = {x.recording: reason for x in order if (reason := written[x.recording][2]) is not None}
    empty: list[str] = []
    runs: list[Run] = []

    def tables() -> Iterator[Any]:
        opened: Path | None = None
        table: Any = None
        for item in order:
            path, place, reason = written[item.recording]
            if reason is not None:
                continue
            if path != opened:
                opened, table = path, parquet.read_table(path)
            row = table.slice(place, 1)
            found = row["detections"].combine_chunks().flatten()
            if not len(found):
                empty.append(item.recording)
                continue
            columns = {"recording": pa.array([item.recording] * len(found), pa.string())}
            columns |= dict(zip(FOUND, found.flatten(), strict=True))
            columns |= {c: pa.array([row[c][0].as_py()] * len(found), pa.string()) for c in ("model", "configuration")}
            yield pa.table([columns[name] for name in COLUMNS], names=list(COLUMNS))
        runs.append(dataclasses.replace(run, empty=sorted(empty)))

    rows = join(tables(), runs, out / "predictions.parquet")
    report = out / "failed.csv"
    report.unlink(missing_ok=True)
    if failed:
        paths = {item.recording: item.path for item in order}
        with atomic_write(report) as file:
            writer = csv.writer(file)
            writer.writerow(("recording", "path", "reason"))
            writer.writerows((name, paths[name], reason) for name, reason in sorted(failed.items()))
    return Corpus(len(order) - len(failed), rows, failed)

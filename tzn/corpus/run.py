"""A corpus on one machine: loader processes that read ahead, worker processes that compute, parts that are written whole.

A worker and its loader are a pair joined by a pipe; the parent gives parts to loaders, and workers tell it what is
written. No two processes share a queue or a lock, so any of them may be killed: the parent starts a new pair and gives it
the parts that were under way.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import json
import multiprocessing
import os
import signal as signals
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tzn.corpus.manifest import Item, length_of
from tzn.corpus.plan import Plan, write_part
from tzn.corpus.table import Run, arrow, fingerprint
from tzn.data.stores import read_anywhere
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError, LimitWarning, TznError
from tzn.files import atomic_write
from tzn.inference.predict import Job, batches, confident
from tzn.localizer import Localizer, load

AHEAD = 3  # parts given to a pair: one that is computed, one that is read and waits, one to be read
ATTEMPTS = 3  # deaths at a part before its recordings are taken one by one, to find the one that kills
# One thread has the machine to itself less than two have: longer recordings share a pass than in a single process. Of LUDB's
# 1,850 steps, eight together take four fifths of the CPU time of one by one.
TOGETHER_STEPS = 4096
BATCH_STEPS = 16_384
PRODUCTS_KEPT = 64  # shapes of matrix products that stay compiled


@dataclass(frozen=True)
class Recipe:
    """What makes detections of recordings, as plain data that any process or machine can start from.

    Attributes:
        source: as :func:`tzn.load` takes it.
        overrides: likewise.
        device: where the network runs.
        min_score: detections below are left out; None: all stay.
        top: at most so many a recording; None: all.
        threads: of PyTorch in a process; None: as it is.
    """

    source: str
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    min_score: float | None = None
    top: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score = {self.min_score}: expected a score in [0, 1]")
        if self.top is not None and self.top < 1:
            raise ConfigError(f"top = {self.top}: expected a positive number of detections")

    def load(self) -> Localizer:
        """The localizer, in this process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load(self.source, self.overrides, device=self.device)

    def run(self, model: Localizer) -> Run:
        """The fingerprints of what it makes."""
        digest = _weights(model)
        settings = {
            "classes": list(model.classes), "min_score": self.min_score, "top": self.top,
            "signal": None if model.signal is None else dataclasses.asdict(model.signal),
            **{f"data.{k}": v for k, v in dataclasses.asdict(model.config.data).items()},
            **{f"inference.{k}": v for k, v in dataclasses.asdict(model.config.inference).items()},
        }  # fmt: skip
        settings = json.loads(json.dumps(settings))
        return Run(digest, fingerprint(settings), settings, list(model.classes), model.score_threshold)


def _weights(model: Localizer) -> str:
    from tzn.inference.predict import _digest

    return str(_digest(model.network))


def read(model: Localizer, item: Item) -> tuple[Job, Tensor]:
    """Features of a recording, wherever it lies; arguments and errors as of a call of the localizer."""
    with read_anywhere(item.path, model.config.data) as found:
        job, features = model._read(item.recording, found, item.fps, item.duration)
    return dataclasses.replace(job, name=item.recording), features


def detect(
    model: Localizer, recordings: Sequence[tuple[Job, Tensor]], recipe: Recipe
) -> tuple[dict[str, Detections], dict[str, str]]:
    """Detections, and why recordings have none, by recording; those of similar length share a forward pass.

    Where a pass fails, its recordings are tried one by one, so that a bad one takes none with it.
    """
    found: dict[str, Detections] = {}
    failed: dict[str, str] = {}
    settings = model.config.inference
    most = min(TOGETHER_STEPS, settings.chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # of recordings whose names it does not say
        for batch in batches(iter(recordings), most, BATCH_STEPS):
            try:
                found |= model._run(batch, settings)
            except (RuntimeError, TznError, MemoryError, ValueError):
                for one in batch:
                    try:
                        found |= model._run([one], settings)
                    except (RuntimeError, TznError, MemoryError, ValueError) as error:
                        failed[one[0].name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    # In the order in which they were given.
    names = [job.name for job, _ in recordings if job.name in found]
    return {name: confident(found[name], recipe.min_score, recipe.top) for name in names}, failed


# ---- the processes ----


def _tie_to_parent() -> None:
    """Die with the parent, and leave Ctrl-C to it."""
    signals.signal(signals.SIGINT, signals.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signals.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def keep_memory() -> None:
    """Of a process that computes recording after recording, before it does: memory is kept where that helps, and only there.

    glibc keeps freed memory for the next pass instead of giving it back page by page: a seventh of the CPU time of HAPT's
    recordings went into the pages. oneDNN keeps a compiled matrix product for each of the last 1,024 shapes, and every
    recording has shapes of its own: two workers grew from 0.9 to 3.1 GB in four minutes. It reads its limit at the first
    product; one that is set already stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 64 << 20)  # M_TOP_PAD


def _context() -> Any:
    """How processes start: forked from one that has imported everything (:mod:`tzn.corpus.warm`), where there is forking."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # where there is none, it may not import

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tzn.corpus.warm"])
    forkserver.ensure_running()  # imports beside whatever this process does next
    return context


def _mark(folder: Path, part: int) -> Path:
    """Where a part that is taken recording by recording says at which it is."""
    return folder / f"at-{part:06d}"


def _loader(recipe: Recipe, folder: Path, orders: Connection, ready: Connection) -> None:
    """Reads parts: (part, careful, [(job, array)], {recording: why not}) for every order (part, careful, items)."""
    _tie_to_parent()
    with contextlib.suppress(EOFError, BrokenPipeError, OSError):
        model = dataclasses.replace(recipe, device="cpu", threads=1).load()
        while True:
            part, careful, items = orders.recv()
            good, failed = [], {}
            for item in items:
                if careful:
                    _mark(folder, part).write_text(item.recording, encoding="utf-8")
                try:
                    job, features = read(model, item)
                    good.append((job, features.numpy()))
                except (TznError, OSError, MemoryError) as error:
                    failed[item.recording] = " ".join(str(error).split())[:300] or type(error).__name__
            ready.send((part, careful, good, failed))


def _worker(recipe: Recipe, run: Run, folder: Path, ready: Connection, told: Connection) -> None:
    """Computes what the loader read and writes the part; tells the parent (part, rows, failed)."""
    _tie_to_parent()
    keep_memory()
    with contextlib.suppress(EOFError, BrokenPipeError):
        model = recipe.load()
        while True:
            part, careful, good, failed = ready.recv()
            recordings = [(job, torch.from_numpy(features)) for job, features in good]
            found: dict[str, Detections] = {}
            wrong: dict[str, str] = {}
            for together in [[one] for one in recordings] if careful else [recordings]:
                if careful:
                    _mark(folder, part).write_text(together[0][0].name, encoding="utf-8")
                some, others = detect(model, together, recipe)
                found, wrong = {**found, **some}, {**wrong, **others}
            try:
                rows = write_part(folder / f"part-{part:06d}.parquet", found, {**failed, **wrong}, run)
            except OSError as error:
                told.send(("error", f"{error.filename or folder}: cannot be written ({error.strerror or error})"))
                return
            told.send((part, rows, {**failed, **wrong}))


@dataclass
class _Pair:
    """A loader and its worker, as the parent sees them."""

    loader: Any
    worker: Any
    orders: Connection
    told: Connection
    parts: list[int] = field(default_factory=list)  # under way, in order

    def stop(self) -> None:
        for process in (self.loader, self.worker):
            process.kill()
            process.join()
        self.orders.close()
        self.told.close()


@dataclass
class Corpus:
    """What was done: recordings with results and rows written, and why recordings failed, by id."""

    recordings: int
    rows: int
    failed: dict[str, str]
    deaths: int = 0  # of worker processes


def predict_corpus(
    recipe: Recipe,
    items: Sequence[Item],
    out: Path,
    *,
    workers: int | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
    started: Callable[[list[int]], None] = lambda processes: None,
) -> Corpus:
    """Detections of many recordings as one Parquet table, by ``workers`` processes.

    Recordings that cannot be used are left out and reported, here and in ``OUT.failed.csv``; a file that kills its worker
    twice is one of them. Every finished part is on the disk under its own name before it counts; ``resume`` goes on after
    a kill at any point, tries failed recordings again, and gives the file that an undisturbed run gives.

    Args:
        recipe: the model and what is kept.
        items: the corpus; ids must differ.
        out: ``.parquet`` file; see :data:`tzn.corpus.table.COLUMNS`.
        workers: processes that compute, each with a loader process; None: one a core, or one on other devices than the CPU.
        resume: go on with ``OUT.parts``.
        progress: a bar on stderr, where that is a terminal.
        say: takes what a user should know, line by line.
        started: is told the process ids of all pairs whenever they change.

    Raises:
        DataError: no recordings, an output that cannot be written, parts that do not fit, every recording failed.
        ConfigError: workers below 1, a device that is not there.
    """
    if out.suffix != ".parquet":
        raise DataError(f"{out}: a corpus is written as Parquet, expected a name that ends in .parquet")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: expected a number of processes, at least 1")
    if not items:
        raise DataError("no recordings, expected at least one")
    arrow()
    context = _context()
    model = dataclasses.replace(recipe, device="cpu").load()
    run = recipe.run(model)
    plan, by_id = Plan(out, run), {item.recording: item for item in items}
    facts = {item.recording: [item.fps, item.duration] for item in items if item.fps or item.duration}
    lengths = {item.recording: length_of(item, model.config, model.signal) for item in items}
    try:
        with plan.begin(lengths, resume, facts):
            return _run_plan(context, recipe, run, plan, by_id, lengths, out, workers, progress, say, started)
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from None


def _run_plan(
    context: Any, recipe: Recipe, run: Run, plan: Plan, items: Mapping[str, Item], lengths: Mapping[str, int], out: Path,
    workers: int | None, progress: bool, say: Callable[[str], None], started: Callable[[list[int]], None],
) -> Corpus:  # fmt: skip
    there = plan.done()
    # What failed may have been repaired since; its part is made again.
    finished = {part for part, failed in there.items() if not failed}
    todo = [part for part in range(len(plan.parts)) if part not in finished]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(workers or (cores if recipe.device == "cpu" else 1), max(len(todo), 1))
    recipe = dataclasses.replace(recipe, threads=recipe.threads or max(cores // count, 1))
    ready = [*plan.base, *(name for part in finished for name in plan.parts[part])]
    before = len(ready)
    if before:
        say(f"{before} of {len(items)} recordings are done already")
    failed: dict[str, str] = {}
    deaths = 0
    bar = tqdm(
        total=sum(lengths.values()), initial=sum(lengths[name] for name in ready), unit="step", unit_scale=True,
        desc=f"{before}/{len(items)} recordings", disable=None if progress else True,
    )  # fmt: skip
    try:
        with bar:
            ended, begin = before, time.monotonic()
            for part, wrong, died in _work(context, recipe, run, plan, items, todo, count, started):
                deaths += died
                if part is None:
                    continue
                failed |= wrong
                ended += len(plan.parts[part])
                bar.set_description(f"{ended}/{len(items)} recordings", refresh=False)
                rate = (ended - before) / max(time.monotonic() - begin, 1e-9)
                bar.set_postfix_str(f"{rate:.1f} recordings/s, {len(failed)} failed", refresh=False)
                bar.update(sum(lengths[name] for name in plan.parts[part]))
    except BaseException as error:
        kept = sum(len(plan.parts[part]) for part in plan.done())
        plan.discard()
        if kept and isinstance(error, (KeyboardInterrupt, DataError)):
            text = str(error) or "stopped"
            raise type(error)(f"{text}; {kept} recordings are kept in {plan.folder}: continue with --resume") from None
        raise
    report = out.parent / f"{out.name}.failed.csv"
    if failed:
        with atomic_write(report) as file:
            writer = csv.writer(file)
            writer.writerow(("recording", "path", "reason"))
            writer.writerows((name, items[name].path, reason) for name, reason in sorted(failed.items()))
    else:
        report.unlink(missing_ok=True)
    if len(failed) == len(items):
        plan.discard_all()
        name, reason = next(iter(failed.items()))
        raise DataError(f"{name}: {reason}; and no other recording could be used (see {report})")
    return Corpus(len(items) - len(failed), plan.finish(), failed, deaths)


def _work(
    context: Any, recipe: Recipe, run: Run, plan: Plan, items: Mapping[str, Item], todo: Sequence[int], count: int,
    started: Callable[[list[int]], None],
) -> Iterator[tuple[int | None, dict[str, str], int]]:  # fmt: skip
    """(part, recordings that failed in it, 0) for every part that is written; (None, {}, 1) for a death of a process."""
    waiting = list(reversed(todo))
    suspect: dict[int, int] = {}  # deaths while this part was computed
    given_up: dict[int, dict[str, str]] = {}
    pairs: list[_Pair] = []

    def start() -> _Pair:
        order_out, order_in = context.Pipe(duplex=False)
        ready_out, ready_in = context.Pipe(duplex=False)
        told_out, told_in = context.Pipe(duplex=False)
        loader = context.Process(target=_loader, args=(recipe, plan.folder, order_out, ready_in), daemon=True)
        worker = context.Process(target=_worker, args=(recipe, run, plan.folder, ready_out, told_in), daemon=True)
        loader.start()
        worker.start()
        # The children's ends: a pipe ends when its last writer is gone.
        for end in (order_out, ready_out, ready_in, told_in):
            end.close()
        return _Pair(loader, worker, order_in, told_out)

    def feed(pair: _Pair) -> None:
        while waiting and len(pair.parts) < AHEAD:
            part = waiting.pop()
            wanted = [items[name] for name in plan.parts[part] if name not in given_up.get(part, {})]
            pair.parts.append(part)
            with contextlib.suppress(BrokenPipeError, OSError):  # its death is seen below
                pair.orders.send((part, suspect.get(part, 0) >= ATTEMPTS, wanted))

    born = 0
    try:
        while waiting or any(pair.parts for pair in pairs):
            while len(pairs) < count and waiting:
                pairs.append(start())
                born += 1
                started([p.pid for pair in pairs for p in (pair.loader, pair.worker)])
            for pair in pairs:
                feed(pair)
            sentinels: list[Any] = [s for pair in pairs for s in (pair.loader.sentinel, pair.worker.sentinel)]
            ended = wait([pair.told for pair in pairs] + sentinels)
            for pair in list(pairs):
                dead = pair.loader.sentinel in ended or pair.worker.sentinel in ended
                while pair.told.poll():
                    try:
                        part, _rows, failed = _told(pair.told)
                    except EOFError:
                        dead = True
                        break
                    pair.parts.remove(part)
                    yield part, {**given_up.get(part, {}), **failed}, 0
                if not dead:
                    continue
                pairs.remove(pair)
                code = pair.worker.exitcode if pair.worker.exitcode is not None else pair.loader.exitcode
                pair.stop()
                if born > count + 3 * len(todo) + 10:
                    raise DataError(f"worker processes die again and again (last: {_reason(code)})")
                yield None, {}, 1
                if pair.parts:
                    _suspect(pair.parts[0], plan, suspect, given_up, _reason(code))
                waiting += reversed(pair.parts)
    finally:
        for pair in pairs:
            pair.stop()


def _told(told: Connection) -> tuple[int, int, dict[str, str]]:
    message = told.recv()
    if message[0] == "error":
        raise DataError(message[1])
    return message  # type: ignore[no-any-return]


def _suspect(
    part: int, plan: Plan, deaths: dict[int, int], given_up: dict[int, dict[str, str]], reason: str
) -> None:  # fmt: skip
    """A process died at a part: give up the recording that it was at, once it took them one by one."""
    deaths[part] = deaths.get(part, 0) + 1
    if deaths[part] <= ATTEMPTS:
        return
    with contextlib.suppress(OSError):
        name = _mark(plan.folder, part).read_text(encoding="utf-8")
        if name in plan.parts[part]:
            given_up.setdefault(part, {})[name] = f"the process died that worked at it, {deaths[part]} times ({reason})"


def _reason(code: int | None) -> str:
    if code is None:
        return "unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


__all__ = ["Corpus", "Item", "Recipe", "detect", "keep_memory", "predict_corpus", "read"]

"""How fast: a loop over recordings, worker processes, Ray's actors. The first two have to give the same detections."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tzn
from benchmarks.corpus.kills import below
from benchmarks.corpus.recordings import KINDS, RATE, SHARE, items_of, some
from benchmarks.lib import parity
from tzn.corpus.run import Recipe, predict_corpus

MEMORY_EVERY = 2.0  # seconds
ATOL_SECONDS, ATOL_SCORE = 0.02, 2e-3  # rounding of another batch
CONFIDENT = 0.3  # of the detections that parity compares: far weaker ones change places for less than rounding
BATCH = {"ludb": 64, "hapt": 16}  # recordings that an actor takes at a time: about a second of work
SKIPPED_FILES = 2  # first files of each actor: it loads its model


def stage_parity(paths: dict[str, list[Path]], folder: Path, count: int) -> dict[str, Any]:
    """A corpus run against a loop, detection by detection.

    Raises:
        NoParity: they differ by more than rounding.
    """
    import pyarrow.parquet as pq

    found = {}
    for kind in KINDS:
        chosen = some(paths[kind], round(count * SHARE[kind]))
        out = folder / f"parity_{kind}.parquet"
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
        predict_corpus(Recipe(kind, min_score=CONFIDENT), items_of(chosen), out, workers=2, progress=False)
        rows: dict[str, list[Any]] = {}
        for row in pq.read_table(out).to_pylist():
            rows.setdefault(row["recording"], []).append((row["start"], row["end"], row["score"], row["label"]))
        model, compared, worst = tzn.load(kind), 0, 0.0
        for path in chosen:
            wanted = [(s.start, s.end, s.score, s.label) for s in model(path).filter(score=CONFIDENT)]
            mine = rows.get(path.stem, [])
            # One whose score lies at the limit may be on its other side.
            sure = [sum(abs(x[2] - CONFIDENT) > ATOL_SCORE for x in rows) for rows in (mine, wanted)]
            parity.same(f"detections of {path.stem}", *sure, rtol=0, atol=0)
            for a in wanted:
                if abs(a[2] - CONFIDENT) <= ATOL_SCORE:
                    continue
                near = min(
                    (abs(a[0] - b[0]) + abs(a[1] - b[1]) + abs(a[2] - b[2]) for b in mine if b[3] == a[3]), default=9.9
                )
                worst, compared = max(worst, near), compared + 1
        if worst > 2 * ATOL_SECONDS + ATOL_SCORE or not compared:
            raise parity.NoParity(
                f"{kind}: a detection differs by {worst:g} (start + end + score), {compared} compared"
            )
        found[kind] = {"recordings": len(chosen), "detections": compared, "largest_difference": worst}
    return found


def stage_loop(paths: dict[str, list[Path]], folder: Path, count: int) -> dict[str, Any]:
    """Recordings a second of ``for path in paths: model(path)``, and detections a recording."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        model, chosen = tzn.load(kind), some(paths[kind], round(count * SHARE[kind]))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for path in chosen[:3]:
                model(path)
            begin, cpu, detections = time.perf_counter(), time.process_time(), 0
            for path in chosen:
                detections += len(model(path))
            seconds = time.perf_counter() - begin
            found.setdefault(kind, {})[f"threads_{threads}"] = {
                "recordings": len(chosen), "per_second": len(chosen) / seconds,
                "cpu_ms": 1000 * (time.process_time() - cpu) / len(chosen), "detections": detections / len(chosen),
            }  # fmt: skip
    return found


def stage_corpus(paths: dict[str, list[Path]], folder: Path, workers: int = 2) -> dict[str, Any]:
    """The whole corpus by ``predict_corpus``: rate, and the memory of all its processes over time."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        out = folder / f"all_{kind}.parquet"
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
        processes: list[int] = []
        samples: list[tuple[float, float, float]] = []
        mine = time.process_time()
        spent: dict[int, float] = {}  # CPU seconds by process
        begin, over = time.perf_counter(), threading.Event()

        def started(mine: list[int], processes: list[int] = processes) -> None:
            processes[:] = mine

        def watch(
            processes: list[int] = processes,
            samples: list[Any] = samples,
            begin: float = begin,
            over: Any = over,
            spent: dict[int, float] = spent,
        ) -> None:
            while not over.is_set():
                children = sum(proportional_bytes(pid) for pid in list(processes))
                spent.update({pid: seconds for pid in list(processes) if (seconds := cpu_seconds(pid))})
                samples.append((time.perf_counter() - begin, children / 1e6, proportional_bytes(os.getpid()) / 1e6))
                over.wait(MEMORY_EVERY)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        made = predict_corpus(Recipe(kind), items_of(paths[kind]), out, workers=workers, started=started)
        seconds = time.perf_counter() - begin
        over.set()
        watcher.join()
        quarter = max(len(samples) // 4, 1)
        parts = [samples[i * quarter : (i + 1) * quarter] for i in range(4)]
        found[kind] = {
            "recordings": made.recordings, "rows": made.rows, "failed": len(made.failed), "seconds": seconds,
            "per_second": made.recordings / seconds, "bytes": out.stat().st_size, "workers": workers,
            "cpu_ms": 1000 * (sum(spent.values()) + time.process_time() - mine) / made.recordings,
            "hours": sum(np.load(path, mmap_mode="r").shape[0] for path in paths[kind]) / RATE[kind] / 3600,
            "input_bytes": sum(path.stat().st_size for path in paths[kind]),
            "memory_mb": [
                {"children": statistics.median(x[1] for x in part), "parent": statistics.median(x[2] for x in part)}
                for part in parts if part
            ],
            "samples": [[round(v, 1) for v in x] for x in samples],
        }  # fmt: skip
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process so far; 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class RayCpu(threading.Thread):
    """CPU seconds of actors, of this process (the driver) and of everything else below it, sampled while a block runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._spent: dict[int, float] = {}
        self._actors: set[int] = set()
        self.samples: list[tuple[float, dict[str, float]]] = []

    def __enter__(self) -> RayCpu:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(MEMORY_EVERY / 4):
            self._actors.update(below(os.getpid(), "corpus"))
            for pid in below(os.getpid(), "everything"):
                self._spent[pid] = cpu_seconds(pid) or self._spent.get(pid, 0.0)
            of_actors = sum(self._spent.get(pid, 0.0) for pid in self._actors)
            others = sum(self._spent.values()) - of_actors
            self.samples.append((time.time(), {"actors": of_actors, "driver": time.process_time(), "others": others}))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Seconds spent between two times."""
        times = [when for when, _ in self.samples]
        return {
            who: float(np.diff(np.interp([begin, end], times, [spent[who] for _, spent in self.samples]))[0])
            for who in self.samples[0][1]
        }


def proportional_bytes(pid: int) -> float:
    """Memory of a process, what it shares with others divided among them; 0: it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def stage_ray(paths: dict[str, list[Path]], folder: Path, count: int, actors: int) -> dict[str, Any]:
    """Recordings a second of an actor pool, from when every actor has written its first files on."""
    import ray

    from tzn.distributed import predict_on_ray

    found = {}
    cores = os.cpu_count() or 1
    # Ray schedules by what it is told: more actors than cores only where it believes in as many.
    ray.init(num_cpus=max(actors + 1, cores), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for kind in KINDS:
        out = folder / f"ray_{kind}"
        shutil.rmtree(out, ignore_errors=True)
        chosen, begin = some(paths[kind], round(count * SHARE[kind])), time.perf_counter()
        batch_size = min(BATCH[kind], max(len(chosen) // 24, 1))
        # The order of the corpus is longest first; a pool of the same recordings for every number of actors.
        with RayCpu() as cpu:
            made = predict_on_ray(Recipe(kind, threads=1), items_of(chosen), out, actors=actors, batch_size=batch_size)
        wall = time.perf_counter() - begin
        files = sorted((path.stat().st_mtime, path) for path in (out / "rows").glob("*.parquet"))
        skip = max(min(SKIPPED_FILES * actors, len(files) - 2), 1)
        steps = sum(_steps(path, paths[kind]) for _, path in files[skip:])
        every = sum(_steps(path, paths[kind]) for _, path in files)
        span = files[-1][0] - files[skip - 1][0]
        spent_by = cpu.between(files[skip - 1][0], files[-1][0])
        found[kind] = {
            "recordings": made.recordings, "wall_seconds": wall, "per_second_with_start": made.recordings / wall,
            "per_second": made.recordings * steps / every / span, "actors": actors, "batch_size": batch_size,
            "cpu_ms": {who: 1000 * spent * every / steps / made.recordings for who, spent in spent_by.items()},
        }  # fmt: skip
    ray.shutdown()
    return found


def _steps(rows: Path, paths: list[Path]) -> int:
    """Bytes of the recordings in a file of rows: as good as steps for shares."""
    import pyarrow.parquet as pq

    folder = paths[0].parent
    return sum(
        (folder / f"{name}.npy").stat().st_size for name in pq.read_table(rows, columns=["recording"])[0].to_pylist()
    )

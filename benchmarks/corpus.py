"""A corpus of 20,000 synthetic recordings of LUDB's and HAPT's shape on this machine: rates, memory, kills, Ray, serving.

usage: python -m benchmarks.corpus [--recordings 20000] [--folder build/corpus] [--stages …] [--smoke] [--out FOLDER]

Three quarters are electrocardiograms (12 leads, 250 samples a second, 4.7 to 8.9 s) for the model ``ludb``, a quarter motion
sensors (6 channels, 50 samples a second, 3.3 to 10.7 min) for the model ``hapt``: lengths as the real sets have them, signals
drawn so that the models find about as much in them. They are made in --folder first, and stay there for the next time.

Stages: ``parity`` (ends the program unless a corpus run gives the detections of a loop), ``loop`` (a loop over recordings, one
and two threads), ``corpus`` (all of them, with memory over time), ``ray`` (1, 2, 4 actors), ``kill`` (Ray's driver and actors
are killed; same rows), ``serve`` (loopback). Every stage is a process of its own, and writes what it measured at once.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal as signals
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import tzn
from benchmarks.lib import parity
from benchmarks.lib.provenance import facts, line, parser, processor, write
from benchmarks.lib.tables import table
from tzn.corpus.manifest import Item
from tzn.corpus.run import Recipe, predict_corpus
from tzn.files import atomic_write

KINDS = ("ludb", "hapt")
SHARE = {"ludb": 0.75, "hapt": 0.25}
RATE = {"ludb": 250.0, "hapt": 50.0}  # samples a second
# On paper: a user's archive, and machines to rent. The price is an assumption, everything else is measured.
HOURS, MACHINES, CORES, DOLLARS = 100_000, 64, 16, 0.04  # dollars per core and hour
STAGES = ("parity", "loop", "corpus", "ray", "kill", "serve")
COUNTS = {"parity": 60, "loop": 400, "ray": 1600, "kill": 240}  # recordings of all kinds that a stage takes
CLIENTS = (1, 4, 16)
GOALS = {"over_loop": 3.0, "linear": 0.9}
MEMORY_EVERY = 2.0  # seconds
ATOL_SECONDS, ATOL_SCORE = 0.02, 2e-3  # rounding of another batch
CONFIDENT = 0.3  # of the detections that parity compares: far weaker ones change places for less than rounding
SKIPPED_FILES = 2  # first files of each actor: it loads its model
STAGE_PROGRAM = [sys.executable, "-m", "benchmarks.corpus"]


# ---- recordings ----


def ecg(rng: np.random.Generator) -> np.ndarray:
    """``[T, 12]`` float32, unit of a standardised lead: P, QRS and T waves at 50 to 110 beats a minute, wander and noise."""
    steps, rate = int(rng.integers(1178, 2226)), 250.0
    time_ = np.arange(steps) / rate
    wave = np.zeros(steps)
    leads = rng.normal(0.6, 0.5, (3, 12))
    parts = np.zeros((3, steps))
    at, period = rng.uniform(0, 0.5), 60 / rng.uniform(50, 110)
    while at < time_[-1] + 1:
        for part, (shift, width, height) in enumerate(((-0.17, 0.022, 0.15), (0.0, 0.012, 1.2), (0.28, 0.045, 0.35))):
            parts[part] += height * np.exp(-0.5 * ((time_ - at - shift) / width) ** 2)
        at += period * rng.normal(1, 0.03)
    wave = 0.05 * np.sin(2 * np.pi * 0.3 * time_ + rng.uniform(0, 6))
    return (500 * (parts.T @ leads + wave[:, None] + rng.normal(0, 0.015, (steps, 12)))).astype(np.float32)


def motion(rng: np.random.Generator) -> np.ndarray:
    """``[T, 6]`` float32, g and rad/s: still, standing and walking by turns of 5 to 25 s, as a phone on a waist has them."""
    samples = 5 * int(np.clip(rng.normal(3681, 900), 1979, 6417))
    out = np.zeros((samples, 6), dtype=np.float32)
    begin = 0
    while begin < samples:
        length = min(int(rng.uniform(5, 25) * 50), samples - begin)
        time_ = np.arange(length) / 50
        gravity = np.eye(3)[rng.integers(0, 3)] * rng.choice([-1, 1]) * 0.97 + rng.normal(0, 0.08, 3)
        move = rng.choice([0.0, 0.0, 1.0])
        phase, pace = rng.uniform(0, 6, 6), rng.uniform(1.6, 2.2)
        swing = move * np.sin(2 * np.pi * pace * time_[:, None] * np.array([1, 1, 2, 1, 2, 1]) + phase)
        out[begin : begin + length, :3] = gravity + 0.25 * swing[:, :3]
        out[begin : begin + length, 3:] = 0.5 * swing[:, 3:]
        begin += length
    return out + rng.normal(0, 0.02, out.shape).astype(np.float32)


def make(folder: Path, count: int) -> dict[str, list[Path]]:
    """Recordings of each kind; those that are there already stay."""
    found: dict[str, list[Path]] = {}
    for kind, draw in (("ludb", ecg), ("hapt", motion)):
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        found[kind] = [place / f"{kind}{i:06d}.npy" for i in range(round(count * SHARE[kind]))]
        for i, path in enumerate(tqdm(found[kind], desc=f"made {kind}", disable=None)):
            if not path.exists():
                # Renamed as everywhere, but not forced to the disk one by one: they can be made again.
                np.save(
                    part := path.with_name(f".{path.name}"),
                    draw(np.random.default_rng([i, KINDS.index(kind)])).astype(np.float16),
                )
                os.replace(part, path)
    return found


def some(paths: list[Path], count: int) -> list[Path]:
    """``count`` of them, evenly spread."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))]


def items_of(paths: list[Path]) -> list[Item]:
    return [Item(path.stem, str(path)) for path in paths]


# ---- stages ----


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
        begin, over = time.perf_counter(), threading.Event()

        def started(mine: list[int], processes: list[int] = processes) -> None:
            processes[:] = mine

        def watch(
            processes: list[int] = processes, samples: list[Any] = samples, begin: float = begin, over: Any = over
        ) -> None:
            while not over.is_set():
                children = sum(proportional_bytes(pid) for pid in list(processes))
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
            "hours": sum(np.load(path, mmap_mode="r").shape[0] for path in paths[kind]) / RATE[kind] / 3600,
            "input_bytes": sum(path.stat().st_size for path in paths[kind]),
            "memory_mb": [
                {"children": statistics.median(x[1] for x in part), "parent": statistics.median(x[2] for x in part)}
                for part in parts if part
            ],
            "samples": [[round(v, 1) for v in x] for x in samples],
        }  # fmt: skip
    return found


def proportional_bytes(pid: int) -> float:
    """Memory of a process, what it shares with others divided among them; 0: it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def stage_ray(
    paths: dict[str, list[Path]], folder: Path, count: int, actors: int, batch_size: int = 16
) -> dict[str, Any]:
    """Recordings a second of an actor pool, from when every actor has written its first files on."""
    import ray

    from tzn.distributed import predict_on_ray

    found = {}
    cores = os.cpu_count() or 1
    # Ray schedules by what it is told: more actors than cores only where it believes in as many.
    ray.init(num_cpus=max(actors + 1, cores), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for kind in KINDS:
        out = folder / f"ray_{kind}"
        shutil.rmtree(out, ignore_errors=True)
        chosen, begin = some(paths[kind], round(count * SHARE[kind])), time.perf_counter()
        # The order of the corpus is longest first; a pool of the same recordings for every number of actors.
        made = predict_on_ray(Recipe(kind, threads=1), items_of(chosen), out, actors=actors, batch_size=batch_size)
        wall = time.perf_counter() - begin
        files = sorted((path.stat().st_mtime, path) for path in (out / "rows").glob("*.parquet"))
        skip = min(SKIPPED_FILES * actors, len(files) - 2)
        steps = sum(_steps(path, paths[kind]) for _, path in files[skip:])
        every = sum(_steps(path, paths[kind]) for _, path in files)
        span = files[-1][0] - files[skip - 1][0]
        found[kind] = {
            "recordings": made.recordings, "wall_seconds": wall, "per_second_with_start": made.recordings / wall,
            "per_second": made.recordings * steps / every / span, "actors": actors,
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


def stage_kill(paths: dict[str, list[Path]], folder: Path, count: int) -> dict[str, Any]:
    """Ray's driver is killed three times and an actor seven times; the rows are those of an undisturbed run.

    Raises:
        NoParity: they are not.
    """
    import pyarrow.parquet as pq

    chosen = some(paths["ludb"], count)
    manifest = folder / "kill.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in chosen))
    results = {}
    kills = {"driver": 0, "actor": 0}
    for name in ("undisturbed", "killed"):
        out = folder / f"kill_{name}"
        shutil.rmtree(out, ignore_errors=True)
        command = [
            sys.executable, "-m", "tzn", "corpus", "--pretrained", "ludb", str(manifest), "--out", str(out), "--actors", "2",
            "--batch-size", "8", "--min-score", "0.1", "-q",
        ]  # fmt: skip
        random_, begin = random.Random(0), time.perf_counter()
        process = subprocess.Popen(command)
        while name == "killed" and sum(kills.values()) < 10:
            seen = len(list((out / "rows").glob("*.parquet")))
            while process.poll() is None and len(list((out / "rows").glob("*.parquet"))) <= seen:
                time.sleep(0.05)
            if process.poll() is not None:
                break
            time.sleep(random_.random() * 0.3)
            if sum(kills.values()) % 4 == 2:
                process.kill()
                process.wait()
                kills["driver"] += 1
                process = subprocess.Popen(command)
            elif actors := _actors(process.pid):
                os.kill(random_.choice(actors), signals.SIGKILL)
                kills["actor"] += 1
        if process.wait():
            raise parity.NoParity(f"{name}: the command ended with {process.returncode}")
        results[name] = pq.read_table(out / "predictions.parquet").to_pylist()
        kills[f"seconds_{name}"] = time.perf_counter() - begin  # type: ignore[assignment]
    left, right = results["killed"], results["undisturbed"]
    if len(left) != len(right):
        raise parity.NoParity(f"{len(left)} rows after kills, {len(right)} undisturbed")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if (a["recording"], a["label"]) != (b["recording"], b["label"]):
            raise parity.NoParity(f"row of {a['recording']} {a['label']}, undisturbed {b['recording']} {b['label']}")
        worst = max(worst, *(abs(a[k] - b[k]) for k in ("start", "end", "score")))
    return {"recordings": len(chosen), "rows": len(left), "largest_difference": worst, **kills}


def _actors(driver: int) -> list[int]:
    """Processes of Ray's actors that belong to a driver on this machine (by the environment that it gave them)."""
    found = []
    mine = {driver}
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if parent in mine and pid not in mine:
                mine.add(pid)
                grown = True
    for pid in mine:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"Map" in title:
            found.append(pid)
    return found


def stage_serve(paths: dict[str, list[Path]], folder: Path, seconds: float) -> dict[str, Any]:
    """``tzn serve ludb`` on loopback: requests a second and latency by number of clients; then SIGTERM under load."""
    port = 18_000 + os.getpid() % 1000
    server = subprocess.Popen(
        [sys.executable, "-m", "tzn", "serve", "ludb", "--port", str(port), "--min-score", "0.3", "-q"]
    )
    url = f"http://127.0.0.1:{port}"
    found: dict[str, Any] = {"clients": []}
    bodies = []
    for path in some(paths["ludb"], 64):
        buffer = io.BytesIO()
        np.save(buffer, np.load(path))
        bodies.append(buffer.getvalue())
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        _load(url, bodies, 2, 2.0)
        found["memory_before_mb"] = proportional_bytes(server.pid) / 1e6
        for clients in CLIENTS:
            found["clients"].append({"clients": clients, **_load(url, bodies, clients, seconds)})
        found["memory_after_mb"] = proportional_bytes(server.pid) / 1e6
        statuses: list[Any] = []
        stop = threading.Timer(min(seconds, 1.0) / 2, server.terminate)
        stop.start()
        _load(url, bodies, 8, min(seconds, 1.0) * 2, statuses)
        code = server.wait(60)
        answered = [s for s in statuses if isinstance(s, int)]
        found["sigterm"] = {
            "exit_code": code, "answered": answered.count(200), "other_status": sum(s != 200 for s in answered),
            **{k.replace(" ", "_"): statuses.count(k) for k in ("cut off", "closed", "refused")},
        }  # fmt: skip
    finally:
        server.kill()
        server.wait()
    return found


def _load(
    url: str, bodies: list[bytes], clients: int, seconds: float, statuses: list[Any] | None = None
) -> dict[str, float]:
    """Each client sends the next request when the last is answered."""
    import http.client

    taken: list[float] = []
    until = time.monotonic() + seconds
    host = url.removeprefix("http://")

    def client(place: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        turn = place
        while time.monotonic() < until:
            begin = time.perf_counter()
            sent = False
            try:
                connection.request(
                    "POST", "/segments", bodies[turn % len(bodies)], {"content-type": "application/octet-stream"}
                )
                sent = True
                response = connection.getresponse()
                response.read()
                if statuses is not None:
                    statuses.append(response.status)
            except (OSError, http.client.HTTPException) as error:
                if statuses is None:
                    raise
                # A connection that was kept alive may be closed between two requests: that is no request cut off.
                closed = isinstance(error, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError))
                refused = not sent or isinstance(error, ConnectionRefusedError)
                statuses.append("refused" if refused else "closed" if closed else "cut off")
                return
            taken.append(time.perf_counter() - begin)
            turn += clients

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not taken:
        return {"requests": 0}
    ms = 1000 * np.array(taken)
    span = time.perf_counter() - begin
    p50, p95, p99 = (float(x) for x in np.quantile(ms, (0.5, 0.95, 0.99)))
    return {"requests": len(taken), "per_second": len(taken) / span, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


# ---- the program ----


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--recordings", type=int, default=20_000)
    options.add_argument("--folder", type=Path, default=Path("build/corpus"), help="where recordings and outputs lie")
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--scale", type=float, default=1.0, help="of the recordings that each stage takes")
    options.add_argument("--make", action="store_true", help="make the recordings and end")
    options.add_argument("--smoke", action="store_true", help="few recordings, for trying out")
    options.add_argument("--one", help="internal: one stage in this process, its result on standard output")
    o = options.parse_args()
    scale = 0.1 if o.smoke else o.scale
    counts = {stage: max(round(n * scale), 24) for stage, n in COUNTS.items()}
    recordings = 80 if o.smoke else o.recordings
    paths = make(o.folder, recordings)
    if o.make:
        return
    if o.one:
        stage, _, number = o.one.partition(":")
        if stage == "corpus":
            result = stage_corpus(paths, o.folder)
        elif stage == "ray":
            result = stage_ray(paths, o.folder, counts["ray"], int(number))
        elif stage == "serve":
            result = stage_serve(paths, o.folder, 2.0 if o.smoke else 15.0)
        else:
            result = {"parity": stage_parity, "loop": stage_loop, "kill": stage_kill}[stage](
                paths, o.folder, counts[stage]
            )
        with atomic_write(o.folder / f"stage_{o.one.replace(':', '_')}.json") as file:
            json.dump({**facts(), "load": os.getloadavg()[0], "result": result}, file)
        return
    runs = [
        f"ray:{n}" if stage == "ray" else stage for stage in o.stages for n in ((1, 2, 4) if stage == "ray" else (0,))
    ]
    for run in runs:
        print(f"stage {run} …", flush=True)
        program = [*STAGE_PROGRAM, "--one", run, "--folder", str(o.folder), "--recordings", str(recordings)]
        program += ["--scale", str(o.scale)]
        subprocess.run([*program, *(["--smoke"] if o.smoke else [])], check=True)
    content: dict[str, Any] = {
        **facts(),
        "processor": processor(),
        "goals": GOALS,
        "share": SHARE,
        "recordings": recordings,
    }
    for path in sorted(o.folder.glob("stage_*.json")):
        content[path.stem.removeprefix("stage_")] = json.loads(path.read_text())["result"]
    write(o.out, "corpus", content, report(content))


def rate_over_corpus(rates: dict[str, float]) -> float:
    """Recordings a second of the mixed corpus from those of its kinds."""
    return 1 / sum(SHARE[kind] / rates[kind] for kind in KINDS)


def paper(whole: dict[str, Any]) -> list[list[str]]:
    """What an archive would take, from what ``stage_corpus`` measured."""
    columns = []
    for kind in KINDS:
        w = whole[kind]
        scale = HOURS / w["hours"]
        core_hours = scale * w["seconds"] * w["workers"] / 3600
        minutes = 60 * core_hours / (MACHINES * CORES)
        read = scale * w["input_bytes"]
        columns.append(
            [
                f"{scale * w['recordings'] / 1e6:,.1f} million",
                f"{core_hours:,.0f}",
                f"{minutes:,.1f}",
                f"${DOLLARS * core_hours:,.0f}",
                f"{read / 1e12:.2f}",
                f"{read / minutes / 60 / MACHINES / 1e6:,.0f}",
                f"{scale * w['recordings'] / minutes / 60:,.0f}",
                f"{scale * w['rows'] / 1e9:.2f} billion",
                f"{scale * w['bytes'] / 1e9:,.0f}",
            ]
        )
    names = (
        "recordings", "core-hours", "minutes", "cost", "TB read", "MB a second and machine", "files opened a second",
        "rows", "GB written",
    )  # fmt: skip
    return [[name, *row] for name, *row in zip(names, *columns, strict=True)]


def report(content: dict[str, Any]) -> str:
    loop, whole = content.get("loop"), content.get("corpus")
    rows: list[list[str]] = []
    base = None

    def row(name: str, rates: dict[str, float], goal: str = "") -> None:
        mixed = rate_over_corpus(rates)
        over = "" if base is None else f"{mixed / base:.2f}"
        rows.append([name, *(f"{x:.1f}" for x in (rates["ludb"], rates["hapt"], mixed)), over, goal])

    if loop:
        row("loop over recordings, 2 threads", {k: loop[k]["threads_2"]["per_second"] for k in KINDS})
        base = rate_over_corpus({k: loop[k]["threads_2"]["per_second"] for k in KINDS})
        row("loop over recordings, 1 thread", {k: loop[k]["threads_1"]["per_second"] for k in KINDS})
    if whole:
        name = f"tzn predict --workers {whole['ludb']['workers']}, all {sum(whole[k]['recordings'] for k in KINDS):,}"
        row(name, {k: whole[k]["per_second"] for k in KINDS}, f"goal {GOALS['over_loop']:g}")
    for actors in (1, 2, 4):
        if part := content.get(f"ray_{actors}"):
            row(f"Ray, actors: {actors}", {k: part[k]["per_second"] for k in KINDS})
    text = [f"# A corpus on this machine\n\n{line(content)} {content['processor']}.\n"]
    text.append(table(["recordings a second", "ludb", "hapt", "mixed", "over the loop", ""], rows))
    if (one := content.get("ray_1")) and (two := content.get("ray_2")):
        linear = ", ".join(f"{50 * two[k]['per_second'] / one[k]['per_second']:.0f} % ({k})" for k in KINDS)
        text.append(f"Two Ray actors against twice one: {linear}; goal {100 * GOALS['linear']:.0f} %.\n")
    if same := content.get("parity"):
        told = ", ".join(
            f"{same[k]['detections']:,} detections of {same[k]['recordings']} recordings ({k}), largest difference "
            f"{same[k]['largest_difference']:.1e}" for k in KINDS
        )  # fmt: skip
        text.append(f"The same results as one by one: {told}.\n")
    if whole:
        text.append("## Memory over time\n")
        memory = [
            [
                k,
                str(len(whole[k]["samples"])),
                *(f"{q['children']:.0f} + {q['parent']:.0f}" for q in whole[k]["memory_mb"]),
            ]
            for k in KINDS
        ]
        header = ["MB (Pss), children + parent", "samples", "1st quarter", "2nd", "3rd", "4th"]
        text.append(table(header[: len(memory[0])], memory))
        text.append(f"## {HOURS:,} hours on {MACHINES} machines of {CORES} cores, from the rates above\n")
        text.append(table(["", *KINDS], paper(whole)))
        text.append(
            f"A core-hour is taken to cost ${DOLLARS}; rates scale with cores as they do here, which was not tried.\n"
        )
    if kill := content.get("kill"):
        text.append(
            f"Ray's driver killed {kill['driver']} times, actors {kill['actor']} times: the {kill['rows']:,} rows of "
            f"{kill['recordings']} recordings are those of an undisturbed run (largest difference "
            f"{kill['largest_difference']:.1e}).\n"
        )
    if serve := content.get("serve"):
        text.append("## tzn serve ludb, loopback\n")
        header = ["clients", "requests a second", "p50 ms", "p95 ms", "p99 ms"]
        keys = ("per_second", "p50_ms", "p95_ms", "p99_ms")
        text.append(table(header, [[str(c["clients"]), *(f"{c[k]:.1f}" for k in keys)] for c in serve["clients"]]))
        s = serve["sigterm"]
        text.append(
            f"Memory {serve['memory_before_mb']:.0f} MB before, {serve['memory_after_mb']:.0f} MB after. SIGTERM with 8 "
            f"clients at work: {s['answered']} requests answered, {s['cut_off']} cut off, exit code {s['exit_code']}.\n"
        )
    return "\n".join(text)


if __name__ == "__main__":
    main()

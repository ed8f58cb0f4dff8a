"""A stream of real recordings end to end: CPU time per second of signal, memory, latency, and the same results as one pass.

usage: python -m benchmarks.streaming --data hapt --run runs/student [--steps 2000000] [--smoke] [--out benchmarks/results]

--run is a run of configs/hapt_student.yaml (``tzn train configs/hapt_student.yaml --data hapt --out runs/student``). The
test recordings of --data follow each other, again and again, as one recording. Rows are pushed a second at a time, and for
one row of the table a step and a minute at a time. CPU time is that of the process, all threads; where it goes is
measured by wrapping the parts of a push. Before anything is timed, the stream must give the detections of one pass, over
random chunkings (``benchmarks/lib/parity.py`` ends the program otherwise).
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import tzn
from benchmarks.lib.parity import NoParity
from benchmarks.lib.peak_memory import resident_bytes
from benchmarks.lib.provenance import facts, line, parser, processor, write
from benchmarks.lib.tables import table
from tzn.data.annotations import load_annotations
from tzn.data.features import load_features
from tzn.detections import Detections
from tzn.errors import LimitWarning
from tzn.inference.stream import StreamLocalizer
from tzn.localizer import Localizer

GOAL = 1.0  # milliseconds of CPU per second of signal, of the student
MIN_SCORE = 0.3
STEPS_A_SECOND = 10
CHECKED_STEPS = {"student": 60_000, "pretrained": 20_000}  # compared with one pass: 100 and 33 minutes
CHUNKINGS = 3
MEMORY_SAMPLES = 40
UNLIMITED = ("inference.max_segments=1000000", "inference.pre_nms_topk=1000000")  # which cut differently, and say so
PARTS = ("_pass", "_settle")  # of StreamLocalizer.push
# Rounding moves a boundary by far less than a step (0.1 s); a score beside a threshold may fall on its other side.
ATOL_SECONDS, ATOL_SCORE, MAY_MISS = 0.02, 2e-3, 0.002


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="folder of HAPT")
    arguments.add_argument("--run", type=Path, required=True, help="trained run of configs/hapt_student.yaml")
    arguments.add_argument("--steps", type=int, default=2_000_000, help="of the student's long stream")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--smoke", action="store_true", help="few steps, for tests")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    steps, checked = {"student": options.steps, "others": max(options.steps // 30, 4000)}, CHECKED_STEPS
    if options.smoke:
        steps, checked = {"student": 6000, "others": 3000}, dict.fromkeys(CHECKED_STEPS, 3000)
    whole = recording(options.data)
    sources = {"student": options.run, "pretrained": "hapt"}
    models = {name: tzn.load(source) for name, source in sources.items()}
    content: dict[str, Any] = {
        **facts(), "processor": processor(), "load": os.getloadavg()[0], "goal_ms": GOAL, "min_score": MIN_SCORE,
        "models": {}, "streams": [],
    }  # fmt: skip
    for name, model in models.items():
        content["models"][name] = {
            "parameters": sum(p.numel() for p in model.network.parameters()), "latency_s": model.stream().latency,
            "radius_s": model.network.receptive_radius / STEPS_A_SECOND,
            "same": check(tzn.load(sources[name], UNLIMITED), whole, checked[name]),
        }  # fmt: skip
    for name, chunk, score, count in (
        ("student", 10, MIN_SCORE, steps["student"]), ("student", 1, MIN_SCORE, steps["others"]),
        ("student", 600, MIN_SCORE, steps["others"]), ("student", 10, None, steps["others"]),
        ("pretrained", 10, MIN_SCORE, steps["others"]),
    ):  # fmt: skip
        content["streams"].append({"model": name, **streamed(models[name], whole, count, chunk, score)})
        write(options.out, "streaming", content, markdown(content))


def recording(data: Path) -> np.ndarray:
    """Feature steps ``[T, 30]`` of all test recordings, one after the other."""
    known = load_annotations(data / "annotations.json").recordings
    names = sorted(name for name, entry in known.items() if entry.subset == "test")
    return np.concatenate([load_features(data / "features" / f"{name}.npy") for name in names])


def repeated(whole: np.ndarray, steps: int, chunk: int) -> Iterator[np.ndarray]:
    """``steps`` steps of the recording, again and again, ``chunk`` at a time."""
    for first in range(0, steps, chunk):
        yield whole[np.arange(first, min(first + chunk, steps)) % len(whole)]


def rows(model: Localizer, steps: np.ndarray) -> np.ndarray:
    """Feature steps as the model takes them: a raw-signal model gets the samples that they were cut from."""
    return steps if model.signal is None else steps.reshape(-1, model.channels)


def check(one: Localizer, whole: np.ndarray, steps: int) -> dict[str, Any]:
    """The stream's detections are those of one pass, however its rows are cut into chunks; says how close."""
    x = np.concatenate(list(repeated(whole, steps, steps)))
    wanted = one(rows(one, x), fps=one.fps).filter(score=MIN_SCORE)
    rng, worst = np.random.default_rng(0), {"seconds": 0.0, "score": 0.0, "missing": 0}
    for _ in range(CHUNKINGS):
        live, cuts = one.stream(min_score=MIN_SCORE), np.sort(rng.integers(0, steps, rng.integers(10, 3000)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LimitWarning)
            parts = [live.push(rows(one, x[a:b])) for a, b in zip([0, *cuts], [*cuts, steps], strict=True) if a < b]
        found = joined([*parts, live.close()])
        difference = compared(found, wanted)
        worst = {key: max(worst[key], difference[key]) for key in worst}
    allowed = max(1, round(MAY_MISS * len(wanted)))
    if worst["seconds"] > ATOL_SECONDS or worst["score"] > ATOL_SCORE or worst["missing"] > allowed or not len(wanted):
        raise NoParity(f"the stream and one pass: {worst} of {len(wanted)} detections")
    return {"steps": steps, "chunkings": CHUNKINGS, "detections": len(wanted), **worst}


def joined(parts: list[Detections]) -> Detections:
    return Detections(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("segments", "scores", "labels")))


def compared(found: Detections, wanted: Detections) -> dict[str, Any]:
    """Largest differences of times and scores between detections that belong together, and how many have no partner."""
    seconds = score = 0.0
    missing = 0
    for label in np.union1d(found.labels, wanted.labels):
        a, b = (one[one.labels == label] for one in (found, wanted))
        taken = np.zeros(len(a), bool)
        for segment, value in zip(b.segments, b.scores, strict=True):
            cost = np.abs(a.segments - segment).max(1) + 10 * np.abs(a.scores - value) + 1e9 * taken
            best = int(cost.argmin()) if len(a) else -1
            if best < 0 or cost[best] > ATOL_SECONDS + 10 * ATOL_SCORE:
                missing += 1
                continue
            taken[best] = True
            seconds = max(seconds, float(np.abs(a.segments[best] - segment).max()))
            score = max(score, float(abs(a.scores[best] - value)))
        missing += int((~taken).sum())
    return {"seconds": seconds, "score": score, "missing": missing}


def streamed(model: Localizer, whole: np.ndarray, steps: int, chunk: int, min_score: float | None) -> dict[str, Any]:
    """One long stream: CPU milliseconds per second of signal, memory along it, and how late detections came."""
    inner = model.stream(min_score=min_score)
    passes = 2 * (inner.latency // inner._inner.grid.step)
    warm = model.stream(min_score=min_score)
    for part in repeated(whole, int(passes), chunk):
        warm.push(rows(model, part))
    spent: dict[str, float] = defaultdict(float)
    live = model.stream(min_score=min_score)
    for name in PARTS:
        _timed(live._inner, name, spent)
    late: list[float] = []
    memory: list[tuple[int, float]] = []
    found, seen, total = 0, 0, 0.0
    every = max(steps // MEMORY_SAMPLES, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)
        for part in tqdm(repeated(whole, steps, chunk), total=-(-steps // chunk), desc="stream", disable=None):
            pushed = rows(model, part)
            begin = time.process_time()
            final = live.push(pushed)
            total += time.process_time() - begin
            if seen // every != (seen + len(part)) // every:
                ctypes.CDLL(None).malloc_trim(0)  # what is free but kept is the allocator's
                memory.append((seen + len(part), resident_bytes() / 1e6))
            seen += len(part)
            found += len(final)
            late += (seen / STEPS_A_SECOND - final.segments[:, 1]).tolist()
        begin = time.process_time()
        found += len(live.close())
        total += time.process_time() - begin
    half = [mb for _, mb in memory[len(memory) // 2 :]] or [0.0]
    early = [mb for at, mb in memory[: len(memory) // 2] if at >= 0.1 * steps] or half
    return {
        "steps": steps, "chunk_steps": chunk, "min_score": min_score, "seconds": steps / STEPS_A_SECOND, "cpu_s": total,
        "ms_per_second": 1000 * total * STEPS_A_SECOND / steps,
        "parts": {name.strip("_"): 1000 * value * STEPS_A_SECOND / steps for name, value in spent.items()},
        "detections": found, "memory_mb": memory, "early_mb": statistics.median(early), "late_mb": statistics.median(half),
        "latency_s": live.latency,
        "late_s": {"least": min(late), "median": statistics.median(late), "p95": float(np.quantile(late, 0.95))}
        if late else None,
    }  # fmt: skip


def _timed(stream: StreamLocalizer, name: str, spent: dict[str, float]) -> None:
    """Adds the CPU seconds of a method to ``spent``."""
    method: Callable[..., Any] = getattr(stream, name)

    def run(*arguments: Any, **named: Any) -> Any:
        begin = time.process_time()
        result = method(*arguments, **named)
        spent[name] += time.process_time() - begin
        return result

    setattr(stream, name, run)


def markdown(content: dict[str, Any]) -> str:
    models = table(
        ["model", "parameters", "receptive radius", "latency", "compared with one pass", "times within", "scores within",
         "without a partner"],
        [[name, f"{m['parameters']:,}", f"{m['radius_s']:.1f} s", f"{m['latency_s']:.1f} s",
          f"{m['same']['detections']:,} detections, {m['same']['steps']:,} steps, {m['same']['chunkings']} random chunkings",
          f"{m['same']['seconds']:.1e} s", f"{m['same']['score']:.1e}", f"{m['same']['missing']}"]
         for name, m in content["models"].items()],
    )  # fmt: skip
    streams = table(
        ["model", "steps", "signal", "pushed", "score from", "CPU per second of signal", "network", "settling",
         "memory, first and second half", "detections", "late: least, median, 95 %"],
        [[s["model"], f"{s['steps']:,}", f"{s['seconds'] / 3600:.1f} h", _chunk(s["chunk_steps"]),
          "all" if s["min_score"] is None else f"{s['min_score']:g}", f"**{s['ms_per_second']:.2f} ms**",
          f"{s['parts']['pass']:.2f} ms", f"{s['parts']['settle']:.2f} ms",
          f"{s['early_mb']:.0f} / {s['late_mb']:.0f} MB", f"{s['detections']:,}",
          " / ".join(f"{x:.0f}" for x in s["late_s"].values()) + " s" if s["late_s"] else "-"]
         for s in content["streams"]],
    )  # fmt: skip
    return f"""# Streaming

{line(content)} {content["processor"]}; load average at the start: {content["load"]:.1f}.

Real test recordings of HAPT, end to end and again, pushed as they would come. The student is `configs/hapt_student.yaml`,
trained; "pretrained" is `tzn.load("hapt")`, which gets raw samples. Goal: the student below {content["goal_ms"]:g} ms of CPU
per second of signal (10 steps).

{models}
Latency: receptive radius + window + reach. It is the most that a detection waits after its end where no rival is unsettled.

{streams}
Network: forward passes and candidates. Settling: decoding, and which detections are final. CPU: user and system time of the
process, all threads. Memory: resident, medians over samples along the stream, after its first tenth; with PyTorch and the
recordings.
"""


def _chunk(steps: int) -> str:
    return {1: "a step (0.1 s)", 10: "a second", 600: "a minute"}.get(steps, f"{steps} steps")


if __name__ == "__main__":
    main()

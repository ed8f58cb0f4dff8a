"""A localizer behind HTTP: POST a signal, get its segments (``docs/corpus.md`` has an example).

Requests that come together share a forward pass. There are limits on the size of a request, the length of a signal, the
requests that wait and the time they do, so that load is refused and not piled up.
"""
# No "from __future__ import annotations": FastAPI reads the annotations of functions whose types are imported in a function.

import asyncio
import contextlib
import dataclasses
import io
import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from torch import Tensor

from tzn.corpus.run import Recipe, detect, keep_memory
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError
from tzn.formats import rows
from tzn.inference.predict import Job
from tzn.localizer import Localizer
from tzn.optional import require

KINDS = 'application/json ({"signal": [[…], …]}), text/csv, or application/octet-stream (.npy)'
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        megabytes: of a request's body; more is refused with 413.
        seconds: of a signal; likewise.
        waiting: requests at a time, those computed included; more are refused with 503.
        timeout: seconds that a request may take; then it is answered 504.
        batch_steps: feature steps that share a turn of the network.
        batch_wait: seconds that a request waits for others to come.
        kept: results that GET still has; the oldest go first.
    """

    megabytes: float = 64.0
    seconds: float = 24 * 3600.0
    waiting: int = 256
    timeout: float = 60.0
    batch_steps: int = 65_536
    batch_wait: float = 0.005
    kept: int = 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value >= 0 if field.name == "batch_wait" else value > 0):
                raise ConfigError(f"{field.name} = {value!r}: expected a number above 0")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass
class Waiting:
    """A request whose signal is read."""

    job: Job
    features: Tensor
    answer: "asyncio.Future[Detections]"


class Batcher:
    """Takes requests as they come and gives them to the network together, in a thread of its own."""

    def __init__(self, model: Localizer, recipe: Recipe, limits: Limits, seen: Any) -> None:
        self.model, self.recipe, self.limits, self.seen = model, recipe, limits, seen
        self.inside = 0  # requests taken and not answered
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def detections(self, job: Job, features: Tensor) -> Detections:
        """Those of one signal.

        Raises:
            Refused: the network failed at it.
        """
        answer: asyncio.Future[Detections] = asyncio.get_running_loop().create_future()
        await self._queue.put(Waiting(job, features, answer))
        return await answer

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            steps, until = len(batch[0].features), time.monotonic() + self.limits.batch_wait
            while steps < self.limits.batch_steps:
                left = until - time.monotonic()
                try:
                    one = self._queue.get_nowait() if left <= 0 else await asyncio.wait_for(self._queue.get(), left)
                except (asyncio.QueueEmpty, TimeoutError, asyncio.TimeoutError):
                    break
                batch.append(one)
                steps += len(one.features)
            batch = [one for one in batch if not one.answer.done()]  # those that waited too long are not computed
            if not batch:
                continue
            self.seen.batch.observe(len(batch))
            recordings = [(one.job, one.features) for one in batch]
            try:
                found, failed = await asyncio.to_thread(detect, self.model, recordings, self.recipe)
            except Exception as error:  # whatever it is, it must not end the loop that all others wait for
                found, failed = {}, {one.job.name: f"{type(error).__name__}: {error}" for one in batch}
            for one in batch:
                if one.answer.done():
                    continue
                if one.job.name in found:
                    one.answer.set_result(found[one.job.name])
                else:
                    one.answer.set_exception(Refused(500, failed.get(one.job.name, "no result")))


class Metrics:
    """What Prometheus reads of one server."""

    def __init__(self, batcher: "Batcher | None" = None) -> None:
        client = require("prometheus_client", "tzn serve", "serve", "prometheus-client")
        self.registry = client.CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = client.Counter("tzn_requests_total", "Requests for segments, by HTTP status", ["status"], **own)
        self.seconds = client.Histogram(
            "tzn_request_seconds", "Time from a request to its answer", buckets=BUCKETS, **own
        )
        self.batch = client.Histogram(
            "tzn_batch_requests", "Requests that share a turn of the network", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.signal = client.Counter("tzn_signal_seconds_total", "Seconds of signal localized", **own)
        self.found = client.Counter("tzn_segments_total", "Segments answered", **own)
        self.inside = client.Gauge("tzn_requests_inside", "Requests taken and not answered yet", **own)
        self._text = client.generate_latest
        self.kind = client.CONTENT_TYPE_LATEST

    def text(self) -> bytes:
        return bytes(self._text(self.registry))


def build_app(recipe: Recipe, limits: Limits | None = None) -> Any:
    """The FastAPI application; every application holds a model of its own.

    ``POST /segments`` (query: ``fps``, ``duration``, ``min_score``, ``top``, ``wait``) answers ``{"id", "duration", "segments":
    [{"segment": [start, end], "label", "score", …}]}``; with ``wait=false`` 202 and the id, whose result ``GET
    /segments/ID`` has. ``GET /health``, ``/ready``, ``/metrics``, ``/model``; ``/docs`` is FastAPI's own page.

    Raises:
        DataError: FastAPI or prometheus-client is not installed. Whatever loading the model raises.
    """
    fastapi = require("fastapi", "tzn serve", "serve")
    responses = require("fastapi.responses", "tzn serve", "serve", "fastapi")
    Request = fastapi.Request
    limits = limits or Limits()
    model = recipe.load()
    keep_memory()
    seen = Metrics()
    results: OrderedDict[str, Any] = OrderedDict()
    tasks: set[asyncio.Task[Any]] = set()
    batcher = Batcher(model, recipe, limits, seen)
    state = {"ready": False}

    @contextlib.asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        batcher.start()
        state["ready"] = True
        yield
        state["ready"] = False
        if tasks:  # requests that nobody waits for are finished too
            await asyncio.wait(tasks, timeout=limits.timeout)
        await batcher.stop()

    app = fastapi.FastAPI(title="tzn", lifespan=life)
    app.state.metrics, app.state.batcher = seen, batcher

    async def localized(body: bytes, kind: str, query: dict[str, Any], name: str) -> dict[str, Any]:
        """The answer to one request."""
        job, features = await asyncio.to_thread(_features, model, body, kind, query, limits, name)
        found = await batcher.detections(job, features)
        kept = found if query["min_score"] is None else found.filter(score=query["min_score"])
        kept = kept[: query["top"]] if query["top"] is not None else kept
        length = job.duration or len(features) * _step_seconds(model)
        seen.signal.inc(length)
        seen.found.inc(len(kept))
        return {"id": name, "duration": length, "segments": list(rows(kept, None))}

    @app.post("/segments")
    async def post(
        request: Request,  # type: ignore[valid-type]
        fps: float | None = None, duration: float | None = None, min_score: float | None = None,
        top: int | None = None, wait: bool = True,
    ) -> Any:  # fmt: skip
        """Segments of the signal in the body."""
        begin = time.monotonic()
        status = 500
        taken = False
        name = uuid.uuid4().hex
        try:
            if batcher.inside >= limits.waiting or not state["ready"]:
                raise Refused(
                    503, f"{batcher.inside} requests are under way, expected fewer than {limits.waiting}: try again"
                )
            batcher.inside += 1
            taken = True
            seen.inside.set(batcher.inside)
            body = await _body(request, limits)
            kind = request.headers.get("content-type", "")  # type: ignore[attr-defined]
            query = {"fps": fps, "duration": duration, "min_score": min_score, "top": top}
            work = asyncio.wait_for(localized(body, kind, query, name), limits.timeout)
            if wait:
                answer = await work
                status = 200
                return responses.JSONResponse(answer)
            taken = False  # the task gives its place back
            results[name] = None
            task = asyncio.get_running_loop().create_task(later(work, name))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            status = 202
            return responses.JSONResponse({"id": name}, status_code=202, headers={"location": f"/segments/{name}"})
        except Refused as refused:
            status = refused.status
            again = {"retry-after": "1"} if status == 503 else None
            return responses.JSONResponse({"error": refused.reason}, status_code=status, headers=again)
        except (TimeoutError, asyncio.TimeoutError):
            status = 504
            reason = f"it took longer than {limits.timeout:g} s"
            return responses.JSONResponse({"error": reason}, status_code=status)
        finally:
            if taken:
                batcher.inside -= 1
                seen.inside.set(batcher.inside)
            seen.requests.labels(str(status)).inc()
            seen.seconds.observe(time.monotonic() - begin)

    async def later(work: Any, name: str) -> None:
        try:
            results[name] = (200, await work)
        except Refused as refused:
            results[name] = (refused.status, {"error": refused.reason})
        except (TimeoutError, asyncio.TimeoutError):
            results[name] = (504, {"error": f"it took longer than {limits.timeout:g} s"})
        finally:
            batcher.inside -= 1
            seen.inside.set(batcher.inside)
            while len(results) > limits.kept:
                results.popitem(last=False)

    @app.get("/segments/{name}")
    async def get(name: str) -> Any:
        """The result of a request that was not waited for; 202 until it is there."""
        if name not in results:
            return responses.JSONResponse({"error": f"no request {name!r}, or its result was dropped"}, status_code=404)
        status, answer = results[name] or (202, {"id": name})
        return responses.JSONResponse(answer, status_code=status)

    @app.get("/health")
    async def health() -> Any:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Any:
        """Requests are taken: 200, else 503."""
        free = state["ready"] and batcher.inside < limits.waiting
        return responses.JSONResponse({"ready": free, "inside": batcher.inside}, status_code=200 if free else 503)

    @app.get("/metrics")
    async def metrics() -> Any:
        """For Prometheus."""
        return fastapi.Response(seen.text(), media_type=seen.kind)

    @app.get("/model")
    async def described() -> Any:
        """What the model reads and finds."""
        run = recipe.run(model)
        return {
            "classes": list(model.classes), "channels": model.channels, "fps": model.fps,
            "score_threshold": model.score_threshold, "model": run.model, "configuration": run.configuration,
            "names": list(model.signal.channels) if model.signal else None,
        }  # fmt: skip

    return app


async def _body(request: Any, limits: Limits) -> bytes:
    """The request's body, no more of it than is allowed."""
    most = int(limits.megabytes * 1e6)
    said = request.headers.get("content-length", "")
    too_long = f"the request has more than {limits.megabytes:g} MB, which is the limit"
    if said.isdigit() and int(said) > most:
        raise Refused(413, too_long)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, too_long)
        parts.append(part)
    return b"".join(parts)


def _features(
    model: Localizer, body: bytes, kind: str, query: dict[str, Any], limits: Limits, name: str
) -> tuple[Job, Tensor]:  # fmt: skip
    """The signal of a request as the network takes it."""
    array, own_fps = _array(body, kind.partition(";")[0].strip().lower())
    for key, low, high in (
        ("fps", 0, np.inf),
        ("duration", 0, np.inf),
        ("min_score", -1e-9, 1 + 1e-9),
        ("top", 0, np.inf),
    ):
        value = query[key]
        if value is not None and not low < value < high:
            raise Refused(
                422, f"{key} = {value!r}: expected {'a score in [0, 1]' if key == 'min_score' else 'a number above 0'}"
            )
    fps = query["fps"] or own_fps
    rate = fps or model.fps
    if rate is not None:
        seconds = len(array) / rate * (1 if model.signal else model.config.data.feat_stride)
        if seconds > limits.seconds:
            raise Refused(413, f"the signal has {seconds:.0f} s, expected at most {limits.seconds:g}")
    try:
        return model._read(name, array, fps, query["duration"])
    except DataError as error:
        raise Refused(422, str(error).replace(name, "signal")) from None


def _array(body: bytes, kind: str) -> tuple[np.ndarray, float | None]:
    """``[T, C]`` and the rate that the body itself says."""
    try:
        if body.startswith(b"\x93NUMPY"):
            return np.load(io.BytesIO(body), allow_pickle=False), None
        if kind == "application/json":
            content = json.loads(body)
            signal = content.get("signal") if isinstance(content, dict) else content
            fps = content.get("fps") if isinstance(content, dict) else None
            if fps is not None and not (
                isinstance(fps, (int, float)) and not isinstance(fps, bool) and 0 < fps < np.inf
            ):
                raise Refused(422, f"fps = {fps!r}: expected a number above 0")
            return np.array(signal, dtype=np.float32), fps
        if kind in ("text/csv", "text/plain"):
            lines = body.decode("utf-8-sig").splitlines()
            head = next((i for i, line in enumerate(lines) if line.strip()), 0)
            skip = head + 1 if lines and not _numbers(lines[head]) else head
            return np.loadtxt(lines[skip:], delimiter=",", dtype=np.float32, ndmin=2), None
    except Refused:
        raise
    except (ValueError, TypeError, EOFError, OSError, RecursionError, MemoryError, OverflowError) as error:
        raise Refused(422, f"the body is no signal [T, C] ({' '.join(str(error).split())[:160]})") from None
    raise Refused(415, f"content-type {kind!r}: expected {KINDS}")


def _numbers(line: str) -> bool:
    """Whether a first line holds any number: one that holds none is the columns' names."""
    for word in line.split(","):
        with contextlib.suppress(ValueError):
            float(word)
            return True
    return False


def _step_seconds(model: Localizer) -> float:
    if model.signal:
        return model.signal.samples_per_step / model.signal.rate
    return model.config.data.feat_stride / model.fps if model.fps else float("nan")


def serve(
    recipe: Recipe, limits: Limits | None = None, *, host: str = "127.0.0.1", port: int = 8000, quiet: bool = False
) -> None:
    """Run a server until SIGTERM or Ctrl-C: then it takes nothing more, answers what it has, and returns.

    Raises:
        DataError: uvicorn is not installed, or the address is taken.
    """
    uvicorn = require("uvicorn", "tzn serve", "serve")
    limits = limits or Limits()
    app = build_app(recipe, limits)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning" if quiet else "info", access_log=False,
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn has answered what it had and passes the signal on
        pass
    except SystemExit:
        raise DataError(f"{host}:{port}: cannot listen there (taken, or not allowed)") from None
    if not server.started and not threading.current_thread().daemon:
        raise DataError(f"{host}:{port}: cannot listen there (taken, or not allowed)")

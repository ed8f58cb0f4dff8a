"""``tzn serve`` under load, on loopback."""

from __future__ import annotations

import http.client
import io
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus.rates import proportional_bytes
from benchmarks.corpus.recordings import some

CLIENTS = (1, 4, 16)


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

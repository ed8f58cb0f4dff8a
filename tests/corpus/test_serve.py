"""The server: what it answers, what it refuses, that requests share a turn, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import small_model
from fastapi.testclient import TestClient
from small import checkpoint

import tzn
from tzn.corpus.run import Recipe
from tzn.errors import ConfigError
from tzn.serve import Limits, build_app


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("serve") / "small.ckpt")


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SIGNAL = small_model.features(120, 5).numpy()
OCTETS = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client(place):
    with TestClient(build_app(Recipe(str(place)), Limits(megabytes=0.05, seconds=60, kept=2))) as client:
        yield client


@pytest.mark.parametrize("kind", ["npy", "csv", "csv-with-names", "json", "bare-json"])
def test_every_kind_of_body_gives_the_localizers_segments(client, place, kind):
    lines = "\n".join(",".join(repr(float(x)) for x in row) for row in SIGNAL)
    body, content = {
        "npy": (npy(SIGNAL), "application/octet-stream"),
        "csv": (lines.encode(), "text/csv; charset=utf-8"),
        "csv-with-names": (f"{','.join('abcdefg')}\n{lines}\n".encode(), "text/csv"),
        "json": (json.dumps({"signal": SIGNAL.tolist(), "fps": 10}).encode(), "application/json"),
        "bare-json": (json.dumps(SIGNAL.tolist()).encode(), "application/json"),
    }[kind]
    answer = client.post("/segments", content=body, headers={"content-type": content}, params={"min_score": 0.2})
    assert answer.status_code == 200, answer.text
    wanted = tzn.load(place)(SIGNAL).filter(score=0.2)
    found = answer.json()["segments"]
    np.testing.assert_allclose([row["segment"] for row in found], wanted.segments, atol=1e-3)
    assert [row["label"] for row in found] == [segment.label for segment in wanted] and len(found) > 3
    assert answer.json()["duration"] == pytest.approx(12.0)


def test_get_has_the_result_of_a_request_that_was_not_waited_for(client):
    answer = client.post("/segments?wait=false&top=3", content=npy(SIGNAL), headers=OCTETS)
    assert answer.status_code == 202
    place = answer.headers["location"]
    until = time.monotonic() + 60
    while (later := client.get(place)).status_code == 202 and time.monotonic() < until:
        time.sleep(0.01)
    assert later.status_code == 200 and len(later.json()["segments"]) == 3
    for _ in range(2):  # two are kept
        client.post("/segments?wait=false", content=npy(SIGNAL), headers=OCTETS)
    while client.get("/ready").json()["inside"]:
        time.sleep(0.01)
    assert client.get(place).status_code == 404


@pytest.mark.parametrize(
    ("query", "body", "content", "status", "says"),
    [
        ("", b"x", "image/png", 415, "image/png"),
        ("", npy(SIGNAL)[:-40], "application/octet-stream", 422, "no signal"),
        ("", npy(np.array([object()], dtype=object)), "application/octet-stream", 422, "no signal"),
        ("", npy(SIGNAL[:, :3]), "application/octet-stream", 422, "expected [T, 7]"),
        ("", npy(SIGNAL[:0]), "application/octet-stream", 422, "at least one row"),
        ("", npy(np.full((5, 7), np.nan, np.float32)), "application/octet-stream", 422, "finite"),
        ("", b'{"signal": [[1, 2], [3]]}', "application/json", 422, "no signal"),
        ("", b'{"signal": [[1]], "fps": -5}', "application/json", 422, "fps = -5"),
        ("", b"a,b\n1,x\n", "text/csv", 422, "no signal"),
        ("?min_score=2", npy(SIGNAL), "application/octet-stream", 422, "min_score = 2.0"),
        ("?top=0", npy(SIGNAL), "application/octet-stream", 422, "top = 0"),
        ("?fps=fast", npy(SIGNAL), "application/octet-stream", 422, "fps"),
        ("", b"\x93NUMPY" + bytes(60_000), "application/octet-stream", 413, "0.05 MB"),
        ("", npy(np.zeros((700, 7), np.float16)), "application/octet-stream", 413, "70 s"),
    ],
)  # fmt: skip
def test_bad_requests_say_why(client, query, body, content, status, says):
    answer = client.post(f"/segments{query}", content=body, headers={"content-type": content})
    assert answer.status_code == status and says in answer.text, answer.text
    assert "Traceback" not in answer.text
    assert client.get("/ready").json() == {"ready": True, "inside": 0}


def test_health_model_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/model").json()["classes"] == ["a", "b", "c", "d"]
    client.post("/segments", content=npy(SIGNAL), headers=OCTETS)
    text = client.get("/metrics").text
    assert 'tzn_requests_total{status="200"}' in text and "tzn_request_seconds_bucket" in text
    assert "tzn_requests_inside 0.0" in text


class _Slow:
    """Takes the place of the network's turn."""

    def __init__(self, monkeypatch) -> None:
        import tzn.serve

        self.sizes, self.go, right = [], threading.Event(), tzn.serve.detect

        def detect(model, recordings, recipe):
            self.sizes.append(len(recordings))
            self.go.wait(30)
            return right(model, recordings, recipe)

        monkeypatch.setattr(tzn.serve, "detect", detect)


def _together(client, count: int) -> tuple[list[threading.Thread], list[int]]:
    statuses: list[int] = []

    def one() -> None:
        statuses.append(client.post("/segments", content=npy(SIGNAL), headers=OCTETS).status_code)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, statuses


def _until(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_requests_that_wait_share_a_turn_and_too_many_are_refused(place, monkeypatch):
    slow = _Slow(monkeypatch)
    with TestClient(build_app(Recipe(str(place)), Limits(waiting=5, batch_wait=0))) as client:
        first, statuses = _together(client, 1)
        _until(lambda: slow.sizes)
        rest, others = _together(client, 4)
        _until(lambda: client.get("/ready").json()["inside"] == 5)
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        refused = client.post("/segments", content=npy(SIGNAL), headers=OCTETS)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        time.sleep(0.3)  # the four are read and in the queue
        slow.go.set()
        for thread in first + rest:
            thread.join()
        assert statuses + others == [200] * 5
        assert slow.sizes[0] == 1 and slow.sizes[1] > 1 and sum(slow.sizes) == 5


def test_a_request_that_takes_too_long_is_given_up(place, monkeypatch):
    slow = _Slow(monkeypatch)
    with TestClient(build_app(Recipe(str(place)), Limits(timeout=0.2))) as client:
        answer = client.post("/segments", content=npy(SIGNAL), headers=OCTETS)
        assert answer.status_code == 504 and "longer than 0.2 s" in answer.text
        slow.go.set()
        assert client.get("/ready").json()["inside"] == 0


def test_a_failing_network_is_a_500_for_its_request_alone(place, monkeypatch):
    import tzn.serve

    right = tzn.serve.detect

    def detect(model, recordings, recipe):
        if any(len(x) == 7 for _, x in recordings):
            raise RuntimeError("broken")
        return right(model, recordings, recipe)

    monkeypatch.setattr(tzn.serve, "detect", detect)
    with TestClient(build_app(Recipe(str(place)), Limits(batch_wait=0))) as client:
        assert client.post("/segments", content=npy(SIGNAL[:7]), headers=OCTETS).status_code == 500
        assert client.post("/segments", content=npy(SIGNAL), headers=OCTETS).status_code == 200


def test_limits_out_of_range():
    with pytest.raises(ConfigError, match="timeout = 0"):
        Limits(timeout=0)


def test_sigterm_answers_what_was_taken_and_ends_with_0(place):
    """The command itself, on a socket: a request under way when the signal comes is answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tzn", "serve", str(place), "--port", str(port), "-q", "--batch-wait", "700"]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                time.sleep(0.1)
        answers: list[int] = []

        def ask() -> None:
            request = urllib.request.Request(f"{url}/segments", npy(SIGNAL), OCTETS)
            answers.append(urllib.request.urlopen(request, timeout=60).status)

        asking = threading.Thread(target=ask)
        asking.start()
        _until(lambda: json.loads(urllib.request.urlopen(f"{url}/ready", timeout=5).read())["inside"] == 1)
        server.send_signal(signal.SIGTERM)  # it waits 0.7 s for others to share its turn
        asking.join()
        assert server.wait(60) == 0, server.stderr.read()
        assert answers == [200]
    finally:
        server.kill()
        server.wait()
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen()
    said = subprocess.run(command, capture_output=True, text=True)
    taken.close()
    assert said.returncode == 2 and "cannot listen there" in said.stderr

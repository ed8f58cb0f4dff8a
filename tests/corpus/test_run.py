"""A corpus by worker processes: results, restarts, failures."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import assert_same, checkpoint, recordings, rows

import tzn
from tzn.cli import main
from tzn.corpus import plan as plan_module
from tzn.corpus import run as run_module
from tzn.corpus.manifest import Item, gather, read_manifest
from tzn.corpus.plan import pack
from tzn.corpus.run import Recipe, detect, predict_corpus, read
from tzn.corpus.table import COLUMNS, open_results
from tzn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("corpus")
    checkpoint(place / "small.ckpt")
    recordings(place / "in", 12, 200)
    return place


def items_of(place: Path) -> list[Item]:
    return [Item(path.stem, str(path)) for path in sorted((place / "in").iterdir())]


def test_parts_hold_every_recording_once_and_longest_first():
    lengths = [5, 100, 3, 60, 60, 1, 1000]
    parts = pack(lengths, steps=120, most=3)
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert parts[0] == [6] and parts[1] == [1]
    assert all(sum(lengths[i] for i in part) <= 120 or len(part) == 1 for part in parts)


@pytest.mark.parametrize("together", [1, 4096], ids=["one-by-one", "together"])
def test_detections_are_those_of_one_by_one(place, together, monkeypatch):
    monkeypatch.setattr(run_module, "TOGETHER_STEPS", together)
    recipe = Recipe(str(place / "small.ckpt"))
    model = recipe.load()
    found, failed = detect(model, [read(model, item) for item in items_of(place)], recipe)
    assert not failed and len(found) == 12
    for item in items_of(place):
        wanted = model(item.path)
        assert found[item.recording].labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(found[item.recording].segments, wanted.segments, atol=1e-3)
        np.testing.assert_allclose(found[item.recording].scores, wanted.scores, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found[item.recording].std, wanted.std, rtol=1e-2, atol=1e-4)
    assert sum(map(len, found.values())) > 100


def test_a_pass_that_fails_takes_only_its_own_recording(place, monkeypatch):
    recipe = Recipe(str(place / "small.ckpt"))
    model = recipe.load()
    given = [read(model, item) for item in items_of(place)[:6]]
    right = model._run

    def fragile(batch, settings):
        if any(job.name == "r003" for job, _ in batch):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return right(batch, settings)

    monkeypatch.setattr(model, "_run", fragile)
    found, failed = detect(model, given, recipe)
    assert sorted(found) == ["r000", "r001", "r002", "r004", "r005"]
    assert "allocate memory" in failed["r003"]


def test_command_from_a_manifest_with_a_bad_and_a_silent_recording(place, tmp_path, capsys):
    """One run through the command: schema, metadata, failures with reasons, exit code 1, then repaired with --resume."""
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"nothing")
    items = items_of(place)[:8]
    table = {
        "path": [*(item.path for item in items), "bad.npy"],
        "recording": [*(f"id-{i}" for i in range(8)), "broken"],
        "duration": [*([None] * 7), 1.0, None],
    }
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    command = [
        "predict",
        str(place / "small.ckpt"),
        str(tmp_path / "manifest.parquet"),
        "--out",
        str(tmp_path / "o.parquet"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--workers", "1", "--min-score", "0.3"])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "in 8 recordings" in printed.out and "broken" in printed.err and "not a NumPy file" in printed.err
    with open(tmp_path / "o.parquet.failed.csv", newline="") as file:
        assert [row["recording"] for row in csv.DictReader(file)] == ["broken"]
    made = rows(tmp_path / "o.parquet")
    assert set(made[0]) == set(COLUMNS) and all(row["score"] >= 0.3 for row in made)
    assert max(row["end"] for row in made if row["recording"] == "id-7") <= 1.0
    results = open_results(tmp_path / "o.parquet")
    assert results.recordings() == {f"id-{i}" for i in range(8)}
    assert {row["model"] for row in made} == {results.runs[0].model}
    model = tzn.load(place / "small.ckpt")
    wanted = model(items[2].path).filter(score=0.3)
    mine = [row for row in made if row["recording"] == "id-2"]
    np.testing.assert_allclose([row["start"] for row in mine], wanted.segments[:, 0], atol=1e-3)
    assert not (tmp_path / "o.parquet.parts").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    # The broken one is repaired: --resume does it alone, and what is there stays.
    np.save(bad, np.load(items[0].path))
    assert main([*command, "--workers", "1", "--min-score", "0.3", "--resume"]) == 0
    assert "8 of 9 recordings are done already" in capsys.readouterr().err
    again = rows(tmp_path / "o.parquet")
    assert again[: len(made)] == made and {row["recording"] for row in again[len(made) :]} == {"broken"}
    assert not (tmp_path / "o.parquet.failed.csv").exists()


DRIVER = """
import sys, json
from pathlib import Path
from tzn.corpus import plan
from tzn.corpus.manifest import Item
from tzn.corpus.run import Recipe, predict_corpus
plan.pack.__defaults__ = (400, 128)  # many parts
if __name__ == "__main__":
    checkpoint, folder, out, log = sys.argv[1:]
    items = [Item(p.stem, str(p)) for p in sorted(Path(folder).iterdir())]
    def started(processes):
        Path(log + ".new").write_text(json.dumps(processes))
        Path(log + ".new").rename(log)
    made = predict_corpus(Recipe(checkpoint), items, Path(out), workers=2, resume=True, progress=False, started=started)
    print(made.recordings, made.rows, len(made.failed), made.deaths)
"""


def test_ten_kills_of_workers_and_driver_lose_nothing_and_double_nothing(place, tmp_path):
    program = tmp_path / "driver.py"
    program.write_text(DRIVER)
    recordings(tmp_path / "many", 90, 400)
    names = ("undisturbed", "killed")
    out = {name: tmp_path / name / "o.parquet" for name in names}
    for path in out.values():
        path.parent.mkdir()
    log = tmp_path / "processes"

    def start(name: str) -> subprocess.Popen:
        log.unlink(missing_ok=True)
        arguments = [str(place / "small.ckpt"), str(tmp_path / "many"), str(out[name]), str(log)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, str(program), *arguments], env=environment, stdout=subprocess.PIPE)

    items = [Item(path.stem, str(path)) for path in sorted((tmp_path / "many").iterdir())]
    predict_corpus(Recipe(str(place / "small.ckpt")), items, out["undisturbed"], workers=1, progress=False)
    random_ = random.Random(0)
    kills = {"driver": 0, "child": 0}
    process = start("killed")
    parts = out["killed"].parent / "o.parquet.parts"
    while sum(kills.values()) < 10:
        # At a random moment, but not before something more was done: ten kills of processes that have only begun prove little.
        while process.poll() is None and not log.exists():
            time.sleep(0.005)
        seen = len(list(parts.glob("part-*.parquet")))
        while process.poll() is None and len(list(parts.glob("part-*.parquet"))) <= seen:
            time.sleep(0.005)
        time.sleep(random_.random() * 0.05)
        if process.poll() is not None:
            break
        if sum(kills.values()) % 3 == 2:
            process.kill()
            process.wait()
            kills["driver"] += 1
            process = start("killed")
        else:
            victim = random_.choice(json.loads(log.read_text()))
            try:
                os.kill(victim, signal.SIGKILL)
                kills["child"] += 1
            except ProcessLookupError:  # it had just died of another kill
                continue
    said = process.communicate()[0].split()
    assert process.returncode == 0 and said[:1] == [b"90"] and said[2] == b"0"
    assert kills == {"driver": 3, "child": 7}
    assert_same(out["killed"], out["undisturbed"])
    assert not parts.exists()


class Terminal(io.StringIO):
    """Standard error as bars see it on a screen."""

    def isatty(self) -> bool:
        return True


def test_a_bar_has_recordings_their_rate_and_the_time_left(place, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "pack", lambda lengths: pack(lengths, steps=200))
    monkeypatch.setattr(sys, "stderr", Terminal())
    predict_corpus(Recipe(str(place / "small.ckpt")), items_of(place), tmp_path / "o.parquet", workers=1)
    *_, last = (text for text in sys.stderr.getvalue().split("\r") if text.strip())
    total = sum(len(np.load(item.path)) for item in items_of(place))
    assert last.startswith("12/12 recordings: 100%") and f"{total / 1000:.2f}k/{total / 1000:.2f}k" in last
    assert re.search(r"\[\d+:\d\d<00:00, +[\d.]+k?step/s, [\d.]+ recordings/s, 0 failed\]", last)
    # Before the end there is some left.
    assert re.search(r"\b([1-9]|1[01])/12 recordings: +\d?\d%.*<(\d\d:\d\d|\?), ", sys.stderr.getvalue())


MEMORY = """
import ctypes, gc, os
from pathlib import Path
import numpy as np, torch
from tzn.corpus.run import Recipe, detect, keep_memory
keep_memory()
torch.set_num_threads(1)
recipe = Recipe("ludb", min_score=0.3)
model = recipe.load()
class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
heap = ctypes.CDLL(None).mallinfo2
heap.restype = Heap
rng = np.random.default_rng(0)
for _ in range(100):
    signals = [rng.normal(size=(n, 12)).astype(np.float32).cumsum(0) for n in rng.integers(700, 1000, 12)]
    detect(model, [model._read(str(i), x, None) for i, x in enumerate(signals)], recipe)
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(heap().uordblks / 1e6, resident / 1e6)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="what is in use is read from glibc's heap")
@pytest.mark.parametrize("kept", [None, "1024"])
def test_memory_does_not_grow_with_the_recordings(kept):
    """Passes of ever other shapes. What is in use stays as it is; with oneDNN's own limit on compiled products it grows. What
    the process holds besides are holes between, which fill up to two thirds more in the first two hundred passes."""
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    environment |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": kept} if kept else {}
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=environment)
    used, resident = np.array([line.split() for line in run.stdout.splitlines()], float).T
    assert len(used) == 100
    grown = np.median(used[-10:]) - np.median(used[20:30])
    assert grown > 2 if kept else grown < 1
    assert np.median(resident[-10:]) < np.median(resident[20:30]) + 200


def test_a_recording_that_kills_its_worker_is_reported(place, tmp_path, monkeypatch):
    """Found among others by taking them one by one; the rest is there."""
    program = tmp_path / "driver.py"
    program.write_text(
        DRIVER.replace(
            "if __name__",
            "import os, signal, tzn.corpus.run as r\nright = r.read\n"
            "def read(model, item):\n    if item.recording == 'r004': os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return right(model, item)\nr.read = read\nif __name__",
        ).replace("workers=2", "workers=1")
    )
    recordings(tmp_path / "many", 6, 60)
    arguments = [str(place / "small.ckpt"), str(tmp_path / "many"), str(tmp_path / "o.parquet"), str(tmp_path / "log")]
    said = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[0] == "5" and said.stdout.split()[2] == "1"
    with open(tmp_path / "o.parquet.failed.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["recording"] == "r004" and "signal 9" in row["reason"]
    assert open_results(tmp_path / "o.parquet").recordings() == {"r000", "r001", "r002", "r003", "r005"}


def test_parts_of_other_settings_are_refused(place, tmp_path):
    items, out = items_of(place)[:2], tmp_path / "o.parquet"
    recipe = Recipe(str(place / "small.ckpt"))
    model = recipe.load()
    plan = plan_module.Plan(out, recipe.run(model))
    with plan.begin({"r000": 5, "r001": 6}, False, {}):
        found, _ = detect(model, [read(model, items[0])], recipe)
        plan_module.write_part(plan.path(0), found, {}, plan.run)
        with pytest.raises(DataError, match="another process"):
            predict_corpus(recipe, items, out, resume=True)
    with pytest.raises(DataError, match="--resume"):
        predict_corpus(recipe, items, out)
    with pytest.raises(DataError, match="min_score: None -> 0.5"):
        predict_corpus(Recipe(recipe.source, min_score=0.5), items, out, resume=True)
    with pytest.raises(DataError, match="not among the inputs, such as 'r001'"):
        predict_corpus(recipe, items[:1], out, resume=True)
    with pytest.raises(DataError, match="another fps or duration"):
        predict_corpus(recipe, [items[0], Item("r001", items[1].path, duration=2.0)], out, resume=True)


def test_manifests_say_what_is_wrong(tmp_path, place):
    def refused(text: str, match: str) -> None:
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(DataError, match=match):
            read_manifest(tmp_path / "m.csv")

    refused("file\nx.npy\n", "column path")
    refused("path\n", "no rows")
    refused("path,fps\nx.npy,fast\n", "row 0: fps = 'fast'")
    refused("path,duration\nx.npy,-1\n", "row 0: duration = '-1'")
    refused("path,recording\nx.npy,a\ny.npy,a\n", "two recordings are named 'a'")
    (tmp_path / "m.csv").write_text("path,fps\nx.npy,25\ns3://b/y.npy,\nf.h5::z,\n")
    found = read_manifest(tmp_path / "m.csv")
    assert [item.recording for item in found] == ["x", "y", "z"]
    assert found[0] == Item("x", str(tmp_path / "x.npy"), 25.0) and found[1].path == "s3://b/y.npy"
    config = tzn.load(place / "small.ckpt").config
    with pytest.raises(DataError, match="no such file"):
        gather([tmp_path / "none"], config, None)
    with pytest.raises(ConfigError, match="workers = 0"):
        predict_corpus(Recipe("hapt"), found, tmp_path / "o.parquet", workers=0)
    with pytest.raises(DataError, match=r"ends in \.parquet"):
        predict_corpus(Recipe("hapt"), found, tmp_path / "o.json")

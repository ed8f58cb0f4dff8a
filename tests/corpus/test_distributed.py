"""The predictor in every kind of table, and a corpus on a local Ray."""

from __future__ import annotations

import csv
import pickle
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import checkpoint, recordings, rows

import tzn
from tzn import distributed
from tzn.corpus.manifest import Item
from tzn.corpus.run import Recipe
from tzn.corpus.table import COLUMNS, open_results
from tzn.distributed import Predictor, predict_on_ray
from tzn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("distributed")
    checkpoint(place / "small.ckpt")
    recordings(place / "in", 6, 120)
    return place


def _tables(paths: list[str]) -> dict:
    arrays = [np.load(path) for path in paths]
    names = [f"r{i:03d}" for i in range(len(paths))]
    return {
        "dict": {"path": np.array(paths)},
        "pandas": pd.DataFrame({"path": paths, "fps": [None] * len(paths)}),
        "arrow": pa.table({"path": paths}),
        "dict-of-signals": {"recording": np.array(names), "signal": [x.copy() for x in arrays]},
        "pandas-of-signals": pd.DataFrame({"recording": names, "signal": [list(x) for x in arrays]}),
        "arrow-of-signals": pa.table({"recording": names, "signal": [x.tolist() for x in arrays]}),
    }


KINDS = ("dict", "pandas", "arrow", "dict-of-signals", "pandas-of-signals", "arrow-of-signals")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_gives_the_localizers_detections(place, kind):
    paths = [str(path) for path in sorted((place / "in").iterdir())]
    batch = _tables(paths)[kind]
    predict = pickle.loads(pickle.dumps(Predictor(place / "small.ckpt", min_score=0.2)))
    found = predict(batch)
    assert type(found) is type(batch)
    if isinstance(found, dict):
        assert all(isinstance(column, np.ndarray) for column in found.values())
    table = pd.DataFrame(found) if isinstance(found, dict) else found.to_pandas() if kind.startswith("arrow") else found
    assert list(table.columns) == list(COLUMNS)
    model = tzn.load(place / "small.ckpt")
    total = 0
    for path in paths:
        wanted = model(path).filter(score=0.2)
        mine = table[table.recording == Path(path).stem]
        np.testing.assert_allclose(mine.start, wanted.segments[:, 0], atol=1e-3)
        assert mine.label.tolist() == [segment.label for segment in wanted]
        total += len(wanted)
    assert len(table) == total > 20


def test_an_iterator_of_frames_as_spark_hands_them_over(place):
    paths = [str(path) for path in sorted((place / "in").iterdir())]
    frames = (pd.DataFrame({"path": [path]}) for path in paths)
    made = list(Predictor(place / "small.ckpt").frames(frames))
    assert len(made) == 6 and all(isinstance(frame, pd.DataFrame) for frame in made)


def test_recordings_that_cannot_be_used(place, tmp_path, caplog):
    (tmp_path / "bad.npy").write_bytes(b"x")
    good = str(place / "in" / "r000.npy")
    batch = pa.table({"path": [str(tmp_path / "bad.npy"), good]})
    with pytest.raises(DataError, match="bad: .*not a NumPy file"):
        Predictor(place / "small.ckpt")(batch)
    assert set(Predictor(place / "small.ckpt", skip=True)(batch)["recording"].to_pylist()) == {"r000"}
    assert "left out 1 recordings, such as bad" in caplog.text
    nested = Predictor(place / "small.ckpt", rows="recordings")(batch)
    assert nested["recording"].to_pylist() == ["bad", "r000"]
    assert nested["failed"][1].as_py() is None and "NumPy" in nested["failed"][0].as_py()
    assert len(nested["detections"][1]) == len(tzn.load(place / "small.ckpt")(good))


def test_batches_that_are_none(place):
    predict = Predictor(place / "small.ckpt")
    with pytest.raises(DataError, match="a list, expected a DataFrame"):
        predict([1])
    with pytest.raises(DataError, match="expected path, or recording and signal"):
        predict({"signal": [np.zeros((5, 7))]})
    with pytest.raises(DataError, match="columns of 1, 2 rows"):
        predict({"path": ["a"], "fps": [1.0, 2.0]})
    with pytest.raises(DataError, match="'a'"):
        predict({"path": ["a", "a"]})
    with pytest.raises(DataError, match="expected \\[T, 7\\]"):
        predict({"recording": ["a"], "signal": [np.zeros((5, 3))]})
    with pytest.raises(ConfigError, match="rows = 'all'"):
        Predictor("hapt", rows="all")
    with pytest.raises(ConfigError, match=r"min_score = 1\.5"):
        Predictor("hapt", min_score=1.5)


def test_a_corpus_on_local_ray_goes_on_where_it_was(place, tmp_path, capsys):
    """Stopped by hand: one file of rows is gone, one is cut off; what is whole stays as it is."""
    from tzn.cli import main

    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"nothing")
    lines = [str(path) for path in sorted((place / "in").iterdir())] + [str(bad)]
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = [
        "corpus",
        str(place / "small.ckpt"),
        str(tmp_path / "m.csv"),
        "--out",
        str(out),
        "--actors",
        "1",
        "--batch-size",
        "2",
    ]
    with pytest.raises(SystemExit):
        main(command)
    assert "in 6 recordings" in capsys.readouterr().out
    with open(out / "failed.csv", newline="") as file:
        assert [row["recording"] for row in csv.DictReader(file)] == ["bad"]
    whole = rows(out / "predictions.parquet")
    assert open_results(out / "predictions.parquet").recordings() == {f"r{i:03d}" for i in range(6)}
    model = tzn.load(place / "small.ckpt")
    assert len(whole) == sum(len(model(path)) for path in lines[:6])
    files = sorted((out / "rows").glob("*.parquet"))
    assert len(files) == 4
    kept = {path: path.read_bytes() for path in files[2:]}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-20])
    bad.unlink()
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(lines[:6]) + "\n")
    assert main(command) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    again = rows(out / "predictions.parquet")
    assert [(r["recording"], r["label"]) for r in again] == [(r["recording"], r["label"]) for r in whole]
    np.testing.assert_allclose([r["start"] for r in again], [r["start"] for r in whole], atol=1e-3)
    assert pq.ParquetFile(out / "predictions.parquet").metadata.num_rows == len(whole)
    assert main([*command, "--min-score", "0.5"]) == 2
    assert "begun with other settings (min_score)" in capsys.readouterr().err


def test_rows_are_written_while_actors_hold_every_cpu(place, tmp_path, monkeypatch):
    """A driver that is killed has lost what is not written: whichever recording is last waits until others are on the disk."""
    ray = pytest.importorskip("ray", reason="pip install 'tzn[ray]'")
    rows, begun, seen = tmp_path / "o" / "rows", tmp_path / "begun", tmp_path / "seen"

    class Waiting(Predictor):
        def __call__(self, batch):
            with begun.open("a") as file:  # the order is Ray's to choose
                file.write("x")
            if len(begun.read_text()) == 3:
                until = time.monotonic() + 600  # a busy machine starts the writer slowly
                while time.monotonic() < until and not list(rows.glob("*.parquet")):
                    time.sleep(0.1)
                seen.write_text(str(len(list(rows.glob("*.parquet")))))
            return super().__call__(batch)

    monkeypatch.setattr(distributed, "Predictor", Waiting)
    files = sorted((place / "in").iterdir())
    items = [Item(name, str(file)) for name, file in zip(("a", "b", "c"), files, strict=False)]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        recipe = Recipe(str(place / "small.ckpt"))
        predict_on_ray(recipe, items, tmp_path / "o", actors=1, batch_size=1, cpus=1, progress=False)
    finally:
        ray.shutdown()
    assert int(seen.read_text()) >= 1

"""Tables of detections: merging, comparing, and the queries of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import rows

from tzn.cli import main
from tzn.corpus.compare import compare_files
from tzn.corpus.table import COLUMNS, Run, join, merge, open_results, rows_of
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError

DOCS = Path(__file__).parents[2] / "docs" / "corpus.md"
CLASSES = ["run", "sit"]


def found(*segments: tuple[float, float, str, float]) -> Detections:
    table = [(a, b, CLASSES.index(label), score) for a, b, label, score in segments]
    columns = np.array(table, dtype=np.float64).reshape(-1, 4)
    return Detections(columns[:, :2], columns[:, 3], columns[:, 2].astype(np.int64), np.full((len(table), 2), 0.1))


def write(path: Path, detections: dict[str, Detections], model: str = "m1", configuration: str = "c1") -> Path:
    run = Run(model, configuration, {"top": None}, CLASSES, 0.3, sorted(k for k, d in detections.items() if not len(d)))
    join(iter([rows_of(detections, run)]), [run], path)
    return path


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    a = {
        "r1": found((0, 10, "run", 0.9), (20, 30, "sit", 0.8), (40, 50, "run", 0.2)),
        "r2": found((0, 4, "sit", 0.7)),
        "r3": found(),
        "only": found((0, 1, "run", 0.9)),
    }
    b = {
        "r1": found((1, 10, "run", 0.6), (20, 30, "run", 0.8)),
        "r2": found((0.5, 4, "sit", 0.9), (0, 3, "sit", 0.5)),
        "r3": found((5, 6, "run", 0.5)),
    }
    return write(tmp_path / "a.parquet", a), write(tmp_path / "b.parquet", b, "m2")


def test_agreement_by_hand(two):
    summary = compare_files(*two).summary()
    assert summary["recordings"] == {"both": 3, "only_a": 1, "only_b": 0}
    # Above 0.3: a has 3 in these recordings, b 5; run of r1 and sit of r2 agree.
    assert summary["detections"] == {"a": 3, "b": 5, "matched": 2, "agreement": 0.5}
    assert summary["classes"]["run"] == {"a": 1, "b": 3, "matched": 1, "agreement": 0.5}
    assert summary["classes"]["sit"]["matched"] == 1
    assert summary["start_difference"]["median"] == pytest.approx(0.75)
    assert summary["end_difference"]["mean"] == pytest.approx(0.0)
    assert summary["score_difference"]["mean"] == pytest.approx((-0.3 + 0.2) / 2)
    assert summary["most_different"][0] == {"recording": "r1", "only_a": 1, "only_b": 1}


def test_overlap_and_scores_decide(two):
    assert compare_files(*two, tiou=0.95).summary()["detections"]["matched"] == 0
    assert compare_files(*two, min_score=0.85).summary()["detections"] == {
        "a": 1,
        "b": 1,
        "matched": 0,
        "agreement": 0.0,
    }
    assert compare_files(two[0], two[0], min_score=0.0).summary()["detections"]["agreement"] == 1.0


def test_command_writes_every_difference(two, tmp_path, capsys):
    assert main(["compare", *map(str, two), "--json", "--out", str(tmp_path / "d.parquet")]) == 0
    assert json.loads(capsys.readouterr().out)["detections"]["matched"] == 2
    made = rows(tmp_path / "d.parquet")
    assert len(made) == 3 + 5 - 2
    assert sum(row["a_start"] is None for row in made) == 3 and sum(row["b_start"] is None for row in made) == 1
    (both,) = [row for row in made if row["recording"] == "r1" and row["a_start"] is not None and row["label"] == "run"]
    assert (both["a_start"], both["b_start"], both["b_score"]) == (0.0, 1.0, 0.6)
    assert main(["compare", *map(str, two)]) == 0
    printed = capsys.readouterr().out
    assert "recordings in both 3, only in a 1" in printed and "most different: r1" in printed


def test_merging_takes_a_recording_of_a_run_once(two, tmp_path):
    more = write(
        tmp_path / "c.parquet", {"r1": found((7, 8, "run", 0.4)), "r9": found(), "r10": found((0, 1, "sit", 1.0))}
    )
    count, left_out = merge([two[0], two[1], more], tmp_path / "all.parquet")
    made = rows(tmp_path / "all.parquet")
    assert (count, left_out) == (len(made), 1) == (5 + 5 + 1, 1)
    results = open_results(tmp_path / "all.parquet")
    assert [(run.model, run.empty) for run in results.runs] == [("m1", ["r3", "r9"]), ("m2", [])]
    assert results.recordings(results.runs[0]) == {"r1", "r2", "r3", "only", "r9", "r10"}
    # A merged file holds both models: choose among them.
    whole = tmp_path / "all.parquet"
    assert compare_files(whole, whole, models=("m1", "m2")).summary()["detections"]["matched"] == 2
    with pytest.raises(DataError, match="2 runs fit"):
        compare_files(whole, whole)


def test_what_cannot_be_compared(two, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet: no table of detections"):
        compare_files(two[0], tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no such file"):
        compare_files(two[0], tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no recording is in both"):
        compare_files(two[0], write(tmp_path / "z.parquet", {"other": found()}))
    with pytest.raises(ConfigError, match="tiou = 0"):
        compare_files(*two, tiou=0)
    with pytest.raises(DataError, match="at least two"):
        merge([two[0]], tmp_path / "m.parquet")


def test_rows_are_joined_in_large_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("tzn.corpus.table.ROWS", 4)
    run = Run("m", "c", {}, CLASSES)
    parts = [rows_of({f"r{i}": found((i, i + 1, "run", 0.5), (i, i + 2, "sit", 0.5))}, run) for i in range(5)]
    assert join(iter(parts), [run], tmp_path / "o.parquet") == 10
    assert [pq.ParquetFile(tmp_path / "o.parquet").metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 2]
    assert [row["recording"] for row in rows(tmp_path / "o.parquet")] == [f"r{i // 2}" for i in range(10)]


def test_queries_of_the_documentation(two, tmp_path, monkeypatch):
    """Every block of SQL in docs/corpus.md runs in DuckDB, and the first ones give what they say."""
    import duckdb

    write(
        tmp_path / "predictions.parquet",
        {"r1": found((0, 10, "run", 0.9), (2, 3, "sit", 0.8)), "r2": found((0, 4, "run", 0.7))},
    )
    two[0].rename(tmp_path / "left.parquet")
    merge([tmp_path / "left.parquet", two[1]], tmp_path / "merged.parquet")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 5
    answers = [duckdb.sql(block).fetchall() for block in blocks]
    assert answers[0] == [("run", 2, 14.0), ("sit", 1, 1.0)]
    assert all(answers)
    described = {row[0] for row in duckdb.sql("DESCRIBE SELECT * FROM 'predictions.parquet'").fetchall()}
    assert described == set(COLUMNS) and all(f"`{name}`" in DOCS.read_text(encoding="utf-8") for name in COLUMNS)

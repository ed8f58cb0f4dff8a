"""Tables: separators, decimals, times, holes, rates, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.readers import read_recording

pa = pytest.importorskip("pyarrow")

T = np.arange(200) / 50
X = np.stack([np.sin(2 * np.pi * T), np.cos(2 * np.pi * 0.5 * T) * 3], axis=1).astype(np.float32)


def _csv(path, columns, *, sep=",", decimal=".", head=True, encoding="utf-8"):
    lines = [sep.join(columns)] if head else []
    rows = zip(*columns.values(), strict=True)
    lines += [sep.join("" if v is None else str(v).replace(".", decimal) for v in row) for row in rows]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


COLUMNS = {"time": T.tolist(), "x": X[:, 0].tolist(), "y": X[:, 1].tolist()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("semicolon.csv", {"sep": ";"}),
        ("german.csv", {"sep": ";", "decimal": ","}),
        ("tab.tsv", {"sep": "\t"}),
        ("german-tab.txt", {"sep": "\t", "decimal": ","}),
        ("bom.csv", {"encoding": "utf-8-sig"}),
        ("excel-unicode.txt", {"sep": "\t", "encoding": "utf-16"}),
    ],
)
def test_the_same_table_in_every_dress(tmp_path, name, options):
    found = read_recording(_csv(tmp_path / name, COLUMNS, **options))
    assert found.channels == ("x", "y") and found.start == 0.0
    assert found.rate == pytest.approx(50)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, X, atol=1e-6)
    assert found.duration == pytest.approx(4.0)


def test_gzip_parquet_and_comments(tmp_path):
    _csv(tmp_path / "a.csv", COLUMNS)
    text = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.csv").write_bytes(b"# phone 7\n# left pocket\n" + text)
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table(COLUMNS), tmp_path / "d.parquet")
    for name in ("b.csv.gz", "c.csv", "d.parquet"):
        np.testing.assert_allclose(read_recording(tmp_path / name).values, X, atol=1e-6)


def test_columns_are_chosen_and_ordered_by_name_and_text_is_left_out(tmp_path):
    path = _csv(tmp_path / "a.csv", {**COLUMNS, "activity": ["walk"] * len(T)})
    assert read_recording(path).channels == ("x", "y")
    chosen = read_recording(path, channels=("y", "x"))
    assert chosen.channels == ("y", "x")
    np.testing.assert_allclose(chosen.values, X[:, ::-1], atol=1e-6)
    with pytest.raises(DataError, match=r"a\.csv: no column 'z' \(channels\); the file has: time, x, y"):
        read_recording(path, channels=("z",))


def test_without_names_columns_are_numbered_and_the_rate_must_be_said(tmp_path):
    path = _csv(tmp_path / "a.csv", {"x": COLUMNS["x"], "y": COLUMNS["y"]}, head=False)
    found = read_recording(path, sample_rate=50)
    assert found.channels == ("column0", "column1") and found.rate == 50
    np.testing.assert_allclose(found.values, X, atol=1e-6)
    with pytest.raises(DataError, match="how many samples a second"):
        read_recording(path)


@pytest.mark.parametrize(
    ("name", "times", "options"),
    [
        ("time_ms", (1000 * T).tolist(), {}),
        ("Timestamp [ms]", (1000 * T).tolist(), {}),
        ("t", (1e6 * T).tolist(), {"time_unit": "us"}),
        ("clock", T.tolist(), {"time": "clock"}),
        ("timestamp_ns", (1e9 * T + 1.7e18).astype(np.int64).tolist(), {}),
        ("date", [str(np.datetime64("2026-01-31T12:00:00") + np.timedelta64(round(1e6 * t), "us")) for t in T], {}),
    ],
)
def test_times_by_name_and_unit(tmp_path, name, times, options):
    found = read_recording(_csv(tmp_path / "a.csv", {name: times, "x": COLUMNS["x"]}), **options)
    assert found.rate == pytest.approx(50, rel=1e-4) and found.channels == ("x",)
    np.testing.assert_allclose(found.values[:, 0], X[:, 0], atol=1e-5)
    if name == "date":
        assert found.start == 1769860800.0


@pytest.mark.parametrize(("rate", "freq"), [(20, 1.0), (100, 1.0), (47.5, 1.0), (33.3, 1.0)])
def test_resampling_keeps_a_slow_wave_and_its_time(tmp_path, rate, freq):
    t = np.arange(1000) / 50
    path = _csv(tmp_path / "a.csv", {"time": t.tolist(), "x": np.sin(2 * np.pi * freq * t).tolist()})
    found = read_recording(path, rate=rate)
    assert found.rate == rate and abs(found.duration - 20) <= 1 / rate
    at = np.arange(len(found.values)) / rate
    inner = (at > 1) & (at < 19)
    np.testing.assert_allclose(found.values[inner, 0], np.sin(2 * np.pi * freq * at[inner]), atol=5e-3)


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path):
    t = np.arange(1000) / 50
    path = _csv(tmp_path / "a.csv", {"time": t.tolist(), "x": np.sin(2 * np.pi * 20 * t).tolist()})
    assert np.abs(read_recording(path, rate=10).values[20:-20]).max() < 0.01  # every fifth sample would alias to 0 Hz


def test_jittered_times_are_interpolated(tmp_path):
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 20, 2000))
    path = _csv(tmp_path / "a.csv", {"time": t.tolist(), "x": np.sin(2 * np.pi * 0.5 * t).tolist()})
    found = read_recording(path, rate=50)
    at = found.rate and t[0] + np.arange(len(found.values)) / 50
    inner = slice(50, -50)
    np.testing.assert_allclose(found.values[inner, 0], np.sin(2 * np.pi * 0.5 * at[inner]), atol=0.03)


def test_a_short_hole_is_bridged_and_a_long_one_refused(tmp_path):
    kept = (T < 1) | (T > 1.5)
    short = {name: np.array(values)[kept].tolist() for name, values in COLUMNS.items()}
    found = read_recording(_csv(tmp_path / "a.csv", short))
    assert len(found.values) == len(T)  # the rows left out are back
    bridge = found.values[51:75, 0]
    np.testing.assert_allclose(np.diff(bridge, 2), 0, atol=1e-5)  # a straight line
    with pytest.raises(DataError, match=r"no samples for 0\.54 s from 0\.980 s on; holes of up to 0\.25 s"):
        read_recording(tmp_path / "a.csv", max_gap=0.25)


def test_missing_values_of_one_channel(tmp_path):
    y = [None if 60 <= i < 80 else v for i, v in enumerate(COLUMNS["y"])]
    path = _csv(tmp_path / "a.csv", {**COLUMNS, "y": y})
    found = read_recording(path)
    np.testing.assert_allclose(found.values[:, 0], X[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.values[60:80, 1], np.linspace(X[59, 1], X[80, 1], 22)[1:-1], atol=1e-5)
    with pytest.raises(DataError, match=r"channel 'y' has no values for 0\.42 s from 1\.180 s on"):
        read_recording(path, max_gap=0.3)
    first = [None if i < 30 else v for i, v in enumerate(COLUMNS["y"])]
    path = _csv(tmp_path / "b.csv", {**COLUMNS, "y": first})
    np.testing.assert_allclose(read_recording(path).values[:30, 1], X[30, 1], atol=1e-6)  # held at the ends
    with pytest.raises(DataError, match="channel 'y' has no values"):
        read_recording(path, max_gap=0.5)


def test_rows_of_one_time_are_averaged(tmp_path):
    doubled = {name: np.repeat(values, 2).tolist() for name, values in COLUMNS.items()}
    doubled["x"] = (np.repeat(X[:, 0], 2) + np.tile([-0.5, 0.5], len(T))).tolist()
    found = read_recording(_csv(tmp_path / "a.csv", doubled))
    np.testing.assert_allclose(found.values, X, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("time,x\n0,1\n1,2\n0.5,3\n", {}, r"row 3: the time falls by 0\.5 s"),
        ("time,x\n0,1\n0.1,oops\n0.2,3\n", {}, r"row 2, column 'x' holds 'oops', expected a number"),
        ("time,x\n0,1\n0.1,inf\n0.2,3\n", {}, "row 2, column 'x' is infinite"),
        ("time,x\n0,1\n,2\n0.2,3\n", {}, "row 2: the time is missing"),
        ("time,x\n0,1\n0,2\n", {}, "1 samples at different times, expected at least two"),
        ("time,x\n", {}, "holds no samples"),
        ("time,x\n0,1\n0.1\n", {}, "cannot be read as a table"),
        ("time,x,x\n0,1,2\n1,2,3\n", {}, "two columns are named 'x'"),
        ("time,t,x\n0,0,1\n1,1,3\n", {}, "columns 'time' and 't' could hold the times"),
        ("time,x\n1700000000000,1\n1700000000020,2\n", {}, "which are no seconds: say the unit"),
        ("time,x\nnoon,1\nnight,2\n", {}, "column 'time' holds 'noon', expected seconds or a date"),
        ("time,x\n0,1\n1,2\n", {"time": "clock"}, r"no column 'clock' \(time\); the file has: time, x"),
        ("time,x\n0,1\n1,2\n", {"rate": -1}, "rate = -1: expected a number > 0"),
        ("time,x\n0,1\n1,2\n", {"decimal": "'"}, "expected . or ,"),
        ("time,who\n0,a\n1,b\n", {}, "no column of numbers besides the times"),
        ("", {}, r"empty \(0 bytes\)"),
    ],
)
def test_bad_tables_are_one_clear_error(tmp_path, text, options, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_recording(tmp_path / "bad.csv", **options)
    assert "\n" not in str(error.value)


def test_missing_foreign_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_recording(tmp_path / "gone.csv")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match=r"no reader for '\.doc'; expected one of \.csv"):
        read_recording(tmp_path / "a.doc")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as a table"):
        read_recording(tmp_path / "a.parquet")


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"reading a\.csv needs the package pyarrow: pip install 'tzn\[signal\]'"):
        read_recording(_csv(tmp_path / "a.csv", COLUMNS))

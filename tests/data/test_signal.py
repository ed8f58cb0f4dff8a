from __future__ import annotations

import numpy as np
import pytest

from tzn.data.signal import check_signal, load_signal, resample, signal_to_features
from tzn.errors import DataError


def test_csv_with_and_without_names_and_npy_give_the_same_samples(tmp_path):
    samples = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", samples)
    rows = [",".join(map(repr, map(float, row))) for row in samples]
    (tmp_path / "b.csv").write_text("x,y,z\n" + "\n".join(rows) + "\n\n")
    (tmp_path / "c.txt").write_text("\n".join(row.replace(",", " ") for row in rows))
    (tmp_path / "d.csv").write_text("\n".join(row.replace(",", ";") for row in rows))
    for name in ("a.npy", "b.csv", "c.txt", "d.csv"):
        np.testing.assert_array_equal(load_signal(tmp_path / name, 3), samples)


def test_steps_hold_their_samples_in_order_and_the_rest_is_left_out():
    samples = np.arange(26, dtype=np.float32).reshape(13, 2)
    features = signal_to_features(samples, 5)
    assert features.shape == (2, 10)
    np.testing.assert_array_equal(features.reshape(10, 2), samples[:10])
    with pytest.raises(DataError, match="4 samples are less than one step of 5"):
        signal_to_features(samples[:4], 5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,2\n1,2,3\n", "line 2 has 3 columns, expected 2"),
        ("a.csv", "x,y\n1,2\n3,?\n", "line 3 holds something that is not a number"),
        ("a.csv", "1,2\n1,nan\n", "line 2 holds a value that is not finite"),
        ("a.csv", "x,y\n", "holds no samples"),
        ("a.csv", "", "holds no samples"),
        ("a.csv", "1.o,2\n3,4\n", "line 1 holds something that is not a number"),
        ("a.csv", "1,two\n3,4\n", "line 1 holds something that is not a number"),
        ("a.wav", "", r"not from '\.wav'"),
    ],
)
def test_bad_signals_are_named_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_signal(tmp_path / name, 2)


def test_a_missing_signal_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="gone"):
        load_signal(tmp_path / "gone.csv", 2)
    with pytest.raises(DataError, match="gone"):
        load_signal(tmp_path / "gone.npy", 2)


def test_a_byte_order_mark_is_no_part_of_the_first_sample(tmp_path):
    for name, header in (("plain.csv", ""), ("names.csv", "x;y\n")):
        (tmp_path / name).write_text(header + "1;2\n3;4\n", encoding="utf-8-sig")
        np.testing.assert_array_equal(load_signal(tmp_path / name, 2), [[1, 2], [3, 4]])


def test_what_can_be_told_without_the_samples(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    (tmp_path / "a.csv").write_text("")
    check_signal(tmp_path / "a.npy", 3)
    for name, message in (("a.npy", "3 wide"), ("a.csv", "no samples"), ("b.csv", "no such"), ("a.mp3", "not from")):
        with pytest.raises(DataError, match=message):
            check_signal(tmp_path / name, 2)


@pytest.mark.parametrize("rate", [100.0, 25.0, 29.97, 44.1])
def test_resampling_keeps_waves_and_their_time(rate):
    pytest.importorskip("scipy")
    seconds = 40.0

    def wave(rate):
        t = np.arange(int(seconds * rate)) / rate
        return np.stack([np.sin(2 * np.pi * 1.3 * t), 5 + np.cos(2 * np.pi * 0.2 * t)], 1).astype(np.float32)

    moved, wanted = resample(wave(rate), rate, 50.0), wave(50.0)
    assert moved.dtype == np.float32 and abs(len(moved) - len(wanted)) <= 2
    inside = slice(50, len(wanted) - 50)
    np.testing.assert_allclose(moved[inside], wanted[inside], atol=5e-3)
    # The ends are not pulled to zero: the second channel stays near 6.
    np.testing.assert_allclose(moved[:5, 1], 6.0, atol=0.2)


def test_what_the_lower_rate_cannot_hold_is_filtered_out():
    pytest.importorskip("scipy")
    t = np.arange(4000) / 100.0
    high = np.sin(2 * np.pi * 40.0 * t).astype(np.float32)[:, None]  # would appear as 10 Hz at 50 samples a second
    assert np.abs(resample(high, 100.0, 50.0)[100:-100]).max() < 0.02


def test_the_same_rate_changes_nothing_and_needs_nothing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.signal", None)
    samples = np.ones((7, 2), np.float32)
    assert resample(samples, 50.0, 50.0) is samples
    with pytest.raises(DataError, match=r"pip install 'tzn\[signal\]'"):
        resample(samples, 100.0, 50.0)
    with pytest.raises(DataError, match="factor of 1,000"):
        resample(samples, 1e-3, 50.0)

from __future__ import annotations

import numpy as np
import pytest

from tzn.data.signal import load_signal, signal_to_features
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

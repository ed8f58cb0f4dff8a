"""Feature files: dtypes, formats and clear errors."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.config import DataConfig
from tzn.data.features import feature_path, load_features, read_header
from tzn.errors import DataError


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "uint8"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_any_real_dtype_becomes_float32(tmp_path, dtype, suffix):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    else:
        np.savez(path, other=np.zeros(2), feats=values)
    features = load_features(path, 3)
    assert features.dtype == np.float32 and features.flags.c_contiguous and features.flags.writeable
    np.testing.assert_array_equal(features, np.arange(12).reshape(4, 3))
    assert read_header(path) == (4, 3, np.dtype(dtype))


def test_column_major_files_read_the_same(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    np.testing.assert_array_equal(load_features(tmp_path / "a.npy"), values)


def saved(array):
    return lambda path: np.save(path, array)


def nan_at(step, channel, value):
    array = np.zeros((6, 3), np.float16)
    array[step, channel] = value
    array[5, 2] = value  # a later one, which is not the first
    return array


def truncated(path):
    np.save(path, np.zeros((100, 3), np.float32))
    path.write_bytes(path.read_bytes()[:-50])


BAD = [
    pytest.param(lambda path: None, "no such feature file", id="missing"),
    pytest.param(lambda path: path.write_bytes(b""), "empty", id="zero-bytes"),
    pytest.param(truncated, "truncated, damaged", id="truncated"),
    pytest.param(
        lambda path: path.write_bytes(b"hello, world, no numpy here"),
        "not a NumPy file: it starts with b'hello,'",
        id="text-file",
    ),
    pytest.param(lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "truncated, damaged", id="cut-in-the-header"),
    pytest.param(saved(np.zeros((4, 5))), "5 wide, expected model.input_dim = 3", id="wrong-width"),
    pytest.param(saved(np.zeros((3, 50))), "looks transposed", id="transposed"),
    pytest.param(saved(np.zeros(4)), r"shape \(4,\), expected two dimensions", id="one-dimension"),
    pytest.param(saved(np.zeros((1, 4, 3))), r"shape \(1, 4, 3\), expected two dimensions", id="three-dimensions"),
    pytest.param(saved(np.zeros((0, 3))), "no steps", id="no-steps"),
    pytest.param(saved(nan_at(4, 1, np.nan)), "nan at step 4, channel 1", id="NaN"),
    pytest.param(saved(nan_at(2, 2, -np.inf)), "-inf at step 2, channel 2", id="minus-infinity"),
    pytest.param(saved(np.full((4, 3), 1e300)), "inf at step 0, channel 0", id="overflows-float32"),
    pytest.param(saved(np.zeros((4, 3), complex)), "complex128, expected real numbers", id="complex"),
    pytest.param(saved(np.zeros((4, 3), bool)), "bool, expected real numbers", id="bool"),
    pytest.param(saved(np.array([["a"]])), "expected real numbers", id="strings"),
    pytest.param(saved(np.array([[None]])), "it holds Python objects, expected numbers", id="pickled-objects"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_file(tmp_path, make, message):
    path = tmp_path / "exp01.npy"
    make(path)
    with pytest.raises(DataError, match=message) as error:
        load_features(path, 3)
    assert "exp01.npy" in str(error.value) and "\n" not in str(error.value)
    assert "allow_pickle" not in str(error.value), "nobody should be told to load code"


def test_npz_without_the_key_lists_its_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.zeros(1))
    with pytest.raises(DataError, match=r"no array 'feats' \(data.npz_key\); the file has: x, y"):
        load_features(tmp_path / "a.npz")
    assert load_features(tmp_path / "a.npz", npz_key="x").shape == (2, 2)


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, feats=np.random.default_rng(0).standard_normal((50, 4)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="truncated, damaged"):
        load_features(path)


def test_file_names_follow_the_configuration(tmp_path):
    config = DataConfig(file_prefix="v_", file_suffix=".npz")
    assert feature_path(tmp_path, "abc.def", config) == tmp_path / "v_abc.def.npz"

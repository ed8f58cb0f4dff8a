"""EDF and WFDB files that the libraries themselves wrote."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.readers import read_recording

T = np.arange(2000) / 100


def _edf(path):
    pyedflib = pytest.importorskip("pyedflib")
    writer = pyedflib.EdfWriter(str(path), 2)
    waves = {"EEG": (100, np.sin(2 * np.pi * T)), "EMG": (200, np.sin(2 * np.pi * 3 * np.arange(4000) / 200))}
    for i, (label, (rate, _)) in enumerate(waves.items()):
        writer.setSignalHeader(i, {
            "label": label, "dimension": "mV", "sample_frequency": rate, "physical_max": 2.0, "physical_min": -2.0,
            "digital_max": 32767, "digital_min": -32768, "prefilter": "", "transducer": "",
        })  # fmt: skip
    writer.writeSamples([wave for _, wave in waves.values()])
    writer.close()
    return path


def test_edf_channels_of_two_rates_come_at_one(tmp_path):
    found = read_recording(_edf(tmp_path / "a.edf"))
    assert found.channels == ("EEG", "EMG") and found.rate == 200 and found.values.shape == (4000, 2)
    at = np.arange(4000) / 200
    np.testing.assert_allclose(found.values[200:-200, 0], np.sin(2 * np.pi * at)[200:-200], atol=5e-3)
    np.testing.assert_allclose(found.values[:, 1], np.sin(2 * np.pi * 3 * at), atol=1e-4)
    one = read_recording(tmp_path / "a.edf", channels=("EEG",), rate=100)
    assert one.rate == 100
    np.testing.assert_allclose(one.values[:, 0], np.sin(2 * np.pi * T), atol=1e-4)
    with pytest.raises(DataError, match=r"no channel 'ECG' \(channels\); the file has: EEG, EMG"):
        read_recording(tmp_path / "a.edf", channels=("ECG",))


def test_damaged_edf(tmp_path):
    whole = _edf(tmp_path / "a.edf").read_bytes()
    (tmp_path / "b.edf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.edf").write_bytes(b"0       " + b"nonsense" * 100)
    for name in ("b.edf", "c.edf"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read as EDF"):
            read_recording(tmp_path / name)


def test_wfdb_in_physical_units_with_short_holes_bridged(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    wave = np.stack([np.sin(2 * np.pi * T), np.cos(2 * np.pi * T)], axis=1)
    holes = wave.copy()
    holes[500:520, 1] = np.nan
    wfdb.wrsamp(
        "r1", fs=100, units=["mV", "mV"], sig_name=["II", "V1"], p_signal=holes, fmt=["16", "16"],
        write_dir=str(tmp_path),
    )  # fmt: skip
    found = read_recording(tmp_path / "r1.hea")
    assert found.channels == ("II", "V1") and found.rate == 100
    np.testing.assert_allclose(found.values[:, 0], wave[:, 0], atol=1e-3)
    assert np.isfinite(found.values).all()
    with pytest.raises(DataError, match=r"r1\.hea: channel 'V1' has no values for 0\.21 s from 4\.990 s on"):
        read_recording(tmp_path / "r1.hea", max_gap=0.1)
    (tmp_path / "r1.dat").unlink()
    with pytest.raises(DataError, match=r"r1\.hea: cannot be read as a WFDB record"):
        read_recording(tmp_path / "r1.hea")

"""Log-mel bands against values known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from tzn.errors import DataError
from tzn.readers import read_recording
from tzn.readers.sound import FLOOR, WINDOW, log_mel, mel_weights, mono

soundfile = pytest.importorskip("soundfile")


def _tone(path, frequency=1000.0, seconds=2.0, rate=16000, channels=1, amplitude=0.5):
    t = np.arange(round(seconds * rate)) / rate
    x = amplitude * np.sin(2 * np.pi * frequency * t)
    soundfile.write(path, np.stack([x] * channels, axis=1), rate, subtype="PCM_16" if path.suffix != ".ogg" else None)
    return path


def test_a_tone_has_the_magnitude_of_its_window(tmp_path):
    """A sine of amplitude A at bin 32 (1000 Hz): |X| is A / 2 times the spectrum of the window, moved there; at the bin
    itself A / 2 times the window's sum, N / 2."""
    found = read_recording(_tone(tmp_path / "a.wav"))
    assert found.rate == 100 and found.channels[0] == "mel0" and found.values.shape == (198, 64)
    bins = np.arange(257)
    n = np.arange(WINDOW)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / WINDOW)
    # The window's transform moved to bin 32; the mirrored part at -32 is 60 dB below and left out.
    shape = np.abs(np.exp(-2j * np.pi * np.outer(bins - 32, n) / 512) @ window) * 0.25
    assert shape[32] == pytest.approx(0.25 * WINDOW / 2)
    expected = np.log(shape @ mel_weights() + FLOOR)
    loud = expected > np.log(0.5)
    assert loud.sum() >= 4
    np.testing.assert_allclose(found.values[50][loud], expected[loud], atol=0.02)
    assert found.values[50].argmax() == expected.argmax()


def test_silence_is_the_floor(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    np.testing.assert_allclose(read_recording(tmp_path / "a.wav").values, np.log(FLOOR), rtol=1e-6)


def test_triangles_are_equally_wide_on_the_mel_scale():
    weights = mel_weights()
    assert weights.shape == (257, 64) and weights.min() == 0 and weights.max() <= 1
    assert 1127 * np.log1p(1000 / 700) == pytest.approx(999.99, abs=0.01)  # 1000 Hz are 1000 mel
    hertz = np.arange(257) * 31.25
    assert not weights[(hertz <= 125) | (hertz >= 7500)].any()
    mel, (low, high) = 1127 * np.log1p(hertz / 700), 1127 * np.log1p(np.array([125, 7500]) / 700)
    inner = (mel > low + (high - low) / 65) & (mel < high - (high - low) / 65)  # from the first centre to the last
    np.testing.assert_allclose(weights[inner].sum(1), 1, atol=1e-12)  # neighbours share what lies between them


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (48000, 1)])
def test_other_rates_channels_and_formats_sound_the_same(tmp_path, name, rate, channels):
    found = read_recording(_tone(tmp_path / name, rate=rate, channels=channels)).values
    expected = read_recording(_tone(tmp_path / "b.wav")).values
    assert len(found) == len(expected)
    loudest = expected[50] > expected[50].max() - 2
    np.testing.assert_allclose(found[50][loudest], expected[50][loudest], atol=0.1)


def test_blocks_change_nothing(tmp_path, monkeypatch):
    from scipy.signal import resample_poly

    from tzn.readers import sound

    x = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 3 + 17)
    soundfile.write(tmp_path / "a.wav", x, 44100, subtype="DOUBLE")
    monkeypatch.setattr(sound, "BLOCK_SECONDS", 1)
    blocks = list(mono(tmp_path / "a.wav"))
    assert len(blocks) == 4
    whole = resample_poly(x, 160, 441)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-12)
    pieces = np.concatenate(list(log_mel(np.array_split(whole, [7, 411, 412, 9000]), 160)))
    np.testing.assert_array_equal(pieces, np.concatenate(list(log_mel([whole], 160))))
    assert len(pieces) == (len(whole) - 400) // 160 + 1


def test_bad_sound(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(DataError, match=r"a\.wav: cannot be read as sound"):
        read_recording(tmp_path / "a.wav")
    with pytest.raises(DataError, match="less than one window of 25 ms"):
        read_recording(_tone(tmp_path / "b.wav", seconds=0.02))
    with pytest.raises(DataError, match="rate = 33: expected steps a second that divide 16000"):
        read_recording(_tone(tmp_path / "c.wav"), rate=33)
    whole = _tone(tmp_path / "d.flac", frequency=433.0, seconds=3).read_bytes()
    (tmp_path / "e.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"e\.flac: (the sound ends after|cannot be read as sound)"):
        read_recording(tmp_path / "e.flac")

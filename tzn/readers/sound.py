"""Sound as log-mel bands, in constant memory.

The formula of Google's VGGish (Hershey et al. 2017), so that its users find what they know: channels averaged, 16 kHz,
periodic Hann window of 25 ms, magnitude of a 512-point Fourier transform, 64 triangles that are equally wide on the mel
scale ``m(f) = 1127 ln(1 + f / 700)`` between 125 and 7500 Hz, then ``ln(x + 0.01)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from tzn.errors import DataError
from tzn.optional import require
from tzn.readers.recording import Recording

SAMPLE_RATE = 16000
WINDOW = 400
FFT = 512
BANDS = 64
LOW, HIGH = 125.0, 7500.0
FLOOR = 0.01
BLOCK_SECONDS = 30


def read_log_mel(path: Path, rate: float = 100.0) -> Recording:
    """A sound file as log-mel bands: ``[T, 64]``; step i sees the samples ``[160 i, 160 i + 400)`` of 16 kHz at rate 100.

    Raises:
        DataError: unreadable file, less than 25 ms of sound, a rate that does not divide 16,000.
    """
    blocks = list(log_mel_blocks(path, rate))
    if not blocks:
        raise DataError(f"less than one window of {1000 * WINDOW // SAMPLE_RATE} ms of sound")
    return Recording(np.concatenate(blocks), rate, tuple(f"mel{i}" for i in range(BANDS)))


def log_mel_blocks(path: Path, rate: float) -> Iterator[np.ndarray]:
    """The rows of :func:`read_log_mel`, about half a minute at a time."""
    hop = round(SAMPLE_RATE / rate)
    if hop < 1 or abs(hop * rate - SAMPLE_RATE) > 1e-6 * SAMPLE_RATE:
        raise DataError(f"rate = {rate:g}: expected steps a second that divide {SAMPLE_RATE}, such as 100, 50 or 25")
    return log_mel(mono(path), hop)


def log_mel(blocks: Iterable[np.ndarray], hop: int) -> Iterator[np.ndarray]:
    """Rows ``[n, 64]`` float32 of consecutive blocks of 16 kHz samples; the cut into blocks changes nothing."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    weights = mel_weights()
    rest = np.zeros(0)
    for block in blocks:
        rest = np.concatenate([rest, block])
        count = (len(rest) - WINDOW) // hop + 1
        if count <= 0:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(rest, WINDOW)[: count * hop : hop]
        spectrum = np.abs(np.fft.rfft(frames * window, FFT))
        yield np.log(spectrum @ weights + FLOOR).astype(np.float32)
        rest = rest[count * hop :]


def mel_weights() -> np.ndarray:
    """Triangles ``[257, 64]``: from 0 at one mel point to 1 at the next and back, straight on the mel scale."""
    mel = 1127.0 * np.log1p(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT / 700.0)[:, None]
    first, last = (1127.0 * float(np.log1p(edge / 700.0)) for edge in (LOW, HIGH))
    points = np.linspace(first, last, BANDS + 2)
    low, centre, high = points[:-2], points[1:-1], points[2:]
    rising, falling = (mel - low) / (centre - low), (high - mel) / (high - centre)
    weights: np.ndarray = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def mono(path: Path) -> Iterator[np.ndarray]:
    """Blocks of float64 samples at 16 kHz, channels averaged; equal to resampling the whole file at once."""
    soundfile = require("soundfile", f"reading {path.name}", "audio")
    try:
        with soundfile.SoundFile(path) as file:
            yield from _resampled(file)
    except soundfile.SoundFileError as error:
        raise DataError(f"cannot be read as sound ({' '.join(str(error).split())})") from None


def _resampled(file) -> Iterator[np.ndarray]:  # type: ignore[no-untyped-def]
    signal = require("scipy.signal", "resampling sound", "audio")
    ratio = Fraction(SAMPLE_RATE, file.samplerate)
    up, down = ratio.numerator, ratio.denominator
    # Blocks begin where an input and an output sample coincide, and see as far as the filter (10 max(up, down) / up).
    block = max(1, BLOCK_SECONDS * file.samplerate // down) * down
    margin = -(-(10 * max(up, down) // up + 2) // down) * down
    for start in range(0, file.frames, block):
        first = max(0, start - margin)
        file.seek(first)
        x = file.read(start + block + margin - first, dtype="float64", always_2d=True).mean(1)
        wanted = min(block, file.frames - start)
        if len(x) < min(start + block + margin, file.frames) - first:
            raise DataError(
                f"the sound ends after {(first + len(x)) / file.samplerate:.2f} s, before its stated length"
            )
        y = signal.resample_poly(x, up, down) if up != down else x
        skipped = (start - first) // down * up
        yield y[skipped : skipped + -(-wanted * up // down)]

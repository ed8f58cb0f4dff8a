"""A user's own files as numbers in time: one reader for each kind of file, chosen by its suffix.

Beside :mod:`tzn.data`, which holds what training sees: this is where that comes from, and where the optional libraries
are. Formats: tables (CSV, TSV, Parquet), sound, EDF and WFDB, video.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tzn.errors import DataError
from tzn.readers.recording import Recording

__all__ = ["Recording", "has_times", "kind_of", "read_recording"]

SIGNAL_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".edf", ".bdf", ".hea")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".h264", ".wmv", ".flv")
SUFFIXES = {"samples": SIGNAL_SUFFIXES, "sound": SOUND_SUFFIXES, "video": VIDEO_SUFFIXES}


def kind_of(path: str | Path) -> str | None:
    """ "samples", "sound" or "video" by the suffix of a file name, or None."""
    name = Path(path).name.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def has_times(path: str | Path) -> bool:
    """Whether a file of samples says itself when they were taken: EDF, BDF, WFDB, a table with a column of times.

    Raises:
        DataError: a table whose first lines cannot be read; the message begins with the path.
    """
    path = Path(path)
    if path.suffix.lower() in (".edf", ".bdf", ".hea"):
        return True
    from tzn.readers.table import clock_of

    try:
        return clock_of(path) is not None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_recording(
    path: str | Path,
    *,
    rate: float | None = None,
    channels: tuple[str, ...] = (),
    time: str | None = None,
    time_unit: str | None = None,
    sample_rate: float | None = None,
    decimal: str | None = None,
    max_gap: float = 1.0,
    extractor: str | None = None,
) -> Recording:
    """Read a recording of any kind.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt`` (also ``.gz``), ``.parquet``; ``.edf``, ``.bdf``, ``.hea`` (WFDB); ``.wav``,
            ``.flac``, ``.ogg`` (as 64 log-mel bands); a video file (as features of its pictures).
        rate: rows a second wanted. Signals are resampled to it (None: as recorded; channels of different rates: the
            highest); of a video it is the number of pictures taken a second (None: 5); log-mel steps have a rate of
            100 (None) or this.
        channels: names of the columns or channels wanted, in this order; none: all that hold numbers.
        time: name of the column with the times; None: the one called time, timestamp, t, … if there is one.
        time_unit: "s", "ms", "us" or "ns"; None: as the column's name ends ("time_ms", "t [s]"), else seconds.
        sample_rate: samples a second of a table without times.
        decimal: "." or ","; None: as it looks.
        max_gap: missing values and times are bridged by straight lines up to this many seconds; longer holes are refused.
        extractor: of video, see :func:`tzn.readers.extractors.load_extractor`; None: "efficientnet-lite0".

    Raises:
        DataError: missing, empty or damaged file, unknown suffix or column, a hole too long to bridge, a package that
            is not installed; the message begins with the path.
    """
    path = Path(path)
    if time_unit not in (None, "s", "ms", "us", "ns"):
        raise DataError(f"time_unit = {time_unit!r}: expected s, ms, us or ns")
    if decimal not in (None, ".", ","):
        raise DataError(f"decimal = {decimal!r}: expected . or ,")
    for name, value in (("rate", rate), ("sample_rate", sample_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise DataError(f"{name} = {value}: expected a number > 0")
    if not max_gap >= 0:
        raise DataError(f"max_gap = {max_gap}: expected seconds >= 0")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    try:
        return _reader(path)(
            path, rate=rate, channels=tuple(channels), time=time, time_unit=time_unit, sample_rate=sample_rate,
            decimal=decimal, max_gap=max_gap, extractor=extractor,
        )  # fmt: skip
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _reader(path: Path) -> Callable[..., Recording]:
    kind, suffix = kind_of(path), path.suffix.lower()
    if kind == "sound":
        return _read_sound
    if kind == "video":
        return _read_video
    if suffix in (".edf", ".bdf", ".hea"):
        return _read_medical
    if kind == "samples":
        return _read_table
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise DataError(f"no reader for {suffix!r}; expected one of {known}")


def _read_table(path: Path, *, extractor: str | None, **options: Any) -> Recording:
    from tzn.readers.table import read_table

    return read_table(path, **options)


def _read_medical(path: Path, *, rate: float | None, channels: tuple[str, ...], max_gap: float, **_: Any) -> Recording:
    from tzn.readers.medical import read_edf, read_wfdb

    return (read_wfdb if path.suffix.lower() == ".hea" else read_edf)(path, rate, channels, max_gap)


def _read_sound(path: Path, *, rate: float | None, **_: Any) -> Recording:
    from tzn.readers.sound import read_log_mel

    return read_log_mel(path, rate or 100.0)


def _read_video(path: Path, *, rate: float | None, extractor: str | None, **_: Any) -> Recording:
    import numpy as np

    from tzn.readers.extractors import load_extractor
    from tzn.readers.video import sample_frames

    loaded, rate = load_extractor(extractor or "efficientnet-lite0"), rate or 5.0
    blocks = list(loaded.run(sample_frames(path, rate, loaded.size)))
    values = np.concatenate(blocks)
    return Recording(values, rate, tuple(f"{loaded.name}.{i}" for i in range(values.shape[1])))

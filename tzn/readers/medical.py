"""EDF, BDF and WFDB recordings, read by pyEDFlib and wfdb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tzn.data.signal import resample
from tzn.errors import DataError
from tzn.optional import require
from tzn.readers.recording import Recording
from tzn.readers.timing import at_one_rate


def read_edf(path: Path, rate: float | None, channels: tuple[str, ...], max_gap: float) -> Recording:
    """An EDF, EDF+ or BDF file in physical units; channels of other rates are resampled to one.

    Raises:
        DataError: damaged or discontinuous file, unknown channel.
    """
    pyedflib = require("pyedflib", f"reading {path.name}", "medical", "pyEDFlib")
    try:
        reader = pyedflib.EdfReader(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as EDF ({' '.join(str(error).split())})") from None
    try:
        labels = [label.strip() for label in reader.getSignalLabels()]
        chosen = _chosen(labels, channels)
        rates = [float(reader.getSampleFrequency(labels.index(name))) for name in chosen]
        columns = [reader.readSignal(labels.index(name)) for name in chosen]
        start = reader.getStartdatetime()
    finally:
        reader.close()
    wanted = rate or max(rates)
    moved = [resample(x[:, None].astype(np.float32), r, wanted) for x, r in zip(columns, rates, strict=True)]
    length = min(map(len, moved))
    if not length:
        raise DataError("holds no samples")
    values = np.concatenate([x[:length] for x in moved], axis=1)
    seconds = float((np.datetime64(start, "us") - np.datetime64(0, "us")) / np.timedelta64(1, "s"))
    return Recording(values, wanted, chosen, seconds)


def read_wfdb(path: Path, rate: float | None, channels: tuple[str, ...], max_gap: float) -> Recording:
    """A WFDB record (``.hea`` with its ``.dat``) in physical units; invalid samples are holes.

    Raises:
        DataError: damaged header, missing or short signal file, unknown channel, a hole longer than ``max_gap``.
    """
    wfdb = require("wfdb", f"reading {path.name}", "medical")
    try:
        record: Any = wfdb.rdrecord(str(path.with_suffix("")))
    except Exception as error:  # wfdb lets whatever its parsing meets through
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise DataError(f"cannot be read as a WFDB record ({reason})") from None
    if record.p_signal is None or not len(record.p_signal):
        raise DataError("holds no samples")
    chosen = _chosen(record.sig_name, channels)
    values = record.p_signal[:, [record.sig_name.index(name) for name in chosen]]
    times = np.arange(len(values)) / float(record.fs)
    moved, found = at_one_rate(times, values, chosen, rate, max_gap)
    return Recording(moved, found, chosen)


def _chosen(labels: list[str], channels: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name in channels if name not in labels]
    if missing:
        raise DataError(f"no channel {missing[0]!r} (channels); the file has: {', '.join(labels[:20])}")
    return channels or tuple(labels)

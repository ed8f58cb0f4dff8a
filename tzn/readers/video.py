"""Pictures of a video file at a fixed rate, decoded by PyAV, one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tzn.errors import DataError
from tzn.optional import require

LONGEST_PAUSE = 3600.0  # seconds between two pictures beyond which a timestamp is taken for damaged
SHORT = 1.0  # seconds that a file may end early without a warning


def stated_duration(path: Path) -> float | None:
    """Seconds by the file's header, or None where it does not say."""
    with _opened(path) as (container, stream):
        return _stated(container, stream)


def sample_frames(path: Path, rate: float, size: int, fit: str = "stretch") -> Iterator[np.ndarray]:
    """The picture on the screen at ``(i + 0.5) / rate`` seconds, i = 0, 1, …: ``[size, size, 3]`` uint8 RGB.

    By the pictures' timestamps, so a variable frame rate is no matter; second 0 is the first picture. They are turned
    as the file's rotation says.

    Args:
        path: video file.
        rate: pictures a second.
        size: of the result, pixels.
        fit: "stretch" shows the whole picture squeezed into a square, "crop" its centre.

    Raises:
        DataError: no video, nothing that can be decoded, senseless timestamps. A damaged or truncated file gives what
            is there and warns.
    """
    with _opened(path) as (container, stream):
        stated = _stated(container, stream)
        count, previous, at, end = 0, None, 0.0, 0.0
        damaged: list[int] = []
        for at, frame in _timed(container, stream, damaged):
            while previous is not None and (count + 0.5) / rate < at:
                yield _picture(previous, size, fit)
                count += 1
            shown = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            end = at + (shown or 1.0 / float(stream.average_rate or 25))
            previous = frame
        if previous is None:
            raise DataError(f"{path}: no picture can be decoded; the file is damaged or truncated")
        while (count + 0.5) / rate < end or count == 0:
            yield _picture(previous, size, fit)
            count += 1
    if damaged:
        warnings.warn(f"{path}: {len(damaged)} damaged parts were left out", stacklevel=2)
    if stated is not None and end < stated - max(SHORT, 1.0 / rate):
        warnings.warn(f"{path}: ends at {end:.2f} s of the stated {stated:.2f} s (truncated file?)", stacklevel=2)


class _opened:
    """(container, video stream) of a file, closed at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        av = require("av", f"reading {self.path.name}", "video")
        try:
            self.container = av.open(str(self.path), metadata_errors="ignore")
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: cannot be read as video ({_reason(error)})") from None
        streams = [s for s in self.container.streams.video if not _is_cover(s)]
        if not streams:
            self.container.close()
            raise DataError(f"{self.path}: holds no video stream")
        streams[0].thread_type = "AUTO"
        return self.container, streams[0]

    def __exit__(self, *_: object) -> None:
        self.container.close()


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture on the cover of a sound file."""
    return "attached_pic" in str(stream.disposition)


def _stated(container: Any, stream: Any) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _timed(container: Any, stream: Any, damaged: list[int]) -> Iterator[tuple[float, Any]]:
    """(seconds after the first picture, picture) in rising order; parts that cannot be decoded are counted and left out."""
    step = 1.0 / float(stream.average_rate or 25)
    zero, last = None, -step
    for frame in _decoded(container, stream, damaged):
        seconds = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        if zero is None:
            zero = seconds or 0.0
        at = last + step if seconds is None else seconds - zero
        if at > last + LONGEST_PAUSE:
            raise DataError(f"{container.name}: the time jumps from {last:.2f} s to {at:.0f} s: damaged timestamps")
        if at <= last:
            continue
        yield at, frame
        last = at


def _decoded(container: Any, stream: Any, damaged: list[int]) -> Iterator[Any]:
    errors = require("av.error", "reading video", "video")
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except errors.FFmpegError:
            damaged.append(1)
            return
        try:
            yield from packet.decode()
        except errors.EOFError:
            return
        except errors.FFmpegError:
            damaged.append(1)


def _picture(frame: Any, size: int, fit: str) -> np.ndarray:
    turns = round(frame.rotation / 90) % 4
    width, height = size, size
    if fit == "crop":
        scale = size / min(frame.width, frame.height)
        width, height = max(size, round(frame.width * scale)), max(size, round(frame.height * scale))
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(np.rot90(image[top : top + size, left : left + size], turns))


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())

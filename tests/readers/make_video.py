"""Small video files whose pictures say when they are shown."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np


def make_video(path: Path, times: list[float], grays: list[int], *, codec="libx264", corner: int | None = None) -> Path:
    """Pictures of 64 x 48 pixels, each of one gray, at these seconds; ``corner`` brightens the upper left quarter."""
    import av

    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # the index first: half a file can be read
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"crf": "10", "bf": "2"}
        for seconds, gray in zip(times, grays, strict=True):
            image = np.full((48, 64, 3), gray, np.uint8)
            if corner is not None:
                image[:24, :32] = corner
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate(path: Path, degrees: int) -> None:
    """Write a rotation into the track header of an ``.mp4`` file, as phones do."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    a, b, c, d = (int(x * 65536).to_bytes(4, "big", signed=True) for x in matrix)
    zero, one = bytes(4), (1 << 30).to_bytes(4, "big")
    content[at : at + 36] = a + b + zero + c + d + zero + zero + zero + one
    path.write_bytes(content)

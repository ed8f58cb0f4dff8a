"""Saving small pictures: PNG with a palette, a third of the size of full colour."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from tzn.files import atomic_write

COLOURS = 96


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG at 100 dots per inch."""
    from PIL import Image  # comes with matplotlib

    full = io.BytesIO()
    figure.savefig(full, format="png", dpi=100)
    small = Image.open(full).convert("RGB").quantize(COLOURS)
    with atomic_write(path, "wb") as file:
        small.save(file, format="PNG", optimize=True)

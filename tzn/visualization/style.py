"""What all pictures share: lazy matplotlib, colours, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tzn.errors import DataError, TznError
from tzn.files import atomic_write

# Okabe and Ito's palette (distinguishable without colour vision), then lighter mixes of it for more classes.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#666666",
    "#7FB8D8", "#F2CE7F", "#7FCEB9", "#EAAE7F", "#E5BCD3", "#AAD9F4", "#B8A93A", "#B2B2B2",
)  # fmt: skip
START_COLOUR, END_COLOUR = "#0072B2", "#D55E00"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of this size in inches, without pyplot's global state.

    Raises:
        TznError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TznError("pictures need matplotlib: pip install 'tzn[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a ``.png`` (100 dots per inch) or ``.svg``.

    Raises:
        DataError: another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise DataError(f"{path}: pictures are written as .png or .svg")
    import matplotlib
    from matplotlib.text import Text

    # Names are names: matplotlib would read "$x_{$" as a formula, and fail.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}), atomic_write(path, "wb") as file:
        figure.savefig(file, format=suffix[1:], dpi=100)
    return path


def plain(text: str) -> str:
    """Text of a user's for matplotlib, which would else read what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def colour_of(label: int) -> str:
    return PALETTE[label % len(PALETTE)]

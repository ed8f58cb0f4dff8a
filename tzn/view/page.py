"""A page as one HTML file: template, style and script of ``static/`` with the data inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import mimetypes
import os
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tzn.errors import DataError
from tzn.files import atomic_write
from tzn.view.payload import Quantised, pack, pack_bytes, quantise
from tzn.view.sources import PageRecording, Signal, Sources
from tzn.visualization.style import PALETTE

SCRIPTS = ("matching.js", "model.js", "curves.js", "timeline.js", "pointer.js", "page.js")
CURVES = ("depth", "start_distance", "end_distance", "start_scale", "end_scale")
MAX_LABELS = 1 << 16


def write_page(path: str | Path, sources: Sources, *, embed: bool = False, title: str | None = None) -> None:
    """Write an HTML page that shows recordings and lets them be annotated; it works from a disk, without a network.

    Labels and names are data inside the page, never markup, and its Content-Security-Policy allows no script, style or
    connection but its own.

    Args:
        path: the ``.html`` file.
        sources: from :func:`tzn.view.sources.gather`.
        embed: put videos into the page instead of naming them by a path relative to it.
        title: of the page; default: the name of the file.

    Raises:
        DataError: another suffix than ``.html``.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out {path}: pages are written as .html")
    text = page_text(sources, path.parent, embed=embed, title=title or path.stem)
    with atomic_write(path) as file:
        file.write(text)


def page_text(sources: Sources, folder: Path, *, embed: bool, title: str) -> str:
    """The page; ``folder`` is where it will lie, for relative paths to media."""
    if len(sources.classes) > MAX_LABELS:
        raise DataError(f"{len(sources.classes)} classes: a page holds up to {MAX_LABELS}")
    blobs: dict[str, str] = {}
    data = {
        "title": title,
        "classes": sources.classes,
        "labelIds": sources.label_ids,
        "palette": PALETTE,
        "predicted": sources.predicted,
        "threshold": sources.threshold,
        "bestScore": max(
            (r.detections.scores.max(initial=0.0) for r in sources.recordings if r.detections), default=0.0
        ),
        "annotated": sources.original is not None,
        "recordings": [_recording(r, i, folder, embed, blobs) for i, r in enumerate(sources.recordings)],
    }
    if sources.original is not None:
        blobs["original"] = pack_bytes(_json(sources.original).encode())
    return filled(data, blobs, title=title)


def filled(
    data: Any, blobs: dict[str, str], *, title: str, more_scripts: tuple[str, ...] = (), more_styles: tuple[str, ...] = (),
    script_sources: str = "",
) -> str:  # fmt: skip
    """The template with its data, style and script, and a policy that allows these and no others.

    Args:
        data: what the script finds in ``tzn-data``; blobs: texts that it finds by id.
        more_scripts, more_styles: files of ``static/`` after the page's own.
        script_sources: what the policy lets the page load besides.
    """
    style = "\n".join(_static(name) for name in ("page.css", *more_styles))
    script = '"use strict";\n' + "\n".join(_static(name) for name in (*SCRIPTS, *more_scripts))
    policy = (
        f"default-src 'none'; script-src {_digest(script)}{script_sources}; style-src {_digest(style)}; "
        "media-src 'self' file: blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    texts = "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blobs.items())
    parts = {
        "POLICY": policy, "TITLE": html.escape(title), "STYLE": style, "SCRIPT": script, "BLOBS": texts,
        "DATA": _json_for_html(data),
    }  # fmt: skip
    # Split once: text that is put in cannot itself be taken for a place to put text in.
    pieces = _static("page.html").split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _recording(page: PageRecording, number: int, folder: Path, embed: bool, blobs: dict[str, str]) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    entry = page.entry or {}
    content: dict[str, Any] = {
        "id": page.id,
        "subset": entry.get("subset", "training"),
        "fps": entry.get("fps"),
        "duration": page.duration,
        "truth": [
            [*segment, label, origin]
            for segment, label, origin in zip(
                page.segments.tolist(), page.labels.tolist(), page.origin.tolist(), strict=True
            )
        ],
        "found": 0,
    }
    if (found := page.detections) is not None:
        content["found"] = len(found.scores)
        arrays |= {
            "segments": found.segments.astype(np.float64), "scores": found.scores.astype(np.float32),
            "labels": found.labels.astype(np.uint16),
        }  # fmt: skip
        if found.std is not None:
            arrays["std"] = found.std.astype(np.float32)
    if page.trace is not None:
        time = page.trace["time"]
        step = float(time[1] - time[0]) if len(time) > 1 else 1.0
        content["trace"] = {"first": float(time[0]) if len(time) else 0.0, "step": step, "range": {}}
        for name in CURVES:
            content["trace"]["range"][name] = _add(arrays, name, quantise(page.trace[name]))
        for side in ("start", "end"):
            arrays[f"{side}_crossings"] = page.trace[f"{side}_crossings"].astype(np.float64)
    if page.signal is not None:
        content["signal"] = _signal(page.signal, arrays)
    if page.media is not None:
        content["media"] = _media(page.media, number, folder, embed, blobs)
    content["arrays"], blobs[f"recording-{number}"] = pack(arrays)
    return content


def _add(arrays: dict[str, np.ndarray], name: str, q: Quantised) -> list[float]:
    arrays[name] = q.values
    return [q.low, q.high]


def _signal(signal: Signal, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    ranges = [_add(arrays, f"signal_{i}", quantise(column)) for i, column in enumerate(signal.samples.T)]
    # One spike must not flatten the rest: curves are drawn between outer quantiles, and clipped.
    shown = np.quantile(signal.samples, [0.0005, 0.9995], axis=0).T.tolist()
    return {"rate": signal.rate, "names": signal.names, "range": ranges, "shown": shown}


def _media(media: Path, number: int, folder: Path, embed: bool, blobs: dict[str, str]) -> dict[str, Any]:
    kind = mimetypes.guess_type(media.name)[0] or "video/mp4"
    content: dict[str, Any] = {"name": media.name, "type": kind}
    if embed:
        content["blob"] = f"media-{number}"
        blobs[content["blob"]] = base64.b64encode(media.read_bytes()).decode()
        return content
    try:
        content["src"] = quote(Path(os.path.relpath(media.resolve(), folder.resolve())).as_posix())
    except ValueError:  # another drive
        content["src"] = media.resolve().as_uri()
    return content


def _json_for_html(data: Any) -> str:
    """JSON that no HTML parser can take for the end of its script element or the start of another."""
    return _json(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _json(data: Any) -> str:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise DataError("the annotations hold a number that is not finite; a page saves none") from None


def _static(name: str) -> str:
    return (resources.files("tzn.view") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

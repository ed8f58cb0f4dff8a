"""Writing files so that a crash never leaves half of one behind."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # names that mkstemp makes below
MAX_STEM = 200  # a name may have 255 bytes; the rest is for the temporary one's own marks


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` once the block ends without an error.

    Devices and pipes (``/dev/stdout``) are written as they are: renaming would put a file in their place.

    Args:
        path: final name; missing parent folders are made.
        mode: "w" (UTF-8 text) or "wb".

    Raises:
        OSError: always with the name of the file.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file to write", str(path))
        if path.exists() and not path.is_file():
            with open(path, mode, **text) as file:  # type: ignore[call-overload]
                yield file
            return
        with _renamed(path, mode, text) as file:
            yield file
    except OSError as error:
        # A full disk, or a limit on file sizes, does not say which file; a temporary name says nothing to the user.
        if error.filename is None or TEMPORARY.fullmatch(Path(str(error.filename)).name):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextlib.contextmanager
def _renamed(path: Path, mode: str, text: dict[str, str]) -> Iterator[IO[Any]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(path.name)[:MAX_STEM])
    if len(os.fsencode(path.name)) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{stem}.", suffix=".tmp")
    try:
        with open(handle, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; outputs should obey the user's umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def cache_folder() -> Path:
    """``$TZN_CACHE``, else ``~/.cache/tzn``."""
    return Path(os.environ.get("TZN_CACHE") or Path.home() / ".cache" / "tzn")


def remove_temporary_of(path: Path) -> None:
    """Delete what a kill left of :func:`atomic_write` to ``path``; nobody else may be writing it."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if TEMPORARY.fullmatch(stale.name) and len(stale.name) == len(f".{path.name}.") + 12:
            stale.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> int:
    """Delete what a kill left of :func:`atomic_write` anywhere under ``folder``; nobody else may be writing there."""
    stale = [path for path in folder.rglob(".*.tmp") if TEMPORARY.fullmatch(path.name) and path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)

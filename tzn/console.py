"""How a command talks: what goes to stderr and how much of it, and files that are ``-``.

Modules log to ``logging.getLogger("tzn")`` and warn with :mod:`warnings`; here both become lines on stderr. Bars are
tqdm's: on stderr, with ``disable=None``, which leaves them out where that is no terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tzn.errors import DataError, LimitWarning, Terminated

LOG = logging.getLogger("tzn")
STANDARD = "-"
# First bytes of files that may come through a pipe: their suffix.
MAGIC = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"\x1f\x8b": ".gz"}


@contextlib.contextmanager
def talking(command: str, *, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Inside, what the package logs and warns of stands on stderr as ``tzn COMMAND: …``, line by line.

    Args:
        command: of the ``tzn`` program.
        quiet: nothing but errors.
        verbose: also what is done, step by step; warnings name their place in the code.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"tzn {command}: %(message)s"))
    before = LOG.level, LOG.propagate, warnings.formatwarning
    of_threads = threading.excepthook

    cut = False

    def one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
        nonlocal cut
        if issubclass(
            category, LimitWarning
        ):  # one for every recording, with other numbers, would hide what else is said
            if cut:
                return ""
            cut = True
        return f"tzn {command}: warning: {' '.join(str(message).split())}\n"

    LOG.addHandler(handler)
    LOG.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    LOG.propagate = False
    if not verbose:
        warnings.formatwarning = one_line
        threading.excepthook = _thread_failed
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        LOG.removeHandler(handler)
        LOG.level, LOG.propagate, warnings.formatwarning = before
        threading.excepthook = of_threads


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`tzn.errors.Terminated`: what cleans up after Ctrl-C then also does after SIGTERM."""
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a loader process inherits the handler and has nothing to clean up
            os._exit(128 + number)
        raise Terminated

    # Only the main thread may set handlers, and only the system's own is replaced: a host program has its reasons.
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    # A library's writing thread that meets a full disk tells the main thread, which ends the command with one line.
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


@contextlib.contextmanager
def incoming(paths: Sequence[Path], suffix: str) -> Iterator[list[Path]]:
    """``paths``; in the place of ``-`` a temporary file ``stdin.…`` with what standard input brings.

    Args:
        suffix: of that file, unless its first bytes are those of NumPy's formats; ".gz" is added where it is compressed.

    Raises:
        DataError: ``-`` twice, or standard input is empty.
    """
    piped = [str(path) for path in paths].count(STANDARD)
    if piped > 1:
        raise DataError("- stands for standard input, which can be read once")
    if not piped:
        yield list(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        with open(raw, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with open(raw, "rb") as file:
            head = file.read(6)
        if not head:
            raise DataError("standard input is empty (0 bytes)")
        known = next((known for magic, known in MAGIC.items() if head.startswith(magic)), "")
        given = raw.rename(raw.with_name(f"stdin{suffix + known if known in ('', '.gz') else known}"))
        yield [given if str(path) == STANDARD else path for path in paths]


@contextlib.contextmanager
def outgoing(path: Path, suffix: str) -> Iterator[Path]:
    """``path``; where that is ``-``, a temporary file that goes to standard output once the block ends without an error."""
    if str(path) != STANDARD:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"stdout{suffix}"
        yield made
        sys.stdout.flush()
        # A captured standard output (a test's, a notebook's) has no bytes beneath.
        if (raw := getattr(sys.stdout, "buffer", None)) is None:
            sys.stdout.write(made.read_text(encoding="utf-8"))
            return
        with open(made, "rb") as file:
            shutil.copyfileobj(file, raw)
        raw.flush()

"""Finished pieces of a long evidence program on disk, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tzn.files import atomic_write


class Parts:
    """A JSON file of results by key, rewritten after each new one; progress goes to standard error.

    Args:
        path: the file; one of other ``settings`` is not used.
        total: pieces in all, for the progress line.
        settings: what all results depend on (arguments, data), JSON-able.
    """

    def __init__(self, path: Path, total: int, settings: dict[str, Any]) -> None:
        self.path, self.total, self.settings, self.results = path, total, settings, {}
        if path.is_file():
            stored = json.loads(path.read_text())
            if stored["settings"] == json.loads(json.dumps(settings)):
                self.results = stored["results"]

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The stored result of ``key``, else what ``compute`` returns (JSON-able), stored."""
        if key not in self.results:
            begin = time.perf_counter()
            self.results[key] = compute()
            with atomic_write(self.path) as file:
                json.dump({"settings": self.settings, "results": self.results}, file)
            done = f"{len(self.results)}/{self.total}" if self.total else str(len(self.results))
            print(f"[{done}] {key}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
        return self.results[key]

    def finish(self) -> None:
        """Remove the file: the results are written elsewhere."""
        self.path.unlink(missing_ok=True)

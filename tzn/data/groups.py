"""Which recordings belong together (a person, a place, a device), and folds that keep them together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tzn.data.annotations import read_database
from tzn.errors import ConfigError, DataError

KEYS = ("group", "subject", "person", "participant")  # of an entry of the annotation file


def recording_groups(path: str | Path, ids: Iterable[str], pattern: str | None = None) -> dict[str, str]:
    """Group of every recording.

    Args:
        path: annotation file; an entry may say ``"group"``, ``"subject"``, ``"person"`` or ``"participant"``.
        ids: recordings.
        pattern: regular expression that finds the group in a recording's id: its first parenthesised part, else the
            whole match. None: what the file says; a recording of which it says nothing is a group of its own.

    Raises:
        ConfigError: no regular expression. DataError: it finds nothing in an id; unreadable file.
    """
    ids = list(ids)
    if pattern is None:
        entries = read_database(Path(path))
        said = {name: [entries[name][key] for key in KEYS if entries[name].get(key) is not None] for name in ids}
        return {name: str(found[0]) if found else name for name, found in said.items()}
    try:
        finder = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--group {pattern!r}: not a regular expression ({error})") from None
    groups = {}
    for name in ids:
        match = finder.search(name)
        if match is None:
            raise DataError(f"--group {pattern!r}: finds nothing in the recording id {name!r}")
        groups[name] = match.group(1) if finder.groups and match.group(1) is not None else match.group(0)
    return groups


def group_folds(groups: Mapping[str, str], folds: int) -> list[list[str]]:
    """Recordings in ``folds`` parts of about as many recordings each, a group whole in one of them; always the same.

    Raises:
        ConfigError: fewer groups than folds.
    """
    sizes = Counter(groups.values())
    if not 2 <= folds <= len(sizes):
        raise ConfigError(f"--folds {folds}: expected a number from 2 to the {len(sizes)} groups of the recordings")
    parts: list[list[str]] = [[] for _ in range(folds)]
    load = [0] * folds
    for group in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = min(range(folds), key=lambda i: load[i])
        load[lightest] += sizes[group]
        parts[lightest] += [name for name, of in groups.items() if of == group]
    return [[name for name in groups if name in set(part)] for part in parts]

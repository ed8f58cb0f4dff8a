"""Which recordings belong together (a person, a patient, a place), and which of them to hold out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

# Fields of an annotation file's entries that name the group.
FIELDS = ("subject", "person", "participant", "user", "patient", "group", "home", "site")
WORD = re.compile(r"(?:^|[^a-z])(user|subject|subj|sub|person|participant|part|patient|pat|home|p|s)[-_ ]?(\d+)", re.I)
HELD_OUT = 0.12  # of the recordings; what is held out is not learned from
FEW_GROUPS = 5


def find_groups(entries: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    """Group by recording id, and where it was read: a field of the annotations, the ids, or "" (each its own).

    Args:
        entries: objects of the annotation file's "database", by recording id.
    """
    for field in FIELDS:
        values = {key: entry.get(field) for key, entry in entries.items()}
        given = all(isinstance(v, (str, int)) and not isinstance(v, bool) for v in values.values())
        if given and len(set(values.values())) > 1:
            return {key: str(v) for key, v in values.items()}, f'"{field}" of the annotations'
    named = {key: [m.group(0).strip("-_. ").lower() for m in WORD.finditer(key)] for key in entries}
    if all(named.values()):
        # The word that every id has; with several, the one with the fewest values, as a person has several recordings.
        count = min(len(v) for v in named.values())
        choices = [{key: v[i] for key, v in named.items()} for i in range(count)]
        best = min(choices, key=lambda c: len(set(c.values())))
        if len(set(best.values())) > 1:
            return best, "the ids of the recordings"
    return {key: key for key in entries}, ""


def held_out(
    recordings: Sequence[tuple[str, frozenset[int]]], groups: Mapping[str, str], share: float = HELD_OUT
) -> tuple[list[str], str]:
    """Ids to hold out for validation, and why these; none where too few recordings are left to learn from.

    Whole groups, spread over the list; where there are fewer than five, single recordings of them. Every class that is
    held out keeps a recording that is learned from.

    Args:
        recordings: id and classes of every training recording.
        groups: by id.
        share: of the recordings, at least one.
    """
    if len(recordings) < 4:
        return [], f"none: with {len(recordings)} training recordings all are needed to learn from"
    members = defaultdict(list)
    for key, _ in recordings:
        members[groups[key]].append(key)
    whole = len(members) >= FEW_GROUPS
    units = list(members.values()) if whole else [[key] for key, _ in recordings]
    wanted = max(share * len(recordings), 1.0)
    classes = dict(recordings)
    left = Counter(c for _, seen in recordings for c in seen)
    chosen: list[str] = []
    for unit in _spread(units, max(round(wanted / len(recordings) * len(units)), 1)):
        lost = Counter(c for key in unit for c in classes[key])
        if any(left[c] - n < 1 for c, n in lost.items()) or (chosen and len(chosen) + len(unit) > 1.5 * wanted):
            continue
        left -= lost
        chosen += unit
        if len(chosen) >= wanted:
            break
    if not chosen:
        return [], "none: every choice would take a class away from training"
    if whole and len(members) < len(recordings):
        return chosen, f"whole groups ({len({groups[k] for k in chosen})} of {len(members)}), so it tells of new ones"
    if len(members) < len(recordings):
        return chosen, f"single recordings of the {len(members)} groups: it does not tell of new ones"
    return chosen, "recordings spread over the list"


def _spread(units: list[list[str]], count: int) -> list[list[str]]:
    """Units in an order that begins with ``count`` evenly spaced ones."""
    step = len(units) / count
    first = [min(int((i + 0.5) * step), len(units) - 1) for i in range(count)]
    rest = [i for i in range(len(units)) if i not in set(first)]
    return [units[i] for i in [*first, *rest]]

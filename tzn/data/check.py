"""``tzn data check``: what is in a data folder, what is wrong with it, and which network sizes fit it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tzn.config import DataConfig
from tzn.data.annotations import OVERHANG_SECONDS, Annotations, Recording, parse_annotations
from tzn.data.dataset import covered_seconds
from tzn.data.feature_check import FeatureSummary, check_features
from tzn.data.stores import located
from tzn.data.suggest import Suggestions, suggest

PERCENTILES = (0, 2, 10, 25, 50, 75, 90, 98, 100)
LISTED = 10


@dataclass(frozen=True)
class SubsetSummary:
    """One subset in numbers; ``hours`` counts the recordings of known duration."""

    recordings: int
    hours: float
    segments: int


@dataclass(frozen=True)
class DatasetReport:
    """Result of :func:`check_dataset`.

    Attributes:
        source: annotation file.
        subsets: by name as in the file.
        classes: segments per class and subset.
        percentiles: segment lengths in seconds by percentile.
        percentile_steps: the same in grid steps; empty without a frame rate.
        histogram: (from, to, segments), lengths in seconds.
        touching: segments that start at most one step after an earlier one ended; overlapping: before it ended.
        features: None where there is no feature folder.
        problems: reason -> count of bad segments; listed: the first ones in words.
        suggestions: None without segments or frame rate.
    """

    source: str
    subsets: dict[str, SubsetSummary]
    classes: dict[str, dict[str, int]]
    percentiles: dict[int, float]
    percentile_steps: dict[int, float]
    histogram: list[tuple[float, float, int]]
    touching: int
    overlapping: int
    features: FeatureSummary | None
    problems: dict[str, int]
    listed: list[str]
    suggestions: Suggestions | None

    @property
    def segments(self) -> int:
        return sum(s.segments for s in self.subsets.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        features = None
        if self.features is not None:
            features = dataclasses.asdict(self.features)
            del features["steps"]
        return {
            "source": self.source,
            "subsets": {name: dataclasses.asdict(s) for name, s in self.subsets.items()},
            "classes": self.classes,
            "length_percentiles_seconds": self.percentiles,
            "length_percentiles_steps": self.percentile_steps,
            "length_histogram": [{"from": low, "to": high, "segments": n} for low, high, n in self.histogram],
            "touching": self.touching,
            "overlapping": self.overlapping,
            "features": features,
            "problems": self.problems,
            "listed_problems": self.listed,
            "suggestions": self.suggestions.to_dict() if self.suggestions else None,
        }

    def text(self) -> str:
        """The report for people."""
        parts = [self._subset_text(), self._class_text(), self._length_text()]
        parts.append(
            self.features.text(LISTED) if self.features else "features: no folder, only the annotations were checked"
        )
        parts.append(self._problem_text())
        if self.suggestions:
            plain = self.suggestions.to_dict()
            notes = "".join(f"\n# {note}" for note in plain.pop("notes"))
            settings = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None).rstrip()
            parts.append(f"suggested settings, from the training segments\n{_indent(settings + notes)}")
        return f"{self.source}\n\n" + "\n\n".join(part for part in parts if part)

    def _subset_text(self) -> str:
        rows = [("subset", "recordings", "hours", "segments")]
        rows += [(n, str(s.recordings), f"{s.hours:.2f}", str(s.segments)) for n, s in self.subsets.items()]
        return _table(rows)

    def _class_text(self) -> str:
        totals = {name: sum(counts.values()) for name, counts in self.classes.items()}
        names = sorted(totals, key=lambda name: -totals[name])
        left_out = len(names) - 25 if len(names) > 30 else 0
        shown = names[:15] + names[-10:] if left_out else names
        rows = [(f"class ({len(names)})", *self.subsets)]
        rows += [(name, *(str(self.classes[name].get(s, 0)) for s in self.subsets)) for name in shown]
        lines = _table(rows).split("\n")
        if left_out:
            lines.insert(16, f"... {left_out} more")
        return "\n".join(lines)

    def _length_text(self) -> str:
        if not self.segments:
            return "no segments"
        most = max(n for *_, n in self.histogram)
        rows = [("length in seconds", "segments", "")]
        rows += [(f"{low:g} to {high:g}", str(n), "#" * round(40 * n / most)) for low, high, n in self.histogram]
        lines = [_table(rows), "", "percentile  " + "".join(f"{p:>8}" for p in self.percentiles)]
        lines.append("seconds     " + "".join(f"{v:>8.4g}" for v in self.percentiles.values()))
        if self.percentile_steps:
            lines.append("steps       " + "".join(f"{v:>8.4g}" for v in self.percentile_steps.values()))
        share = 100 / self.segments
        lines.append(
            f"\n{self.touching} segments ({self.touching * share:.0f} %) start within one step after another ends, "
            f"{self.overlapping} ({self.overlapping * share:.0f} %) before it ends"
        )
        return "\n".join(lines)

    def _problem_text(self) -> str:
        if not self.problems:
            return "annotations: no bad segments"
        counted = ", ".join(f"{n} {reason}" for reason, n in self.problems.items())
        return "\n".join([f"bad segments: {counted}", *(f"  {p}" for p in _first(self.listed))])


def check_dataset(folder: str | Path, config: DataConfig, input_dim: int | None = None) -> DatasetReport:
    """Look at a data folder, or at an annotation file alone.

    Args:
        folder: holds ``config.annotations`` and, if present, ``config.features``; or an annotation file, whose
            features are looked for beside it.
        config: file names and time grid.
        input_dim: expected feature width; other widths are listed as problems.

    Raises:
        DataError: the annotations cannot be read at all. Bad segments and feature files are reported, not raised.
    """
    folder = Path(folder)
    source = folder if folder.is_file() else folder / config.annotations
    annotations, problems = parse_annotations(source, overhang=OVERHANG_SECONDS)
    features = check_features(annotations, located(source.parent, config.features), config, input_dim)
    recordings = list(annotations.recordings.values())
    lengths = _lengths(recordings)
    steps = {r.id: _step(r, config, features) for r in recordings}
    known = [r for r in recordings if steps[r.id] is not None]
    in_steps = np.concatenate([_lengths([r]) / steps[r.id] for r in known]) if known else np.zeros(0)
    touching, overlapping = _neighbours(recordings, steps)
    return DatasetReport(
        source=str(source),
        subsets=_subsets(recordings),
        classes=_class_counts(annotations),
        percentiles=_percentiles(lengths),
        percentile_steps=_percentiles(in_steps),
        histogram=_histogram(lengths),
        touching=touching,
        overlapping=overlapping,
        features=features,
        problems=annotations.dropped,
        listed=[str(p) for p in problems],
        suggestions=_suggestions(known, steps, config, features),
    )


def _lengths(recordings: Iterable[Recording]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(r.segments[:, 1] - r.segments[:, 0] for r in recordings)])


def _step(recording: Recording, config: DataConfig, features: FeatureSummary | None) -> float | None:
    """Seconds per grid step, None where unknown."""
    fps = config.fps or recording.fps
    if config.fixed_length is not None:
        stored = features.steps.get(recording.id) if features else None
        covered = covered_seconds(stored, config, fps) if stored and fps else recording.duration
        return None if covered is None else covered / config.fixed_length
    return config.feat_stride / fps if fps else None


def _subsets(recordings: list[Recording]) -> dict[str, SubsetSummary]:
    result = {}
    for name in sorted({r.subset for r in recordings}):
        members = [r for r in recordings if r.subset == name]
        hours = sum(r.duration or 0.0 for r in members) / 3600
        result[name] = SubsetSummary(len(members), hours, sum(len(r.labels) for r in members))
    return result


def _class_counts(annotations: Annotations) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {name: Counter() for name in annotations.classes}
    for recording in annotations.recordings.values():
        for label in recording.labels:
            counts[annotations.classes[label]][recording.subset] += 1
    return {name: dict(count) for name, count in counts.items()}


def _percentiles(lengths: np.ndarray) -> dict[int, float]:
    return {p: float(np.percentile(lengths, p)) for p in PERCENTILES} if len(lengths) else {}


def _histogram(lengths: np.ndarray) -> list[tuple[float, float, int]]:
    """Bins from one power of two to the next."""
    if not len(lengths):
        return []
    low, high = int(np.floor(np.log2(lengths.min()))), int(np.floor(np.log2(lengths.max())))
    counts = Counter(np.floor(np.log2(lengths)).astype(int).tolist())
    return [(2.0**k, 2.0 ** (k + 1), counts[k]) for k in range(low, high + 1)]


def _neighbours(recordings: list[Recording], steps: dict[str, float | None]) -> tuple[int, int]:
    """How many segments start within a step after an earlier one ended, and before one ended."""
    touching = overlapping = 0
    for recording in recordings:
        segments = recording.segments[np.argsort(recording.segments[:, 0], kind="stable")]
        if len(segments) < 2:
            continue
        gap = segments[1:, 0] - np.maximum.accumulate(segments[:-1, 1])
        rounding = 1e-6  # of times written with few decimals
        overlapping += int((gap < -rounding).sum())
        touching += int(((gap >= -rounding) & (gap <= (steps[recording.id] or 0.0) + rounding)).sum())
    return touching, overlapping


def _suggestions(
    known: list[Recording], steps: dict[str, float | None], config: DataConfig, features: FeatureSummary | None
) -> Suggestions | None:
    training = [r for r in known if r.subset.lower() == config.train_subset.lower()] or known
    lengths = [_lengths([r]) / steps[r.id] for r in training]
    if not sum(map(len, lengths)):
        return None
    recording_steps = []
    for r in training:
        if config.fixed_length is not None:
            recording_steps.append(float(config.fixed_length))
        elif features and r.id in features.steps:
            recording_steps.append(float(features.steps[r.id]))
        elif r.duration is not None:
            recording_steps.append(r.duration / (steps[r.id] or 1.0))
    return suggest(np.concatenate(lengths), np.array(recording_steps))


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns side by side: the first and any bar column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.ljust(w) if c[:1] == "#" else c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _first(items: list[str]) -> list[str]:
    more = len(items) - LISTED
    return items[:LISTED] + ([f"... and {more} more"] if more > 0 else [])


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))

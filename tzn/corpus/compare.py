"""Two runs over a corpus side by side: what both found, what one of them did, and by how much they differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tzn.corpus.table import Results, Run, arrow, open_results, write_table
from tzn.errors import ConfigError, DataError
from tzn.evaluation.matching import match, overlapping_pairs
from tzn.optional import require


@dataclass(frozen=True)
class Found:
    """The detections of one run that are compared, over the recordings that both looked at.

    Attributes:
        segments: ``[N, 2]`` float64 seconds.
        scores: ``[N]`` float64.
        recording, label: ``[N]`` int64, places in the names of :class:`Comparison`.
    """

    segments: np.ndarray
    scores: np.ndarray
    recording: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    a, b: what is compared.
    partner: ``[len(a)]`` int64, the detection of b that each of a is matched with; -1: none.
    recordings, labels: names, sorted.
    only: recordings that only a, only b looked at.
    min_scores: least scores of a and b that were compared.
    tiou: least overlap of a match.
    """

    a: Found
    b: Found
    partner: np.ndarray
    recordings: list[str]
    labels: list[str]
    only: tuple[list[str], list[str]]
    min_scores: tuple[float, float]
    tiou: float

    def summary(self) -> dict[str, Any]:
        """Figures as JSON has them; agreement is 2 matched / (a + b), 1 where neither found anything."""
        matched = self.partner >= 0
        shift = self.b.segments[self.partner[matched]] - self.a.segments[matched]
        score = self.b.scores[self.partner[matched]] - self.a.scores[matched]
        classes = {}
        for i, name in enumerate(self.labels):
            count = [int((x.label == i).sum()) for x in (self.a, self.b)]
            both = int((self.a.label[matched] == i).sum())
            classes[name] = {"a": count[0], "b": count[1], "matched": both, "agreement": _agreement(both, *count)}
        total = len(self.a.scores), len(self.b.scores)
        return {
            "recordings": {"both": len(self.recordings), "only_a": len(self.only[0]), "only_b": len(self.only[1])},
            "tiou": self.tiou, "min_score": list(self.min_scores),
            "detections": {
                "a": total[0], "b": total[1], "matched": int(matched.sum()),
                "agreement": _agreement(int(matched.sum()), *total),
            },
            "classes": classes,
            "start_difference": _spread(shift[:, 0]), "end_difference": _spread(shift[:, 1]),
            "score_difference": _spread(score),
            "most_different": self.most_different(),
        }  # fmt: skip

    def most_different(self, count: int = 10) -> list[dict[str, Any]]:
        """Recordings with the most detections that have no partner."""
        lone_a = np.bincount(self.a.recording[self.partner < 0], minlength=len(self.recordings))
        taken = np.zeros(len(self.b.scores), dtype=bool)
        taken[self.partner[self.partner >= 0]] = True
        lone_b = np.bincount(self.b.recording[~taken], minlength=len(self.recordings))
        order = np.argsort(-(lone_a + lone_b), kind="stable")[:count]
        return [
            {"recording": self.recordings[i], "only_a": int(lone_a[i]), "only_b": int(lone_b[i])}
            for i in order.tolist()
            if lone_a[i] + lone_b[i]
        ]

    def write(self, path: Path) -> int:
        """Write a Parquet table with a row for every match and every detection without one; the rows.

        Columns: recording, label, a_start, a_end, a_score, b_start, b_end, b_score; null where that side found nothing.
        """
        pa = arrow()
        taken = np.zeros(len(self.b.scores), dtype=bool)
        taken[self.partner[self.partner >= 0]] = True
        lone = np.flatnonzero(~taken)
        left = np.concatenate([np.arange(len(self.partner)), np.full(len(lone), -1)])
        right = np.concatenate([self.partner, lone])
        recording = np.where(left >= 0, _at(self.a.recording, left), _at(self.b.recording, right)).astype(int)
        label = np.where(left >= 0, _at(self.a.label, left), _at(self.b.label, right)).astype(int)
        columns = {
            "recording": pa.array([self.recordings[i] for i in recording], pa.string()),
            "label": pa.array([self.labels[i] for i in label], pa.string()),
        }
        for name, side, places in (("a", self.a, left), ("b", self.b, right)):
            for column, values in (
                ("start", side.segments[:, 0]),
                ("end", side.segments[:, 1]),
                ("score", side.scores),
            ):
                columns[f"{name}_{column}"] = pa.array(_at(values, places), pa.float64(), from_pandas=True)
        table = pa.table(columns).sort_by([("recording", "ascending"), ("label", "ascending")])
        write_table(path, table)
        return len(table)


def compare_files(
    a: Path, b: Path, *, tiou: float = 0.5, min_score: float | None = None, models: tuple[str | None, str | None] = (None, None)
) -> Comparison:  # fmt: skip
    """Match the detections of two runs, class by class and recording by recording.

    Detections of a, by falling score, take the free one of b that overlaps most, at least ``tiou``: the rule by which
    detections are scored, with b as the truth.

    Args:
        a, b: files of :func:`tzn.corpus.run.predict_corpus`, or one that was merged, twice.
        tiou: in (0, 1].
        min_score: least score of both; None: each run's own score threshold, 0 where it has none.
        models: fingerprints that choose a run of a file that holds several; the beginning is enough.

    Raises:
        DataError: unreadable files, several runs and none chosen, no recording in both. ConfigError: tiou or score.
    """
    if not 0 < tiou <= 1:
        raise ConfigError(f"tiou = {tiou}: expected an overlap in (0, 1]")
    if min_score is not None and not 0 <= min_score <= 1:
        raise ConfigError(f"min_score = {min_score}: expected a score in [0, 1]")
    files = [open_results(a), open_results(b)]
    runs = [_run_of(file, start) for file, start in zip(files, models, strict=True)]
    looked = [file.recordings(run) for file, run in zip(files, runs, strict=True)]
    both = sorted(looked[0] & looked[1])
    if not both:
        raise DataError(f"{a} and {b}: no recording is in both")
    least = tuple(min_score if min_score is not None else run.score_threshold or 0.0 for run in runs)
    labels = sorted({*runs[0].classes, *runs[1].classes})
    sides = [_read(f, run, s, both, labels) for f, run, s in zip(files, runs, least, strict=True)]
    groups = [x.recording * max(len(labels), 1) + x.label for x in sides]
    order = np.argsort(-sides[0].scores, kind="stable")
    pairs = overlapping_pairs(sides[0].segments[order], groups[0][order], sides[1].segments, groups[1], tiou)
    partner = np.full(len(order), -1, dtype=np.int64)
    partner[order] = match(pairs, len(order), len(sides[1].scores), [tiou])[0]
    only = sorted(looked[0] - looked[1]), sorted(looked[1] - looked[0])
    return Comparison(sides[0], sides[1], partner, both, labels, only, (least[0], least[1]), tiou)


def _run_of(file: Results, start: str | None) -> Run:
    chosen = [
        run for run in file.runs if start is None or run.model.startswith(start) or run.configuration.startswith(start)
    ]
    if len(chosen) != 1:
        there = ", ".join(f"{run.model} with {run.configuration}" for run in file.runs)
        raise DataError(
            f"{file.path}: {len(chosen)} runs fit, expected one; choose by a fingerprint's beginning ({there})"
        )
    return chosen[0]


def _read(file: Results, run: Run, least: float, both: list[str], labels: list[str]) -> Found:
    pa, compute = arrow(), require("pyarrow.compute", "Parquet tables", "corpus", "pyarrow")
    names, classes = pa.array(both, pa.string()), pa.array(labels, pa.string())
    parts: list[list[np.ndarray]] = []
    for group in file.groups(["recording", "start", "end", "label", "score", "model", "configuration"]):
        place = compute.index_in(group["recording"], value_set=names)
        keep = compute.and_(
            compute.equal(group["model"], run.model), compute.equal(group["configuration"], run.configuration)
        )
        keep = compute.and_(compute.and_(keep, compute.is_valid(place)), compute.greater_equal(group["score"], least))
        kind = compute.index_in(group["label"], value_set=classes)
        wanted = (group["start"], group["end"], group["score"], place, kind)
        parts.append([compute.filter(column, keep).to_numpy() for column in wanted])
    columns = [
        np.concatenate(column) if parts else np.zeros(0) for column in (zip(*parts, strict=True) if parts else [[]] * 5)
    ]
    start, end, score, place, kind = columns
    return Found(np.stack([start, end], 1), score, place.astype(np.int64), kind.astype(np.int64))


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """``values[places]`` as float64, NaN where a place is -1."""
    found = np.full(len(places), np.nan)
    found[places >= 0] = values[places[places >= 0]]
    return found


def _agreement(matched: int, a: int, b: int) -> float:
    return 2 * matched / (a + b) if a + b else 1.0


def _spread(values: np.ndarray) -> dict[str, float | None]:
    """Median and 90th percentile of absolute differences, and the mean difference (b - a)."""
    if not len(values):
        return {"median": None, "p90": None, "mean": None}
    size = np.abs(values)
    return {"median": float(np.median(size)), "p90": float(np.quantile(size, 0.9)), "mean": float(values.mean())}

"""What a data folder is like: the numbers that a plan is made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tzn.config import DataConfig, ExperimentConfig, FrontEndConfig
from tzn.data.annotations import OVERHANG_SECONDS, Annotations, Recording, parse_annotations, read_database
from tzn.data.stores import Store, is_url, located
from tzn.errors import DataError
from tzn.models.config import TemporalZoomNetConfig
from tzn.planning.channels import Channels, describe_channels
from tzn.planning.groups import find_groups
from tzn.readers import kind_of, read_recording
from tzn.readers.front_end import FOLDERS, prepare_features, recording_id

SAMPLED_RECORDINGS = 40
SAMPLED_STEPS = 4096  # a recording
RATES_READ = 8  # signals whose rates say what all are brought to
SHARPNESS_REACH = 32  # steps to either side of a boundary
TRAIN_NAMES = ("training", "train")
TEST_NAMES = ("test", "testing", "validation", "val", "valid", "eval")


@dataclass(frozen=True)
class Fingerprint:
    """A data folder in numbers; lengths in stored feature steps of the training recordings unless said otherwise.

    Attributes:
        data: subsets, file names and time grid as found.
        front_end: of features that tzn made, as found.
        classes: names in label order.
        class_counts: ``[classes]`` training segments.
        recordings: ids of the training recordings.
        groups: group by id; group_source: where it was read, "" where each recording is its own.
        recording_classes: classes that a training recording shows, in the order of ``recordings``.
        rate: stored steps a second.
        steps: ``[recordings]`` lengths.
        lengths: ``[N]`` of the segments; labels: ``[N]`` their classes.
        coverage: share of the time that some segment covers.
        overlap, same_class_overlap, touching: shares of the segments that begin before an earlier one (of the same class)
            ends, or within one step after it.
        density: segments per 1,000 steps.
        channels: kinds and scales.
        sharpness: change of the standardised features in the step of a boundary over that of any step (median over
            boundaries); sharp_width: steps over which it falls to half.
        problems: bad segments by reason.
    """

    data: DataConfig
    front_end: Any
    classes: tuple[str, ...]
    class_counts: np.ndarray
    recordings: tuple[str, ...]
    groups: dict[str, str]
    group_source: str
    recording_classes: tuple[frozenset[int], ...]
    rate: float
    steps: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    coverage: float
    overlap: float
    same_class_overlap: float
    touching: float
    density: float
    channels: Channels
    sharpness: float
    sharp_width: int
    problems: dict[str, int]

    @property
    def width(self) -> int:
        """Stored channels."""
        return len(self.channels.kinds)

    def percentile(self, q: float) -> float:
        """Length of segments in steps."""
        return float(np.percentile(self.lengths, q))

    def describe(self) -> list[str]:
        """Lines for people."""
        hours = self.steps.sum() / self.rate / 3600
        seconds = [f"{self.percentile(q) / self.rate:.3g}" for q in (2, 10, 50, 90, 98)]
        counts = self.class_counts[self.class_counts > 0]
        number = len({self.groups[r] for r in self.recordings})
        return [
            f"{len(self.recordings)} training recordings, {hours:.3g} h, {self.steps.min()} to {self.steps.max()} steps at "
            f"{self.rate:g} a second",
            f"{number} groups, by {self.group_source}" if self.group_source else "no groups (persons) known",
            f"{self.width} channels: {self.channels.summary()}; standard deviations within a factor of "
            f"{self.channels.scale_ratio:.3g}",
            f"{len(self.lengths)} segments of {len(counts)} classes, {counts.min()} to {counts.max()} of a class; "
            f"{self.density:.3g} per 1,000 steps",
            f"lengths (2, 10, 50, 90, 98 %): {', '.join(seconds)} s; {self.percentile(2):.3g} to {self.percentile(98):.4g} "
            "steps",
            f"{100 * self.coverage:.0f} % of the time is labelled; {100 * self.touching:.0f} % of the segments touch "
            f"another, {100 * self.overlap:.0f} % overlap one ({100 * self.same_class_overlap:.0f} % of their class)",
            f"features change {self.sharpness:.3g} times as much at boundaries as elsewhere, within {self.sharp_width} steps",
        ]


def read_fingerprint(folder: str | Path, *, progress: bool = True) -> Fingerprint:
    """Look at a data folder: ``annotations.json`` (or ``.json.gz``), and features or recordings that tzn reads.

    Raises:
        DataError: no annotations, no training segments, no features, no way to know the time grid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with annotations.json and features/")
    data = DataConfig(annotations=_annotation_file(folder))
    annotations, _ = parse_annotations(folder / data.annotations, overhang=OVERHANG_SECONDS)
    data = data.replace(strict=not annotations.dropped, **_subsets(annotations), **_files(folder, annotations))
    model = TemporalZoomNetConfig(input_dim=1, num_classes=1)
    stand_in = ExperimentConfig(model, data=data, front_end=_signal_rate(folder, data, annotations))
    prepared = prepare_features(stand_in, folder, progress=progress)
    made = prepared.data.fps is not None  # a features.json says what a step is
    data = prepared.data
    training = annotations.subset(data.train_subset)
    if not sum(len(r.labels) for r in training):
        raise DataError(f"{folder / data.annotations}: subset {data.train_subset!r} has no segments to learn from")
    headers = _headers(folder, data, training)
    data = data if made else data.replace(**_grid(training, headers))
    entries = read_database(folder / data.annotations)
    groups, source = find_groups({r.id: entries[r.id] for r in training})
    rates = np.array([(data.fps or r.fps) for r in training], dtype=np.float64) / data.feat_stride
    steps = np.array([headers[r.id] for r in training])
    lengths = [(r.segments[:, 1] - r.segments[:, 0]) * rate for r, rate in zip(training, rates, strict=True)]
    labels = np.concatenate([r.labels for r in training])
    overlap, same, touching, covered = _neighbours(training, rates)
    pieces, sharpness, width = _sample(folder, data, training, rates)
    count = sum(map(len, lengths))
    return Fingerprint(
        data=data,
        front_end=prepared.front_end,
        classes=annotations.classes,
        class_counts=np.bincount(labels, minlength=len(annotations.classes)),
        recordings=tuple(r.id for r in training),
        groups=groups,
        group_source=source,
        recording_classes=tuple(frozenset(r.labels.tolist()) for r in training),
        rate=float(np.median(rates)),
        steps=steps,
        lengths=np.concatenate(lengths),
        labels=labels,
        coverage=min(covered / max(steps.sum(), 1), 1.0),
        overlap=overlap / count,
        same_class_overlap=same / count,
        touching=touching / count,
        density=1000 * count / steps.sum(),
        channels=describe_channels(pieces),
        sharpness=sharpness,
        sharp_width=width,
        problems=annotations.dropped,
    )


def _annotation_file(folder: Path) -> str:
    for name in ("annotations.json", "annotations.json.gz"):
        if (folder / name).is_file():
            return name
    others = sorted(p.name for p in folder.glob("*.json*"))
    there = f"; the folder has {', '.join(others[:5])}" if others else ""
    raise DataError(f"{folder}: no annotations.json or annotations.json.gz{there}; see 'tzn convert --to annotations'")


def _subsets(annotations: Annotations) -> dict[str, str]:
    """Which subsets train and test: by name, else the one with most segments trains."""
    segments: Counter[str] = Counter()
    for r in annotations.recordings.values():
        segments[r.subset] += len(r.labels)
    by_name = {name.lower(): name for name in segments}
    train = next((by_name[n] for n in TRAIN_NAMES if n in by_name), None)
    if train is None and set(by_name) == {"validation", "test"}:  # THUMOS14 learns from its validation videos
        train = by_name["validation"]
    train = train or max(segments, key=lambda name: segments[name])
    test = next((by_name[n] for n in TEST_NAMES if n in by_name and by_name[n] != train), None)
    rest = [name for name in segments if name != train]
    return {"train_subset": train, "test_subset": test or (rest[0] if rest else "test")}


def _files(folder: Path, annotations: Annotations) -> dict[str, str]:
    """How feature files are named: suffix, prefix, and array name of ``.npz`` files."""
    features = folder / "features"
    stems = {p.name for p in features.glob("*.np[yz]")} if features.is_dir() else set()
    if not stems:
        return {}
    known = list(annotations.recordings)
    for suffix in (".npy", ".npz"):
        for prefix in ("", "v_", "video_"):
            if any(f"{prefix}{key}{suffix}" in stems for key in known):
                found = {"file_suffix": suffix, "file_prefix": prefix}
                if suffix == ".npz":
                    path = next(features / f"{prefix}{k}{suffix}" for k in known if f"{prefix}{k}{suffix}" in stems)
                    with np.load(path, allow_pickle=False) as loaded:
                        found["npz_key"] = "feats" if "feats" in loaded.files else loaded.files[0]
                return found
    return {}


def _signal_rate(folder: Path, data: DataConfig, annotations: Annotations) -> FrontEndConfig:
    """For signals without features: all are brought to the rate that most of them have, a sample a step."""
    if is_url(data.features) or (folder / data.features).exists():
        return FrontEndConfig()
    for place in FOLDERS:
        inside = sorted((folder / place).iterdir()) if (folder / place).is_dir() else []
        signals = [p for p in inside if kind_of(p) == "samples" and recording_id(p) in annotations.recordings]
        if signals:
            rates = [float(f"{read_recording(p).rate:.6g}") for p in signals[:RATES_READ]]
            return FrontEndConfig(extractor="samples", rate=Counter(rates).most_common(1)[0][0])
    return FrontEndConfig()


def _headers(folder: Path, data: DataConfig, training: list[Recording]) -> dict[str, int]:
    """Stored steps by recording id; refuses recordings without a file and files of different widths."""
    steps, widths, store = {}, {}, Store(located(folder, data.features), data)
    for r in training:
        header = store.header(r.id)
        steps[r.id], widths[r.id] = header.steps, header.channels
    usual = Counter(widths.values()).most_common(1)[0][0]
    odd = [key for key, width in widths.items() if width != usual]
    if odd:
        raise DataError(
            f"{folder / data.features}: features of {odd[0]!r} are {widths[odd[0]]} wide, most others {usual}; expected "
            "one width"
        )
    return steps


def _grid(training: list[Recording], steps: dict[str, int]) -> dict[str, float]:
    """``feat_stride``, ``num_frames`` and, where recordings have no rate of their own, ``fps``."""
    timed = [r for r in training if r.duration]
    if all(r.fps for r in training):
        if not timed:
            return {"feat_stride": 1.0, "num_frames": 1.0}
        frames = float(np.median([r.duration * r.fps / steps[r.id] for r in timed]))  # type: ignore[operator]
        stride = max(float(round(frames)), 1.0) if abs(frames - max(round(frames), 1)) < 0.04 * frames else frames
        found = {"feat_stride": stride, "num_frames": stride}
        rates = {r.fps for r in training}
        return found | ({"fps": rates.pop() or 0.0} if len(rates) == 1 else {})
    if not timed:
        raise DataError(
            'the annotations give recordings neither "fps" (steps a second of the features) nor "duration" (seconds), so '
            "nothing says how long a step is"
        )
    rate = float(np.median([steps[r.id] / r.duration for r in timed]))  # type: ignore[operator]
    whole = round(rate)
    return {"fps": float(whole) if whole and abs(rate - whole) < 0.01 * rate else rate}


def _neighbours(training: list[Recording], rates: np.ndarray) -> tuple[int, int, int, float]:
    """Segments that overlap an earlier one, one of their class, or touch one; and steps that segments cover."""
    overlap = same = touching = 0
    covered = 0.0
    for r, rate in zip(training, rates, strict=True):
        order = np.argsort(r.segments[:, 0], kind="stable")
        segments, labels = r.segments[order] * rate, r.labels[order]
        reached = -np.inf
        ends: dict[int, float] = {}
        for (start, end), label in zip(segments.tolist(), labels.tolist(), strict=True):
            overlap += start < reached - 1e-3
            touching += abs(start - reached) <= 1 + 1e-3
            same += start < ends.get(label, -np.inf) - 1e-3
            covered += max(end - max(start, reached), 0.0)
            reached, ends[label] = max(reached, end), max(ends.get(label, -np.inf), end)
    return overlap, same, touching, covered


def _sample(
    folder: Path, data: DataConfig, training: list[Recording], rates: np.ndarray
) -> tuple[list[np.ndarray], float, int]:
    """Stretches of steps of recordings spread over the list, and how sharp boundaries are in them."""
    chosen = np.unique(np.linspace(0, len(training) - 1, min(SAMPLED_RECORDINGS, len(training))).round().astype(int))
    pieces, at, around = [], [], []
    store = Store(located(folder, data.features), data)
    for i in chosen:
        r = training[i]
        features = store.load(r.id)
        begin = (len(features) - SAMPLED_STEPS) // 2 if len(features) > SAMPLED_STEPS else 0
        piece = features[begin : begin + SAMPLED_STEPS]
        pieces.append(piece)
        if len(piece) < 4:
            continue
        std = piece.std(0)
        change = np.abs(np.diff(piece / np.where(std > 1e-9, std, 1.0), axis=0)).mean(1)
        places = (r.segments * rates[i] - begin).ravel() - 1
        near = np.arange(-SHARPNESS_REACH, SHARPNESS_REACH + 1)[None] + places.round().astype(int)[:, None]
        inside = (near >= 0) & (near < len(change))
        at.append(np.where(inside, change[np.clip(near, 0, len(change) - 1)], np.nan))
        around.append(change)
    if not at or not sum(map(len, at)):
        return pieces, 1.0, 1
    usual = float(np.mean(np.concatenate(around)))
    profiles = np.concatenate(at)
    profiles = profiles[~np.isnan(profiles).all(1)]
    if usual <= 0 or not len(profiles):
        return pieces, 1.0, 1
    with np.errstate(invalid="ignore"):
        filled = np.where(np.isnan(profiles), usual, profiles)
    profile = filled.mean(0) / usual
    peak = float(profile[SHARPNESS_REACH - 2 : SHARPNESS_REACH + 3].max())
    half = 1 + (peak - 1) / 2
    wide = [
        d for d in range(1, SHARPNESS_REACH) if max(profile[SHARPNESS_REACH - d], profile[SHARPNESS_REACH + d]) < half
    ]
    return pieces, peak, (wide[0] if wide and peak > 1 else 1)


def grid_steps(found: Fingerprint, pool: int) -> Fingerprint:
    """The fingerprint as the network sees it with ``data.pool`` = pool."""
    return dataclasses.replace(
        found, data=found.data.replace(pool=pool), rate=found.rate / pool, steps=np.maximum(found.steps // pool, 1),
        lengths=found.lengths / pool, density=found.density * pool,
    )  # fmt: skip

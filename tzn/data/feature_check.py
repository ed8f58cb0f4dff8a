"""The feature folder of a data set against its annotations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tzn.config import DataConfig
from tzn.data.annotations import Annotations, Recording
from tzn.data.dataset import covered_seconds
from tzn.data.stores import Store, is_container, is_url
from tzn.errors import DataError

VALUES_READ_BYTES = 2 << 30  # larger folders are checked by their headers only


@dataclass
class FeatureSummary:
    """What a feature folder holds.

    Attributes:
        folder: its path.
        found: recordings with a readable or damaged file.
        missing: recordings without one, by subset.
        extra: files that belong to no recording.
        widths, dtypes: of the readable files, with their counts.
        values_checked: whether the values were read too, not only the headers.
        problems: damaged files, other widths, lengths that do not fit the recording's duration; in words.
        steps: stored steps by recording.
    """

    folder: str
    found: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    extra: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    values_checked: bool = False
    problems: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)

    def text(self, most: int) -> str:
        """For people, with the first ``most`` problems."""
        lines = [
            f"features in {self.folder}: {self.found} recordings have a file, {self.extra} files belong to no recording"
        ]
        lines += [f"  missing in subset {subset!r}: {n}" for subset, n in self.missing.items()]
        if self.steps:
            lines.append(f"  width {_counted(self.widths)}; dtype {_counted(self.dtypes)}")
        if self.found and not self.values_checked:
            lines.append("  large folder: headers were read, values were not")
        elif self.found and not self.problems:
            lines.append("  all values were read: finite numbers")
        lines += [f"  {problem}" for problem in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"  ... and {len(self.problems) - most} more")
        return "\n".join(lines)


def check_features(
    annotations: Annotations, folder: Path | str, config: DataConfig, input_dim: int | None
) -> FeatureSummary | None:
    """Compare a feature folder with the annotations; None where there is no such folder.

    Args:
        annotations: names the recordings.
        folder: of the feature files, or another place that :mod:`tzn.data.stores` knows.
        config: file names and time grid.
        input_dim: expected width; None takes the most frequent one.
    """
    local = not is_url(folder) and not is_container(folder)
    if not is_url(folder) and not Path(folder).exists():
        return None
    summary, store = FeatureSummary(str(folder)), Store(folder, config)
    paths = {key: store.describe(key) for key in annotations.recordings}
    present = [key for key in paths if key in store]
    summary.found = len(present)
    summary.missing = dict(Counter(annotations.recordings[key].subset for key in paths if key not in present))
    if local:
        files = {str(path) for path in Path(folder).glob(f"*{config.file_suffix}")}
        summary.extra = len(files - set(paths.values()))
        summary.values_checked = sum(Path(paths[key]).stat().st_size for key in present) <= VALUES_READ_BYTES
    widths: dict[str, int] = {}
    dtypes: Counter[str] = Counter()
    for key in present:
        try:
            header = store.header(key)
            widths[key], summary.steps[key] = header.channels, header.steps
            dtypes[str(header.dtype)] += 1
            if summary.values_checked:
                store.load(key)
        except DataError as error:
            summary.problems.append(str(error))
    summary.dtypes = dict(dtypes)
    counts = Counter(widths.values())
    summary.widths = dict(counts)
    expected = input_dim or (counts.most_common(1)[0][0] if counts else None)
    for key, width in widths.items():
        if width != expected:
            summary.problems.append(f"{paths[key]}: {width} wide, expected {expected}")
    summary.problems += _duration_problems(annotations, summary.steps, config)
    return summary


def _duration_problems(annotations: Annotations, steps: dict[str, int], config: DataConfig) -> list[str]:
    """Recordings whose features cover another time than the annotations say: usually a wrong stride or frame rate."""
    found, ratios = [], []
    for key, stored in steps.items():
        recording = annotations.recordings[key]
        fps = config.fps or recording.fps
        if fps is None or recording.duration is None:
            continue
        covered = covered_seconds(stored, config, fps)
        ratios.append(covered / recording.duration)
        if abs(covered - recording.duration) > _tolerance(recording, config, fps):
            found.append(f"{key}: {stored} steps cover {covered:.2f} s, but its duration is {recording.duration:.2f} s")
    if len(found) > 0.5 * len(ratios):
        found.insert(
            0,
            f"features cover {np.median(ratios):.3g} times the durations (median): "
            "check data.feat_stride, data.num_frames and data.fps",
        )
    return found


def _tolerance(recording: Recording, config: DataConfig, fps: float) -> float:
    # Extractors drop an incomplete last clip or two.
    return 0.02 * (recording.duration or 0.0) + 2 * (config.feat_stride + config.num_frames) / fps


def _counted(counts: dict[int, int] | dict[str, int]) -> str:
    return ", ".join(f"{value} ({n} files)" for value, n in counts.items())

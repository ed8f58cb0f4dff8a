"""Recordings as training and test examples: features, ground truth in grid steps, batches."""

from __future__ import annotations

import dataclasses
import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from tzn.config import DataConfig
from tzn.data.annotations import Annotations, Recording, load_annotations
from tzn.data.augment import CropSampler, clip_segments, focused_crop, random_crop, stretch_length
from tzn.data.grid import TimeGrid
from tzn.data.pooling import pooled, tamed
from tzn.data.stores import Store, is_container, is_url
from tzn.errors import DataError

CACHE_BYTES = 4 << 30  # features kept in memory, per process
SPLITS = ("train", "validation", "test")


@dataclass
class Example:
    """One recording, or a training crop of it.

    Attributes:
        id: recording id.
        features: ``[T, C]`` float32, not standardised.
        segments: ``[N, 2]`` float32, (start, end) in steps of :attr:`grid`.
        labels: ``[N]`` int64.
        grid: maps steps of *these* features to seconds of the whole recording.
        duration: of the whole recording, seconds.
    """

    id: str
    features: Tensor
    segments: Tensor
    labels: Tensor
    grid: TimeGrid
    duration: float


@dataclass
class Batch:
    """Examples side by side.

    Attributes:
        ids: recording ids.
        features: ``[B, Tmax, C]`` float32, zero after each recording's end.
        mask: ``[B, Tmax]`` bool, True where a step is real.
        segments, labels: per recording, as in :class:`Example`.
        grids, durations: per recording.
    """

    ids: list[str]
    features: Tensor
    mask: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    grids: list[TimeGrid]
    durations: list[float]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on ``device``."""
        return dataclasses.replace(
            self,
            features=self.features.to(device),
            mask=self.mask.to(device),
            segments=[s.to(device) for s in self.segments],
            labels=[x.to(device) for x in self.labels],
        )


def collate(examples: list[Example]) -> Batch:
    """Pad examples to the longest and put them side by side."""
    lengths = torch.tensor([e.features.shape[0] for e in examples])
    features = torch.nn.utils.rnn.pad_sequence([e.features for e in examples], batch_first=True)
    return Batch(
        ids=[e.id for e in examples],
        features=features,
        mask=torch.arange(features.shape[1]) < lengths.unsqueeze(1),
        segments=[e.segments for e in examples],
        labels=[e.labels for e in examples],
        grids=[e.grid for e in examples],
        durations=[e.duration for e in examples],
    )


def load_split_annotations(folder: Path, config: DataConfig, classes: Sequence[str] | None = None) -> Annotations:
    """The annotation file of a data folder; with ``config.strict`` off, a warning counts what was repaired or dropped.

    Raises:
        DataError: see :func:`tzn.data.annotations.load_annotations`.
    """
    path = folder / config.annotations
    annotations = load_annotations(path, strict=config.strict, classes=classes)
    for reason, count in annotations.dropped.items():
        warnings.warn(f"{path}: {count} segments: {reason}", stacklevel=2)
    return annotations


def class_names(annotations: Annotations, config: DataConfig) -> tuple[str, ...]:
    """Class names that labels of a dataset index: the file's, or ``("action",)`` with ``data.single_class``."""
    return ("action",) if config.single_class else annotations.classes


def select_recordings(annotations: Annotations, config: DataConfig, split: str) -> list[Recording]:
    """Recordings of a split, with labels as the network sees them (``data.single_class``).

    Args:
        annotations: the file.
        config: names the subsets and, by glob patterns, the recordings of ``train_subset`` held out for validation.
        split: "train", "validation" or "test".

    Raises:
        DataError: empty subset, a pattern that matches nothing, or patterns that hold out every recording.
    """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
    found = annotations.subset(config.test_subset if split == "test" else config.train_subset)
    if split != "test":
        held_out = _held_out(found, config)
        found = [r for r in found if (r.id in held_out) == (split == "validation")]
        if not found and split == "train":
            raise DataError(f"data.validation = {list(config.validation)} holds out every training recording")
        if not found:
            raise DataError("data.validation names no recordings; there is nothing to validate on")
    return [_single_class(r) for r in found] if config.single_class else found


def _held_out(recordings: list[Recording], config: DataConfig) -> set[str]:
    held_out: set[str] = set()
    for pattern in config.validation:
        matched = fnmatch.filter([r.id for r in recordings], pattern)
        if not matched:
            example = recordings[0].id
            raise DataError(
                f"data.validation: {pattern!r} matches no recording of subset {config.train_subset!r} "
                f"(such as {example!r})"
            )
        held_out.update(matched)
    return held_out


def _single_class(recording: Recording) -> Recording:
    return dataclasses.replace(recording, labels=np.zeros_like(recording.labels))


# A random gain takes a channel for one whose mean is no further than so many standard deviations from zero: what has an offset
# (counts of a converter, kelvin, a position in a room) it would else move by as much as it ever moves.
FAR = 5.0


class RecordingDataset(Dataset[Example]):
    """Recordings with features and ground truth.

    Every random choice for item ``i`` is a pure function of (seed, epoch, i), see :meth:`set_epoch`; so resumed runs
    and any number of loader processes see the same data. Features stay in memory after their first use, up to 4 GiB.

    Args:
        annotations: the file that the recordings come from; gives the class names.
        recordings: what to iterate over, see :func:`select_recordings`.
        features_dir: folder of the feature files, a container of them or an address (:mod:`tzn.data.stores`).
        config: time grid, file names, resizing, augmentation.
        input_dim: expected width of the stored features; None takes the first recording's.
        training: crop and augment, and keep only segments that the features show. Items are then the
            ``config.crops_per_epoch`` crops of an epoch, where that is set.
        seed: of crops and augmentation.
        channel_stats: ``[C]`` mean and standard deviation of the features, which augmentation goes by. None fits them when
            first needed; set them before starting loader processes, else each of them fits them.

    Raises:
        DataError: no recordings, missing feature files, unknown frame rate; at item access whatever
            :func:`tzn.data.features.load_features` raises.
    """

    def __init__(
        self,
        annotations: Annotations,
        recordings: Sequence[Recording],
        features_dir: str | Path,
        config: DataConfig,
        input_dim: int | None,
        *,
        training: bool,
        seed: int = 0,
        channel_stats: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.recordings = [_single_class(r) if config.single_class else r for r in recordings]
        self.features_dir, self.config, self.training, self.seed = features_dir, config, training, seed
        self._store = Store(features_dir, config)
        self.classes = class_names(annotations, config)
        self.channel_stats = channel_stats
        self.epoch = 0
        self._cache: dict[int, Tensor] = {}
        self._stored_length: dict[int, int] = {}
        self._cached_bytes = 0
        if not self.recordings:
            raise DataError(f"no recordings to read from {self.features_dir}")
        self._check_files()
        self._fps = [self._frame_rate(r) for r in self.recordings]  # raw frames per second
        self.input_dim = input_dim
        if input_dim is None:
            self.input_dim = self._store.header(self.recordings[0].id).channels
        if training and self.input_dim is not None and self.input_dim % config.samples_per_step:
            raise DataError(
                f"data.samples_per_step = {config.samples_per_step}: expected a divisor of the features' width {self.input_dim}"
            )
        self._sampler = None
        if training and config.crops_per_epoch is not None:
            steps = [self._store.header(r.id).steps for r in self.recordings]
            self._sampler = CropSampler(self.recordings, np.array(steps) // config.pool, config, seed)

    def __len__(self) -> int:
        return len(self.recordings) if self._sampler is None else self._sampler.crops

    def set_epoch(self, epoch: int) -> None:
        """Choose the crops and augmentations of an epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Example:
        if self._sampler is not None:
            return self._crop(index, self._sampler)
        recording = self.recordings[index]
        features, grid = self.raw(index)
        duration = recording.duration or covered_seconds(self._stored_length[index], self.config, self._fps[index])
        labels = torch.from_numpy(recording.labels)
        if not self.training:
            segments = torch.from_numpy(grid.to_steps(recording.segments)).float()
            return Example(recording.id, features, segments, labels, grid, duration)
        features, grid, seen, kept = self._augmented(features, grid, recording.segments, index)
        return Example(recording.id, features, torch.from_numpy(seen).float(), labels[kept], grid, duration)

    def _crop(self, item: int, sampler: CropSampler) -> Example:
        """A crop of the recording that the sampler draws; stretched after it is cut, so that length costs nothing."""
        c = self.config
        rng = np.random.default_rng([self.seed, self.epoch, item])
        index, focus = sampler.draw(self.epoch, item, rng)
        recording = self.recordings[index]
        features, grid = self.raw(index)
        duration = recording.duration or covered_seconds(self._stored_length[index], c, self._fps[index])
        factor = stretch_length(1 << 20, c.stretch, rng) / (1 << 20) if c.stretch else 1.0
        reach = reach_of(c)
        segments, kept = clip_segments(grid.to_steps(recording.segments), 0, features.shape[0], reach, c.trunc_thresh)
        window = focused_crop(
            segments, features.shape[0], max(round(c.max_length / factor), 1), c.crop_ratio, c.trunc_thresh, reach, rng,
            None if focus is None else float(grid.to_steps(focus)),
        )  # fmt: skip
        segments, inside = clip_segments(segments, *window, reach, c.trunc_thresh)
        features, grid = features[window[0] : window[1]], grid.cropped(window[0])
        segments = segments - window[0]
        if factor != 1.0:
            length = features.shape[0]
            stretched = min(max(round(length * factor), 1), c.max_length)
            seconds = grid.to_seconds(segments)
            features, grid = resize(features, stretched), grid.resized(length, stretched)
            segments = grid.to_steps(seconds)
        return Example(
            recording.id, self._perturbed(features, rng), torch.from_numpy(segments).float(),
            torch.from_numpy(recording.labels[kept[inside]]), grid, duration,
        )  # fmt: skip

    def raw(self, index: int) -> tuple[Tensor, TimeGrid]:
        """Whole features ``[T, C]`` of a recording (not of a crop) and their grid: pooled, resized to
        ``data.fixed_length``, not augmented."""
        features = self._features(index)
        return features, recording_grid(self._stored_length[index], self.config, self._fps[index])

    def _augmented(
        self, features: Tensor, grid: TimeGrid, seconds: np.ndarray, index: int
    ) -> tuple[Tensor, TimeGrid, np.ndarray, np.ndarray]:
        """(features, grid, segments in steps, indices of the segments kept) of a training item."""
        c = self.config
        rng = np.random.default_rng([self.seed, self.epoch, index])
        if c.stretch:
            length = features.shape[0]
            stretched = stretch_length(length, c.stretch, rng)
            samples = features.reshape(length * c.samples_per_step, -1)
            features = resize(samples, stretched * c.samples_per_step).reshape(stretched, -1)
            grid = grid.resized(length, stretched)
        reach = reach_of(c)
        window = (0, features.shape[0])
        segments, kept = clip_segments(grid.to_steps(seconds), *window, reach, c.trunc_thresh)
        crop = random_crop(segments, features.shape[0], c.max_length, c.crop_ratio, c.trunc_thresh, reach, rng)
        if crop != window:
            segments, inside = clip_segments(segments, *crop, reach, c.trunc_thresh)
            kept = kept[inside]
            features, grid = features[crop[0] : crop[1]], grid.cropped(crop[0])
        return self._perturbed(features, rng), grid, segments - crop[0], kept

    def _perturbed(self, features: Tensor, rng: np.random.Generator) -> Tensor:
        c = self.config
        if not (c.gain or c.noise):
            return features
        if self.channel_stats is None:
            self.channel_stats = fit_standardisation(self)
        mean, std = self.channel_stats
        if c.gain:
            gain = np.exp(c.gain * rng.standard_normal(features.shape[1] // c.samples_per_step)).astype(np.float32)
            gain = np.tile(gain, c.samples_per_step)
            gain[self._exact(features.shape[1])] = 1.0
            middle = mean - torch.clamp(mean, -FAR * std, FAR * std)
            features = middle + (features - middle) * torch.from_numpy(gain)
        if c.noise:
            noise = rng.standard_normal(features.shape, dtype=np.float32)
            noise[:, self._exact(features.shape[1])] = 0.0
            features = features + c.noise * std * torch.from_numpy(noise)
        return features

    def _exact(self, width: int) -> np.ndarray:
        """Columns of the network's input that hold ``data.exact_channels``.

        Raises:
            DataError: a channel that the features do not have.
        """
        stored = self.input_dim or width
        exact = np.array(self.config.exact_channels, dtype=np.int64)
        if len(exact) and exact.max() >= stored:
            raise DataError(f"data.exact_channels: {exact.max()}, expected channels below {stored}")
        return (exact + stored * np.arange(width // stored)[:, None]).ravel()

    def _features(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        c = self.config
        stored = torch.from_numpy(self._store.load(self.recordings[index].id, self.input_dim))
        features = pooled(stored, c) if c.fixed_length is None else resize(tamed(stored, c), c.fixed_length)
        self._stored_length[index] = stored.shape[0]
        size = features.numel() * features.element_size()
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index] = features
            self._cached_bytes += size
        return features

    def _check_files(self) -> None:
        container = is_container(self.features_dir)
        if not container and not is_url(self.features_dir) and not Path(self.features_dir).is_dir():
            raise DataError(f"{self.features_dir}: no such folder of features (data.features)")
        count, suffix = len(self.recordings), "" if container else self.config.file_suffix
        missing = [f"{self.config.file_prefix}{r.id}{suffix}" for r in self.recordings if r.id not in self._store]
        if missing:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(f"{self.features_dir}: {len(missing)} of {count} recordings have no feature file: {listed}")

    def frame_rate(self, index: int) -> float:
        """Raw frames per second of an item."""
        return self._fps[index]

    def _frame_rate(self, recording: Recording) -> float:
        fps = self.config.fps or recording.fps or self.config.usual_fps
        if fps is None:
            raise DataError(f"recording {recording.id!r} has no fps in the annotations; set data.fps")
        return fps


def resize(features: Tensor, length: int) -> Tensor:
    """Features ``[T, C]`` resized linearly in time to ``[length, C]``; outer edges stay in place."""
    moved = F.interpolate(features.T.unsqueeze(0), size=length, mode="linear", align_corners=False)
    return moved.squeeze(0).T.contiguous()


def covered_seconds(steps: int, config: DataConfig, fps: float) -> float:
    """Seconds of raw frames that ``steps`` stored feature steps see."""
    return ((steps - 1) * config.feat_stride + config.num_frames) / fps


def recording_grid(steps: int, config: DataConfig, fps: float) -> TimeGrid:
    """Grid of a recording with ``steps`` stored feature steps, after pooling or the resize to ``data.fixed_length``."""
    if config.fixed_length is None:
        frames = config.num_frames + (config.pool - 1) * config.feat_stride
        return TimeGrid.from_frames(config.pool * config.feat_stride, frames, fps)
    step = covered_seconds(steps, config, fps) / config.fixed_length
    return TimeGrid(step, 0.5 * step)


def reach_of(config: DataConfig) -> float:
    """Grid steps that features see beyond their step's centre."""
    if config.fixed_length:
        return 0.5
    frames = config.num_frames + (config.pool - 1) * config.feat_stride
    return 0.5 * frames / (config.pool * config.feat_stride)


def fit_standardisation(dataset: RecordingDataset) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation ``[C]`` float32 over all steps of a dataset's recordings.

    Computed in float64, recording by recording, on whole features without augmentation. A constant channel gets 1.
    """
    first = dataset.raw(0)[0].double()
    count, mean, square = 0, torch.zeros_like(first[0]), torch.zeros_like(first[0])
    for i in range(len(dataset.recordings)):
        x = dataset.raw(i)[0].double()
        # Chan's update keeps precision where the mean is much larger than the spread.
        shift = x.mean(0) - mean
        total = count + x.shape[0]
        square = square + (x - x.mean(0)).square().sum(0) + shift.square() * (count * x.shape[0] / total)
        mean = mean + shift * (x.shape[0] / total)
        count = total
    std = (square / count).sqrt()
    constant = std <= 1e-7 * mean.abs() + 1e-12
    return mean.float(), torch.where(constant, 1.0, std).float()

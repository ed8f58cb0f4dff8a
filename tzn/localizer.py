"""``tzn.load`` and what it returns: a trained localizer to hold and to call.

A file of its own because it stands above inference: it is what users have in hand, whatever kind of model and recording.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tzn.calibration import Calibration
from tzn.config import ExperimentConfig, InferenceConfig
from tzn.config_loading import config_from_dict, override_trained
from tzn.data.dataset import recording_grid
from tzn.data.pooling import pooled
from tzn.detections import Detections
from tzn.errors import ConfigError, DataError
from tzn.inference.calibrated import calibrated, calibration_of
from tzn.inference.predict import (
    SHORT_STEPS,
    Job,
    batches,
    check_input,
    checked_device,
    localized,
    read_input,
    recording_ids,
    signal_features,
)  # fmt: skip
from tzn.inference.stream import StreamLocalizer
from tzn.models.any_source import load_model
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.pretrained import RawSignal
from tzn.readers.front_end import FrontEnd, check_file, is_recording

ARRAYS = (np.ndarray, Tensor)
Recording = str | PathLike[str] | np.ndarray | Tensor  # a file, or an array [T, C]


def load(source: str | PathLike[str], overrides: Sequence[str] = (), *, device: str = "cpu") -> Localizer:
    """A trained localizer.

    Args:
        source: name of a model that comes with tzn ("hapt"), the folder of a ``tzn train`` run (its best checkpoint, as
            ``tzn predict`` takes it), a checkpoint, or a file of ``tzn export``, which runs on the CPU. The name goes first: a
            folder named so is "./hapt".
        overrides: settings that replace those of training, e.g. ``["inference.nms=hard"]``.
        device: where it runs: "cpu", "cuda", "cuda:1", …

    Raises:
        CheckpointError: there is no such thing, or it is damaged. ConfigError: an override or a device that cannot be.

    >>> model = load("hapt", ["inference.nms=hard"])
    >>> model
    <Localizer 'hapt': 12 classes, 50 samples a second of 6 channels, on cpu>
    >>> model.config.inference.nms
    'hard'
    """
    checkpoint, signal, name = load_model(source)
    return Localizer(checkpoint, signal, overrides=overrides, name=name).to(device)


class Localizer:
    """A trained localizer: call it with a recording, get its :class:`~tzn.detections.Detections`.

    A recording is a file that ``tzn predict`` reads (a video, a sound, a table, EDF or WFDB where the run was trained on such
    recordings; features), or an array ``[T, C]`` (NumPy or torch, any real dtype).

    Args:
        checkpoint: network, classes and configuration.
        signal: the model reads raw signals of this kind, and cuts them into feature steps itself; None: it reads features.
        overrides: as of :func:`load`.
        name: for messages.

    Attributes:
        classes: names in label order.
        config: the whole experiment; ``config.inference`` says how detections are made.
        signal: as given.
        network: the ``torch.nn.Module``, in evaluation mode.
        score_threshold: score from which on a detection is called confident, measured in training; None: not known.

    >>> model = load("hapt")
    >>> minute = np.zeros((6000, 6), dtype=np.float32)  # of a phone that gives 100 samples a second
    >>> found = model(minute, fps=100)
    >>> all(0 <= segment.start < segment.end <= 60 for segment in found)
    True
    >>> found.classes == model.classes
    True
    """

    def __init__(
        self, checkpoint: LoadedCheckpoint, signal: RawSignal | None = None, *, overrides: Sequence[str] = (),
        name: str = "",
    ) -> None:  # fmt: skip
        self.network = checkpoint.model.eval()
        self.classes = checkpoint.classes
        self.score_threshold = checkpoint.score_threshold
        self.config: ExperimentConfig = override_trained(config_from_dict(checkpoint.config), overrides)
        self.signal = signal
        self._checkpoint = checkpoint
        self._name = name

    @property
    def fps(self) -> float | None:
        """Samples per second of a raw signal, or raw frames per second that features were made from (``data.fps``: a step
        is ``config.data.feat_stride`` of them); None: each recording has its own, to be given with the call."""
        return self.signal.rate if self.signal else self.config.data.fps

    @property
    def channels(self) -> int:
        """Columns of a recording."""
        return len(self.signal.channels) if self.signal else self.config.stored_dim

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.feature_mean.device

    def to(self, device: str | torch.device) -> Localizer:
        """Move the network; returns the localizer itself.

        Raises:
            ConfigError: no such device, or no back end for it.
        """
        try:
            place = checked_device(str(device))
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("--")) from None
        self.network.to(place)
        return self

    def __call__(
        self,
        recording: Recording,
        *,
        fps: float | None = None,
        duration: float | None = None,
        budget: float | None = None,
    ) -> Detections:
        """Detections of one recording, in seconds from its first row.

        Args:
            recording: path of a file, or ``[T, C]`` finite numbers: samples of a raw signal or features, as the model
                takes them. Features of recordings are made as in training, and kept in the cache.
            fps: rate of this recording where it is not :attr:`fps`: a raw signal is resampled (needs ``tzn[signal]``);
                features of another rate than ``data.fps`` are refused. A file with times of its own needs none.
            duration: seconds; detections are clipped to it. None: what the features cover.
            budget: mean depth in (0, 1] to run at; None: as trained (or ``inference.budget``).

        Raises:
            DataError: unreadable file, array of another width or with values that are not finite, unknown or other rate.
            ConfigError: budget out of range.

        >>> load("hapt")(np.zeros((100, 5)))
        Traceback (most recent call last):
            ...
        tzn.errors.DataError: recording: an array of shape (100, 5), expected [T, 6]
        """
        settings = self._settings(budget)
        if isinstance(recording, ARRAYS):
            found = self._run([self._read("recording", recording, fps, duration)], settings)["recording"]
            return dataclasses.replace(found, recording=None)
        name = _id_of(recording, self.config)
        self._check(recording)
        return self._run([self._read(name, recording, fps, duration)], settings)[name]

    def predict(
        self,
        recordings: Iterable[Recording] | Mapping[str, Recording],
        *,
        fps: float | None = None,
        budget: float | None = None,
        progress: bool = False,
    ) -> dict[str, Detections]:
        """Detections by recording id, in the order of ``recordings``.

        Args:
            recordings: paths and arrays, or a mapping from recording id to them. The id of a path is its file name without
                suffix, that of an array its place in the list: "0", "1", …
            fps, budget: as of a call, of all recordings.
            progress: a bar on stderr, where that is a terminal.

        Raises:
            DataError: as of a call, naming the recording; two of one id. Paths are looked at before the first is run.
            ConfigError: budget out of range.

        >>> found = load("hapt").predict({"still": np.zeros((500, 6)), "longer": np.zeros((900, 6))})
        >>> list(found), found["still"].recording
        (['still', 'longer'], 'still')
        """
        settings, named = self._settings(budget), dict(self._named(recordings))
        for recording in named.values():
            self._check(recording)
        bar = tqdm(total=len(named), desc="predict", unit="recording", disable=None if progress else True)
        found = {}
        with bar:
            for name, detections in self._each(named.items(), fps, settings, progress and len(named) == 1):
                found[name] = detections
                bar.update()
        return {name: found[name] for name in named}

    def iterate(
        self,
        recordings: Iterable[Recording] | Mapping[str, Recording],
        *,
        fps: float | None = None,
        budget: float | None = None,
    ) -> Iterator[tuple[str, Detections]]:
        """(recording id, detections) one after the other, for any number of recordings: a generator of them is read as far
        as needed. Short recordings of similar length run side by side, so the order may differ from that of the input.

        Arguments and errors as of :meth:`predict`.

        >>> minutes = (np.zeros((3000, 6)) for _ in range(3))
        >>> sorted(name for name, found in load("hapt").iterate(minutes))
        ['0', '1', '2']
        """
        settings = self._settings(budget)
        return self._each(self._named(recordings), fps, settings)

    def stream(
        self,
        *,
        fps: float | None = None,
        min_score: float | None = None,
        window: float | None = None,
        reach: float | None = None,
        depth_shift: float | None = None,
    ) -> Stream:
        """A recording that is still going on: ``push`` its rows as they come, ``close`` at its end.

        Args:
            fps: rate of the rows, as of a call; a raw signal must have the model's own.
            min_score: detections below are not wanted, which spares most of the work; None: all.
            window: seconds per pass through the network; None: the receptive radius.
            reach: seconds that a segment may extend to either side of the step that finds it.
            depth_shift: a fixed turn of the depth dial; a budget needs the whole recording.

        Raises:
            ConfigError: a model or settings that cannot stream. DataError: a rate that is not the model's.

        >>> live = load("hapt").stream(fps=50, min_score=0.5)
        >>> early = [live.push(np.zeros((500, 6))) for second in range(5)]
        >>> [len(found) for found in early]  # nothing is final yet
        [0, 0, 0, 0, 0]
        >>> live.close().classes == load("hapt").classes
        True
        """
        rate, data = self._rate("stream", fps), self.config.data
        if self.signal is not None and rate != self.signal.rate:
            raise DataError(
                f"stream: fps = {rate:g}: a stream is not resampled; this model reads {self.signal.rate:g} samples a second"
            )
        if data.fixed_length is not None:
            raise ConfigError("data.fixed_length resizes whole recordings: this model cannot stream")
        grid = recording_grid(1, data, rate)
        steps = [None if x is None else max(math.ceil(x / grid.step), 1) for x in (window, reach)]
        inner = StreamLocalizer(
            self.network, grid, self.config.inference, min_score=min_score, window=steps[0], reach=steps[1],
            depth_shift=depth_shift,
        )  # fmt: skip
        # Another turn of the dial is another depth than was calibrated.
        known = calibration_of(self._checkpoint, self.config.inference) if depth_shift is None else None
        return Stream(self, inner, known)

    def __repr__(self) -> str:
        rate = "" if self.fps is None else f"{self.fps:g} {'samples' if self.signal else 'frames'} a second of "
        inputs = f"{rate}{self.channels} {'channels' if self.signal else 'features a step'}"
        return f"<Localizer {self._name!r}: {len(self.classes)} classes, {inputs}, on {self.device}>"

    def _settings(self, budget: float | None) -> InferenceConfig:
        settings = self.config.inference
        try:
            return settings if budget is None else dataclasses.replace(settings, budget=budget)
        except ValueError as error:
            raise ConfigError(f"budget = {budget!r}: {error}") from None

    def _named(self, recordings: Iterable[Recording] | Mapping[str, Recording]) -> Iterator[tuple[str, Recording]]:
        if isinstance(recordings, Mapping):
            yield from recordings.items()
            return
        if isinstance(recordings, (*ARRAYS, str, PathLike)):
            raise DataError("recordings: one recording, expected a list or a mapping of them; call the model with it")
        seen = set()
        for place, recording in enumerate(recordings):
            name = str(place) if isinstance(recording, ARRAYS) else _id_of(recording, self.config)
            if name in seen:
                raise DataError(f"two recordings are named {name!r}; give a mapping from id to recording")
            seen.add(name)
            yield name, recording

    def _each(
        self,
        named: Iterable[tuple[str, Recording]],
        fps: float | None,
        settings: InferenceConfig,
        progress: bool = False,
    ) -> Iterator[tuple[str, Detections]]:
        read = (self._read(name, recording, fps, progress=progress) for name, recording in named)
        for batch in batches(read, min(SHORT_STEPS, settings.chunk)):
            yield from self._run(batch, settings).items()

    def _run(self, batch: list[tuple[Job, Tensor]], settings: InferenceConfig) -> dict[str, Detections]:
        found = localized(self.network, batch, self.config, settings, self.signal, self.device)
        known = calibration_of(self._checkpoint, settings)
        return {name: self.named(one, name, known) for name, one in found.items()}

    def named(self, found: Detections, recording: str | None, known: Calibration | None) -> Detections:
        """Detections with what the localizer knows of them."""
        return dataclasses.replace(
            calibrated(found, known), classes=self.classes, recording=recording, score_threshold=self.score_threshold
        )

    @cached_property
    def _front_end(self) -> FrontEnd:
        """What makes features of recordings as in training; a network for video is loaded once."""
        return FrontEnd(self.config.front_end)

    def _check(self, recording: Recording) -> None:
        """What can be told of a recording without its values."""
        if isinstance(recording, ARRAYS):
            return
        path = Path(recording)
        if is_recording(path, self.config.front_end):
            check_file(path, self._front_end.suffixes)
        else:
            check_input(path, self.config, self.signal)

    def _read(
        self, name: str, recording: Recording, fps: float | None, duration: float | None = None, progress: bool = False
    ) -> tuple[Job, Tensor]:
        """Features ``[T, C]`` of a recording, and what there is to know of it."""
        job = Job(name, Path() if isinstance(recording, ARRAYS) else Path(recording), self._rate(name, fps), duration)
        if duration is not None and not 0 < duration < math.inf:
            raise DataError(f"{name}: duration = {duration!r}: expected seconds above 0")
        if not isinstance(recording, ARRAYS):
            if is_recording(job.path, self.config.front_end):
                made = self._front_end.features(job.path, device=str(self.device), progress=progress)
                job = dataclasses.replace(job, path=made)
            check_input(job.path, self.config, self.signal)
            return job, torch.from_numpy(read_input(job, self.config, self.signal))
        rows = as_rows(name, recording, self.channels)
        if self.signal is None:
            return job, rows
        try:
            return job, torch.from_numpy(signal_features(rows.cpu().numpy(), job.fps, self.signal))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _rate(self, name: str, fps: float | None) -> float:
        """Rate of a recording as it is given."""
        known = self.fps
        if fps is not None and not 0 < fps < math.inf:
            raise DataError(f"{name}: fps = {fps!r}: expected a rate above 0")
        if fps is None and known is None:
            raise DataError(
                f"{name}: this model does not fix the frame rate (data.fps is null): give fps, the raw frames per second "
                f"of the recording, of which {self.config.data.feat_stride:g} make a feature step"
            )
        if self.signal is None and fps is not None and known not in (None, fps):
            raise DataError(
                f"{name}: fps = {fps:g}: this model reads features of {known:g} frames a second (data.fps), a step every "
                f"{self.config.data.feat_stride:g}; features of another rate must be made anew (for these, leave fps out)"
            )
        return fps or known or math.nan


class Stream:
    """From :meth:`Localizer.stream`: rows in, detections that can no longer change out.

    Attributes:
        latency: seconds from the end of a segment to when it can be final, where no rival of it is unsettled.
    """

    def __init__(self, localizer: Localizer, inner: StreamLocalizer, known: Calibration | None = None) -> None:
        self._localizer, self._inner = localizer, inner
        self._known = known
        self._rest: Tensor | None = None  # samples of a step that is not complete
        self._steps: Tensor | None = None  # stored steps of a grid step that is not complete (data.pool)
        self.latency = inner.latency * inner.grid.step

    def push(self, chunk: np.ndarray | Tensor) -> Detections:
        """Detections that the next rows ``[n, channels]`` made final; seconds count from the first row of the stream.

        Raises:
            DataError: another width, values that are not finite. ValueError: the stream was closed.
        """
        rows = as_rows("chunk", chunk, self._localizer.channels)
        if self._localizer.signal is not None:
            rows = rows if self._rest is None else torch.cat([self._rest, rows])
            size = self._localizer.signal.samples_per_step
            whole = len(rows) // size * size
            rows, self._rest = rows[:whole].reshape(whole // size, -1), rows[whole:]
        data = self._localizer.config.data
        if data.pool > 1 or data.log_channels:
            rows = rows if self._steps is None else torch.cat([self._steps, rows])
            whole = len(rows) // data.pool * data.pool
            steps, self._steps = rows[:whole], rows[whole:]
            rows = pooled(steps, data) if whole else rows.new_zeros(0, self._localizer.config.model.feature_dim)
        return self._localizer.named(self._inner.push(rows), None, self._known)

    def close(self) -> Detections:
        """The rest, at the end of the recording; samples of an incomplete step are left out."""
        return self._localizer.named(self._inner.close(), None, self._known)


def as_rows(name: str, array: Any, channels: int) -> Tensor:
    """An array as float32 ``[T, channels]``.

    Raises:
        DataError: another shape, no rows, values that are no finite numbers; names the place.
    """
    shape = tuple(array.shape)
    if len(shape) != 2 or shape[1] != channels:
        raise DataError(f"{name}: an array of shape {shape}, expected [T, {channels}]")
    if shape[0] == 0:
        raise DataError(f"{name}: an array of shape {shape}, expected at least one row")
    try:
        rows = (
            array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.asarray(array, np.float32))
        ).float()
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: an array of {array.dtype}, expected numbers ({error})") from None
    if not bool(rows.isfinite().all()):
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"{name}: value {float(rows[row, column])} at row {row}, column {column}; expected finite numbers"
        )
    return rows


def _id_of(path: str | PathLike[str], config: ExperimentConfig) -> str:
    if not isinstance(path, (str, PathLike)):
        raise DataError(f"recording: a {type(path).__name__}, expected a path or an array [T, C]")
    return recording_ids([Path(path)], config.data.file_prefix)[0]

"""Detections for feature files of a user's own recordings."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tzn.config import ExperimentConfig, InferenceConfig
from tzn.config_loading import config_from_dict
from tzn.data.annotations import Recording, load_annotations
from tzn.data.dataset import covered_seconds, recording_grid, resize
from tzn.data.features import load_features, read_header
from tzn.data.pooling import pooled, tamed
from tzn.data.signal import TEXT_SUFFIXES, check_signal, load_signal, resample, signal_to_features
from tzn.detections import Detections, write_folder, write_predictions
from tzn.errors import ConfigError, DataError
from tzn.files import remove_temporary_of
from tzn.formats import FORMATS, format_of
from tzn.inference.calibrated import calibrated, calibration_of
from tzn.inference.external_scores import fuse_video_scores, load_video_scores, video_score_classes
from tzn.inference.localize_many import localize_many
from tzn.inference.part_file import PartFile
from tzn.inference.traces import save_trace, trace_arrays
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.pretrained import RawSignal
from tzn.ops import choose_backend
from tzn.readers import SIGNAL_SUFFIXES, SUFFIXES, has_times, kind_of, read_recording
from tzn.readers.front_end import as_features, check_file, kind_of_extractor, recording_id

LOG = logging.getLogger("tzn")
SHORT_STEPS = 512  # longer recordings fill the machine on their own
BATCH_STEPS = 4096  # of recordings side by side, padding included
WINDOW_STEPS = 16384  # of recordings read before those of similar length are put together
PADDING = 1.25  # longest over shortest recording of a batch
RAW_SUFFIXES = (".npy", *SIGNAL_SUFFIXES)  # of raw signals
CLOCK_TOLERANCE = 0.05  # by which a stated rate may differ from that of a file's own times


@dataclass(frozen=True)
class Job:
    """One recording to do.

    Attributes:
        name: recording id.
        path: its file.
        fps: raw frames per second of the features; samples per second of a raw signal as it lies in the file.
        duration: seconds, or None: what the features cover.
    """

    name: str
    path: Path
    fps: float
    duration: float | None


class Prediction(NamedTuple):
    """What was done: recordings and detections written, and why files failed, by path."""

    recordings: int
    detections: int
    failed: dict[Path, str]


def predict_files(
    checkpoint: LoadedCheckpoint,
    inputs: Sequence[Path],
    out: Path,
    *,
    fmt: str | None = None,
    fps: float | None = None,
    annotations: Path | None = None,
    inference: InferenceConfig | None = None,
    min_score: float | None = None,
    top: int | None = None,
    traces: Path | None = None,
    video_scores: Path | None = None,
    signal: RawSignal | None = None,
    device: str = "cpu",
    keep_going: bool = False,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Prediction:
    """Localize actions in feature files and write them to ``out``.

    Inputs and outputs are checked first. Each recording is kept in ``<out>.part`` as soon as it is done, and ``out`` is
    written from there at the end; memory does not grow with their number.

    Args:
        checkpoint: from :func:`tzn.models.checkpoint.load_checkpoint`.
        inputs: recordings that the run's front end reads, ``.npy``/``.npz`` files of features, or folders of them; the file
            name without suffix is the recording id.
        out: file of format ``fmt``; with "srt" a ``.srt`` file for a single recording, else a folder.
        fmt: "json", "csv" or "srt"; None: by the suffix of ``out``.
        fps: raw frames per second of all recordings; of raw signals, samples per second. None: the checkpoint's, and where
            it has none, each recording's own in ``annotations``.
        annotations: file with rate and duration of the recordings; detections are clipped to the duration.
        inference: replaces the checkpoint's inference settings.
        min_score: detections below this score are left out, after suppression. None: all are kept; in subtitles those of
            at least the checkpoint's score threshold, where it has one and ``top`` is not given.
        top: at most so many detections per recording, the best.
        traces: folder for one ``.npz`` per recording with depth and distance fields, for ``tzn plot``.
        video_scores: file of a whole-video classifier with a "class" list; detections get its classes. For models trained
            with ``data.single_class``.
        signal: the inputs are raw signals (``.npy``, tables, EDF, WFDB) of this kind, to be cut into feature steps.
        keep_going: leave out files that cannot be used, instead of stopping at the first.
        resume: continue from ``<out>.part``.
        progress: show a bar on stderr, if that is a terminal.
        say: takes what a user should know, line by line.

    Raises:
        DataError: missing, empty or damaged file, wrong width, NaN, unknown frame rate, two inputs of one name, output
            that cannot be written, nothing left to do with ``keep_going``; a part file that does not fit.
        ConfigError: a setting out of range, a device or back end that is not there.
    """
    config = config_from_dict(checkpoint.config)
    settings = inference or config.inference
    _check_numbers(fps, min_score, top)
    fmt = output_format(out, fmt)
    place = checked_device(device)
    remarks = []
    threshold = getattr(checkpoint, "score_threshold", None)
    single = FORMATS[fmt].single
    if single and min_score is None and top is None:
        min_score = threshold
        remarks.append(
            f"the checkpoint has no score threshold: {fmt} files hold every detection; choose with --min-score or --top"
            if min_score is None
            else f"{fmt} files hold detections with a score of at least {min_score:.3g}; --min-score 0: all"
        )
    classes, fuse = _classes(checkpoint, config, video_scores)
    failed: dict[Path, str] = {}

    def fails(path: Path, error: DataError) -> None:
        if not keep_going:
            raise error
        failed[path] = str(error)

    if signal is None:
        inputs = as_features(inputs, config.front_end, fails, device=str(place), progress=progress)
    files = feature_files(inputs, RAW_SUFFIXES if signal else (config.data.file_suffix,), fails)
    names = recording_ids(files, config.data.file_prefix)
    known = {} if annotations is None else load_annotations(annotations, strict=False).recordings
    jobs = []
    for name, path in zip(names, files, strict=True):
        try:
            check_input(path, config, signal)
            if fuse is not None and name not in fuse:
                raise DataError(f"{path}: {video_scores} has no scores for {name!r}")
            jobs.append(_job(name, path, config, known.get(name), fps, signal))
        except DataError as error:
            fails(path, error)
    if not jobs:
        raise _nothing(failed)
    remarks += _remarks(jobs, known, annotations, fps, config, signal)
    in_folder = single and format_of(out.name) is None
    suffix = FORMATS[fmt].suffix
    if single and not in_folder and len(jobs) != 1:
        raise DataError(f"{out}: one {suffix} file holds one recording, there are {len(jobs)}; give a folder")

    begun = {
        "model": _digest(checkpoint.model), "classes": list(classes), "min_score": min_score, "top": top, "fps": fps,
        "annotations": _digest(annotations), "video_scores": _digest(video_scores), "traces": traces is not None,
        **{f"data.{k}": v for k, v in dataclasses.asdict(config.data).items()},
        **{f"inference.{k}": v for k, v in dataclasses.asdict(settings).items()},
    }  # fmt: skip
    if checkpoint.calibration is not None and fuse is None and calibration_of(checkpoint, settings) is None:
        remarks.append("other inference settings than were calibrated: intervals and probabilities are left out")
    folder = out if in_folder else out.parent
    made = _writable(folder, f"{max(names, key=len)}{suffix}" if in_folder else out.name)
    made += [] if traces is None else _writable(traces, f"{max(names, key=len)}.npz")
    with _journal(out, begun, resume, made) as part:
        part.arrange(names)
        if len(part):
            remarks.append(f"{len(part)} of {len(jobs)} recordings are done already")
        for line in remarks:
            say(line)
        model = checkpoint.model.to(place)
        todo = [job for job in jobs if job.name not in part]
        bar = tqdm(
            total=len(jobs), initial=len(part), desc="predict", unit="recording",
            disable=None if progress and len(jobs) > 1 else True,
        )  # fmt: skip
        with bar:
            recordings = _readable(todo, config, signal, keep_going, failed)
            known_errors = None if fuse is not None else calibration_of(checkpoint, settings)
            part.intervals = None if known_errors is None else known_errors.intervals
            for batch in batches(recordings, min(SHORT_STEPS, settings.chunk)):
                begin = time.perf_counter()
                found = localized(model, batch, config, settings, signal, place, traces)
                LOG.info(
                    "%s: %d steps, %d detections, %.2f s", ", ".join(job.name for job, _ in batch),
                    sum(len(x) for _, x in batch), sum(map(len, found.values())), time.perf_counter() - begin,
                )  # fmt: skip
                if fuse is not None:
                    found = fuse_video_scores(found, fuse)
                found = {name: calibrated(d, known_errors) for name, d in found.items()}
                part.add({name: confident(d, min_score, top) for name, d in found.items()})
                bar.update(len(batch))
        if failed and (not keep_going or not len(part)):
            raise _nothing(failed)
        part.arrange(names)
        part.score_threshold = threshold
        if in_folder:
            write_folder(out, part, classes, fmt=fmt)
        else:
            write_predictions(out, part, classes)
        return Prediction(len(part), sum(len(d.scores) for d in part.values()), failed)


def confident(found: Detections, min_score: float | None = None, top: int | None = None) -> Detections:
    """Detections with a score of at least ``min_score``, and of these the best ``top``; None: no limit."""
    kept = np.argsort(-found.scores, kind="stable")[:top]
    return found[np.sort(kept if min_score is None else kept[found.scores[kept] >= min_score])]


def output_format(out: Path, fmt: str | None) -> str:
    """The format that the suffix of ``out`` names; ``fmt`` must say the same. One that holds a single recording also stands
    for a folder.

    Raises:
        DataError: unknown suffix, or another format than ``fmt``.
    """
    named = format_of(out.name)
    if named is None and fmt is not None and FORMATS[fmt].single:
        return fmt
    if named is None:
        suffixes = ", ".join(known.suffix for known in FORMATS.values())
        raise DataError(f"{out}: expected a name that ends in {suffixes}, or a folder with --format srt")
    if fmt not in (None, named):
        raise DataError(f"{out}: the name says {named}, --format says {fmt}; give one of them, or two that agree")
    return named


def checked_device(name: str, given: str = "") -> torch.device:
    """A device that tensors can be put on and that a back end serves; ``given``: what the user wrote for it.

    Raises:
        ConfigError: there is none of that name, or ``TZN_BACKEND`` names one that cannot serve it.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        reason = str(error).strip().split("\n")[0][:120]
        raise ConfigError(f"{given or f'device {name}'}: not on this machine, which has {there} ({reason})") from None
    try:
        choose_backend(device)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return device


def feature_files(
    inputs: Sequence[Path], suffixes: Sequence[str], fails: Callable[[Path, DataError], None]
) -> list[Path]:
    """Files named, and those with one of ``suffixes`` in folders named; ``fails`` is told of what is not there."""
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith(tuple(suffixes)) and file.is_file())
            if not inside:
                fails(path, DataError(f"{path}: no {' or '.join(suffixes)} files in this folder"))
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            fails(path, DataError(f"{path}: no such file or folder"))
    return files


def recording_ids(files: Sequence[Path], prefix: str) -> list[str]:
    """File names without suffix and ``prefix``.

    Raises:
        DataError: one of them twice.
    """
    names = [recording_id(path).removeprefix(prefix) for path in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"two inputs are named {twice[0]!r}; recording ids must differ")
    return names


def _check_numbers(fps: float | None, min_score: float | None, top: int | None) -> None:
    if fps is not None and not 0 < fps < math.inf:
        raise ConfigError(f"--fps {fps}: expected a number above 0, and finite")
    if min_score is not None and not 0 <= min_score <= 1:
        raise ConfigError(f"--min-score {min_score}: expected a score in [0, 1]")
    if top is not None and top < 1:
        raise ConfigError(f"--top {top}: expected a positive number of detections")


def _classes(
    checkpoint: LoadedCheckpoint, config: ExperimentConfig, video_scores: Path | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray] | None]:
    """Class names of the detections, and the scores that choose among them."""
    if video_scores is None:
        return checkpoint.classes, None
    if not config.data.single_class:
        raise DataError(
            f"{video_scores}: video scores are for models of one class, but this one knows {checkpoint.classes}"
        )
    classes = video_score_classes(video_scores)
    return classes, load_video_scores(video_scores, classes)


def check_input(path: Path, config: ExperimentConfig, signal: RawSignal | None) -> None:
    """What can be told of a file without its values.

    Raises:
        DataError: missing, empty or foreign file, features of another width.
    """
    if signal is None:
        extractor = config.front_end.extractor
        if path.is_file() and kind_of(path) is not None:
            raise DataError(
                f"{path}: this model was trained on features made elsewhere (.npy, .npz), so it reads no recordings"
                if extractor is None
                else f"{path}: this model reads {', '.join(SUFFIXES[kind_of_extractor(extractor)])} or features (.npy, .npz)"
            )
        read_header(path, config.stored_dim, npz_key=config.data.npz_key)
    elif path.suffix in (".npy", *TEXT_SUFFIXES):
        check_signal(path, len(signal.channels))
    else:
        check_file(path, RAW_SUFFIXES)


def read_input(job: Job, config: ExperimentConfig, signal: RawSignal | None) -> np.ndarray:
    """Features ``[T, C]`` of a recording."""
    if signal is None:
        return load_features(job.path, npz_key=config.data.npz_key, input_dim=config.stored_dim)
    try:
        if job.path.suffix != ".npy" and (job.path.suffix not in TEXT_SUFFIXES or has_times(job.path)):
            return signal_to_features(_timed_samples(job, signal), signal.samples_per_step)
        return signal_features(load_signal(job.path, len(signal.channels)), job.fps, signal)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(job.path)) else f"{job.path}: {text}") from None


def _timed_samples(job: Job, signal: RawSignal) -> np.ndarray:
    """Samples ``[N, C]`` at the signal's rate, by the reader for the file; where it says its own rate, that one counts.

    Raises:
        DataError: unreadable file, another number of channels, an ``fps`` that contradicts the file's own times.
    """
    timed = has_times(job.path)
    if timed and job.fps != signal.rate:
        own = read_recording(job.path).rate
        if abs(own / job.fps - 1) > CLOCK_TOLERANCE:
            raise DataError(f"{job.path}: its times say {own:g} samples a second, not fps = {job.fps:g}; leave fps out")
    recording = read_recording(job.path, rate=signal.rate, sample_rate=None if timed else job.fps)
    if recording.values.shape[1] != len(signal.channels):
        raise DataError(
            f"{job.path}: has the channels {', '.join(recording.channels)}; expected {len(signal.channels)} besides the "
            f"times: {', '.join(signal.channels)}"
        )
    return recording.values


def signal_features(samples: np.ndarray, fps: float, signal: RawSignal) -> np.ndarray:
    """Features ``[T, C]`` of raw samples ``[samples, channels]``, ``fps`` of them a second."""
    return signal_to_features(resample(samples, fps, signal.rate), signal.samples_per_step)


def _job(
    name: str, path: Path, config: ExperimentConfig, recording: Recording | None, fps: float | None,
    signal: RawSignal | None,
) -> Job:  # fmt: skip
    own = None if recording is None else recording.fps
    # A signal may be brought to the model's rate; features were made at the rate that the model's configuration states,
    # whatever that of the original recording.
    rate = fps or (own or signal.rate if signal else config.data.fps or own)
    if rate is None:
        raise DataError(
            f"{path}: the checkpoint does not fix the frame rate (data.fps is null): add --annotations FILE with the "
            "\"fps\" of this recording, or --fps FRAMES_PER_SECOND for all"
        )  # fmt: skip
    return Job(name, path, rate, None if recording is None else recording.duration)


def _remarks(
    jobs: list[Job], known: Mapping[str, Recording], annotations: Path | None, fps: float | None,
    config: ExperimentConfig, signal: RawSignal | None,
) -> Iterator[str]:  # fmt: skip
    """What is done to the recordings that a user may not expect."""
    if signal is not None:
        for rate, count in Counter(job.fps for job in jobs if job.fps != signal.rate).items():
            yield f"resampling {count} recordings from {rate:g} to {signal.rate:g} samples a second"
    if annotations is None:
        return
    silent = [job for job in jobs if job.duration is None]
    if silent:
        yield f"{annotations}: no duration of {len(silent)} recordings, such as {silent[0].name!r}; taken from their features"
    rates = [r.fps for job in jobs if (r := known.get(job.name)) and r.fps is not None and r.fps != job.fps]
    if rates:
        source = "--fps" if fps else "data.fps of the checkpoint"
        yield f"{annotations}: {len(rates)} recordings have another fps (such as {rates[0]:g}) than {source}, which is used"


def _readable(
    jobs: list[Job], config: ExperimentConfig, signal: RawSignal | None, keep_going: bool, failed: dict[Path, str]
) -> Iterator[tuple[Job, Tensor]]:
    """Recordings with their features, up to the first bad file or without the bad ones."""
    for job in jobs:
        try:
            yield job, torch.from_numpy(read_input(job, config, signal))
        except DataError as error:
            failed[job.path] = str(error)
            if not keep_going:
                return


def batches(
    recordings: Iterator[tuple[Job, Tensor]], short: int, most: int | None = None
) -> Iterator[list[tuple[Job, Tensor]]]:
    """Recordings to run side by side: those of up to ``short`` steps and of similar length, ``most`` steps of them with their
    padding (by default as many as a batch has); longer ones alone."""
    most = BATCH_STEPS if most is None else most
    window: list[tuple[Job, Tensor]] = []
    steps = 0
    for item in recordings:
        if len(item[1]) > short:
            yield [item]
            continue
        window.append(item)
        steps += len(item[1])
        if steps > WINDOW_STEPS:
            yield from _similar(window, most)
            window, steps = [], 0
    yield from _similar(window, most)


def _similar(window: list[tuple[Job, Tensor]], most: int) -> Iterator[list[tuple[Job, Tensor]]]:
    batch: list[tuple[Job, Tensor]] = []
    for item in sorted(window, key=lambda pair: len(pair[1])):
        length = len(item[1])
        if batch and (length * (len(batch) + 1) > most or length > PADDING * len(batch[0][1])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def localized(
    model: Any, batch: list[tuple[Job, Tensor]], config: ExperimentConfig, settings: InferenceConfig,
    signal: RawSignal | None, device: torch.device, traces: Path | None = None,
) -> dict[str, Detections]:  # fmt: skip
    """Detections of recordings side by side; their traces are written."""
    data = config.data
    features, grids, durations = [], [], []
    for job, stored in batch:
        steps, rate = stored.shape[0], signal.rate if signal else job.fps
        grids.append(recording_grid(steps, data, rate))
        durations.append(job.duration or covered_seconds(steps, data, rate))
        steps_seen = (
            pooled(stored, data) if data.fixed_length is None else resize(tamed(stored, data), data.fixed_length)
        )
        features.append(steps_seen.to(device))
    found = {}
    results = localize_many(model, features, grids, durations, settings)
    for (job, _), grid, (detections, trace) in zip(batch, grids, results, strict=True):
        found[job.name] = detections
        if traces is not None:
            save_trace(traces, job.name, trace_arrays(trace, grid))
    return found


@contextlib.contextmanager
def _journal(out: Path, settings: Mapping[str, Any], resume: bool, made: list[Path]) -> Iterator[PartFile]:
    """The part file of ``out``: deleted at the end, and on errors if it is empty, with the folders ``made`` for it."""
    part, kept = None, 0
    try:
        part = PartFile(out.parent / f"{out.name}.part", settings, resume=resume)
        remove_temporary_of(out)
        yield part
        part.close(delete=True)
    except BaseException as error:
        if part is not None:
            kept = len(part)
            part.close(delete=not kept)
        if not kept:
            _remove(made)
        rest = f"; {kept} recordings are kept in {part.path}: continue with --resume" if part and kept else ""
        if isinstance(error, OSError):
            name = error.filename or (part.path if part else out)
            raise DataError(f"{name}: cannot be written ({error.strerror or error}){rest}") from None
        if isinstance(error, DataError) and rest:
            raise DataError(f"{error}{rest}") from None
        if isinstance(error, KeyboardInterrupt) and rest:
            raise type(error)(f"stopped{rest}") from None
        raise


def _writable(folder: Path, name: str) -> list[Path]:
    """Try out whether ``folder/name`` can be written as outputs are; the folders that had to be made for it.

    Raises:
        DataError: it cannot; nothing is left behind.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(0, "a folder, expected the name of a file")
        with tempfile.TemporaryFile(dir=folder, prefix=f".{name}.", suffix=".tmp"):
            return missing
    except OSError as error:
        _remove(missing)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _nothing(failed: dict[Path, str]) -> DataError:
    """The error of a prediction that bad files ended."""
    more = f"; and {len(failed) - 1} more files cannot be used" if len(failed) > 1 else ""
    return DataError(f"{next(iter(failed.values()))}{more}")


def _digest(content: torch.nn.Module | Path | None) -> str | None:
    """A fingerprint of weights or of a file."""
    if content is None:
        return None
    digest = hashlib.sha256()
    if isinstance(content, Path):
        digest.update(content.read_bytes())
        return digest.hexdigest()[:16]
    for name, tensor in content.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

"""Detections for feature files of a user's own recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tzn.config import DataConfig, ExperimentConfig, InferenceConfig
from tzn.config_loading import config_from_dict
from tzn.data.dataset import covered_seconds, recording_grid, resize
from tzn.data.features import load_features
from tzn.data.signal import load_signal, signal_to_features
from tzn.detections import Detections, write_folder, write_predictions
from tzn.errors import DataError
from tzn.formats import FORMATS, format_of
from tzn.inference.external_scores import fuse_video_scores, load_video_scores, video_score_classes
from tzn.inference.localize import localize
from tzn.inference.traces import save_trace, trace_arrays
from tzn.models.checkpoint import LoadedCheckpoint
from tzn.models.pretrained import RawSignal

SIGNAL_SUFFIXES = (".npy", ".csv", ".tsv", ".txt")


def predict_files(
    checkpoint: LoadedCheckpoint,
    inputs: Sequence[Path],
    out: Path,
    *,
    fmt: str = "json",
    fps: float | None = None,
    inference: InferenceConfig | None = None,
    traces: Path | None = None,
    video_scores: Path | None = None,
    signal: RawSignal | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Detections]:
    """Localize actions in feature files and write them to ``out``; nothing is written unless every input is good.

    Args:
        checkpoint: from :func:`tzn.models.checkpoint.load_checkpoint`.
        inputs: ``.npy``/``.npz`` files, or folders of them; the file name without suffix is the recording id.
        out: ``.json``/``.csv`` file; with ``fmt="srt"`` a folder, or for a single recording a ``.srt`` file.
        fps: raw frames per second; needed where the checkpoint's configuration leaves it to the annotations.
        inference: replaces the checkpoint's inference settings.
        video_scores: file of a whole-video classifier with a "class" list; detections get its classes. For models trained
            with ``data.single_class``.
        signal: the inputs are raw signals (``.npy``, ``.csv``) of this kind, to be cut into feature steps.
        traces: folder for one ``.npz`` per recording with depth and distance fields, for ``tzn plot``.

    Raises:
        DataError: missing, empty or damaged file, wrong width, NaN, unknown frame rate, two inputs of one name.
    """
    config = config_from_dict(checkpoint.config)
    data = with_fps(config.data, fps)
    settings = inference or config.inference
    files = feature_files(inputs, SIGNAL_SUFFIXES if signal else (data.file_suffix,))
    if video_scores is not None and not data.single_class:
        raise DataError(
            f"{video_scores}: video scores are for models of one class, but this one knows {checkpoint.classes}"
        )
    model = checkpoint.model.to(device)
    found: dict[str, Detections] = {}
    saved = {}
    for path in tqdm(files, desc="predict", unit="recording", disable=not progress or len(files) < 2):
        stored = torch.from_numpy(_read(path, config, signal))
        assert data.fps is not None
        grid = recording_grid(stored.shape[0], data, data.fps)
        features = stored if data.fixed_length is None else resize(stored, data.fixed_length)
        name = path.stem.removeprefix(data.file_prefix)
        duration = covered_seconds(stored.shape[0], data, data.fps)
        found[name], trace = localize(model, features.to(device), grid, duration, settings)
        if traces is not None:
            saved[name] = trace_arrays(trace, grid)
    classes = checkpoint.classes
    if video_scores is not None:
        classes = video_score_classes(video_scores)
        found = fuse_video_scores(found, load_video_scores(video_scores, classes))
    for name, arrays in saved.items():
        assert traces is not None
        save_trace(traces, name, arrays)
    if FORMATS[fmt].single and format_of(out.name) != fmt:
        write_folder(out, found, classes, fmt=fmt)
    else:
        write_predictions(out, found, classes)
    return found


def _read(path: Path, config: ExperimentConfig, signal: RawSignal | None) -> np.ndarray:
    """Features ``[T, C]`` of a file."""
    if signal is None:
        return load_features(path, npz_key=config.data.npz_key, input_dim=config.model.feature_dim)
    try:
        return signal_to_features(load_signal(path, len(signal.channels)), signal.samples_per_step)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def with_fps(data: DataConfig, fps: float | None) -> DataConfig:
    """The data settings with a frame rate."""
    rate = fps or data.fps
    if rate is None:
        raise DataError("the checkpoint does not fix the frame rate (data.fps is null): add --fps FRAMES_PER_SECOND")
    return dataclasses.replace(data, fps=rate)


def feature_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files named, and those with one of ``suffixes`` in folders named."""
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(file for suffix in suffixes for file in path.glob(f"*{suffix}"))
            if not inside:
                raise DataError(f"{path}: no {' or '.join(suffixes)} files in this folder")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    names = [path.stem for path in files]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two inputs are named {name!r}; recording ids must differ")
    return files

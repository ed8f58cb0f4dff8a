"""One training run: data, module, trainer, checkpoints, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from tzn import __version__
from tzn.checked import shown
from tzn.config import ExperimentConfig
from tzn.config_loading import config_from_dict, config_to_dict, dump_config
from tzn.data.dataset import (
    RecordingDataset,
    class_names,
    collate,
    fit_standardisation,
    load_split_annotations,
    select_recordings,
)
from tzn.data.stores import located
from tzn.errors import ConfigError, StoppedError, Terminated, TrainingError
from tzn.files import atomic_write, remove_temporary
from tzn.models.checkpoint import checked_header, load_checkpoint
from tzn.models.checkpoint_file import read_checkpoint, write_checkpoint
from tzn.readers.front_end import prepare_features
from tzn.training.distillation import load_teacher
from tzn.training.module import LocalizerModule
from tzn.training.resolve import best_f1_threshold, fingerprint, resolve_config
from tzn.training.start import start_from
from tzn.training.watch import (
    LOOKED_AT,
    SLOWER,
    BestCheckpoint,
    LossWatch,
    advice,
    begins_anew,
    detect,
    mean_ap,
    some_of,
)

LOG = logging.getLogger("tzn")
# Lightning's tips and tree warnings say nothing about a run.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*(treespec|does not have many workers|LeafSpec).*")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it, so a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(path, checkpoint)


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C end a run after the step they arrive in; a second one, or one outside of training, at once.

    A context manager around everything that should answer so.

    Raises:
        StoppedError: where the run is when it stops; outside of training KeyboardInterrupt, of SIGTERM
            :class:`~tzn.errors.Terminated`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.training = False
        self.owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a loader process inherits the handler; Ctrl-C is its parent's to answer
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        again, self.number = self.number is not None, number
        if self.training and again:
            raise StoppedError(number)
        if not self.training:  # no Exception: reading a checkpoint would take one for damage
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def on_train_batch_end(self, *_: Any) -> None:
        if self.number is not None:
            raise StoppedError(self.number)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.on_train_batch_end()


class RecordingData(pl.LightningDataModule):
    """Training and validation recordings; every process sees its share of the same global batches."""

    def __init__(self, config: ExperimentConfig, train: RecordingDataset, validation: RecordingDataset | None) -> None:
        super().__init__()
        self.config, self.train, self.validation = config, train, validation

    def train_dataloader(self) -> DataLoader:
        # Called once an epoch (reload_dataloaders_every_n_epochs), also after resuming, so the epoch is always right.
        assert self.trainer is not None
        c, epoch, world = self.config.training, self.trainer.current_epoch, self.trainer.world_size
        self.train.set_epoch(epoch)
        sampler: DistributedSampler = DistributedSampler(
            self.train, world, self.trainer.global_rank, shuffle=True, seed=c.seed, drop_last=len(self.train) >= world
        )
        sampler.set_epoch(epoch)
        size = c.batch_size // (c.accumulate * world)
        return DataLoader(
            self.train, size, sampler=sampler, num_workers=c.num_workers, collate_fn=collate,
            drop_last=len(self.train) // world >= size,
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader | list[Any]:
        if self.validation is None:
            return []
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        mine = torch.utils.data.Subset(self.validation, range(rank, len(self.validation), world))
        return DataLoader(mine, 1, num_workers=self.config.training.num_workers, collate_fn=collate)


def train(
    config: ExperimentConfig,
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train a localizer and return the checkpoint to use (best on validation where there is one, else the last).

    Args:
        config: the experiment; ``model.input_dim`` and ``model.num_classes`` must fit the data.
        data: folder that ``config.data.annotations`` and ``config.data.features`` are relative to.
        out: folder of the run: ``config.yaml``, ``checkpoints/last.ckpt`` and ``best.ckpt``, ``logs/``, ``run.json``.
        resume: continue the run in ``out`` from its last checkpoint; the same seeds give the same run. Refused, before
            anything is written, with another configuration, other classes or other recordings.
        accelerator, devices, num_nodes: as in Lightning; under ``torchrun`` devices default to its processes.
        say: takes what a user should know, line by line.

    Raises:
        ConfigError, DataError, CheckpointError: configuration, data or teacher do not fit; nothing is written.
        TrainingError: NaN loss, diverged weights or out of memory; the last good checkpoint is kept.
        StoppedError: SIGTERM or Ctrl-C; the checkpoint of the last finished epoch is there to resume from.
        OSError: ``out`` cannot be written.
    """
    data, out = Path(data), Path(out)
    last = out / "checkpoints" / "last.ckpt"
    with StopOnSignal() as stop:
        try:
            return _train(config, data, out, last, resume, (accelerator, devices, num_nodes, progress), stop, say)
        except (StoppedError, SIGTERMException, KeyboardInterrupt) as error:
            by_hand = isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated)
            number = int(signal.SIGINT if by_hand else signal.SIGTERM)
            number = error.signal_number if isinstance(error, StoppedError) else number
            then = (
                "continue with --resume" if last.is_file() else "no epoch was finished, so start again without --resume"
            )
            raise StoppedError(number, f"stopped; {then}") from None


def _train(
    config: ExperimentConfig, data: Path, out: Path, last: Path, resume: bool,
    machine: tuple[str, int | None, int, bool], stop: StopOnSignal, say: Callable[[str], None],
) -> Path:  # fmt: skip
    _check_out(out, last, resume)
    config = prepare_features(config, data, progress=machine[3])
    train_set, validation_set = build_datasets(config, data)
    config = resolve_config(config, train_set)
    if resume and config.training.retries:
        config = _with_found_rate(config, last)
    # Before seeding: building a teacher draws random numbers, and a student with one starts as the student without.
    teacher = load_teacher(config, train_set.classes) if config.training.teacher else None
    for left in range(config.training.retries, -1, -1):
        try:
            return _attempt(config, train_set, validation_set, teacher, data, out, last, resume, machine, stop, say)
        except _AnewError as error:
            if not left:
                raise error.reason from None
            slower = float(f"{config.training.learning_rate / SLOWER:.3g}")
            warnings.warn(
                f"{error.reason}; training begins anew with training.learning_rate = {slower:g}", stacklevel=2
            )
            config = dataclasses.replace(config, training=config.training.replace(learning_rate=slower))
            resume = False
            for path in out.glob("checkpoints/*.ckpt"):
                path.unlink()
    raise AssertionError("a last attempt returns or raises")


class _AnewError(Exception):
    """A training that a smaller learning rate may save."""

    def __init__(self, reason: TrainingError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _with_found_rate(config: ExperimentConfig, last: Path) -> ExperimentConfig:
    """With the learning rate of the checkpoint, where that is what new beginnings made of the configuration's."""
    rate = config_from_dict(checked_header(read_checkpoint(last), last)["config"]).training.learning_rate
    tried = config.training.learning_rate
    for _ in range(config.training.retries):
        tried = float(f"{tried / SLOWER:.3g}")
        if tried == rate:
            return dataclasses.replace(config, training=config.training.replace(learning_rate=rate))
    return config


def _attempt(
    config: ExperimentConfig, train_set: RecordingDataset, validation_set: RecordingDataset | None, teacher: Any,
    data: Path, out: Path, last: Path, resume: bool, machine: tuple[str, int | None, int, bool], stop: StopOnSignal,
    say: Callable[[str], None],
) -> Path:  # fmt: skip
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    held_out = validation_set.recordings if validation_set else []
    described = fingerprint(train_set.classes, [*train_set.recordings, *held_out])
    module = LocalizerModule(config, train_set.classes, held_out, teacher, described)
    mean, std = fit_standardisation(train_set)
    if config.training.start is not None and not resume:
        say(start_from(config.training.start, module.model, train_set.classes).text())
    module.model.feature_mean.copy_(mean)
    module.model.feature_std.copy_(std)
    train_set.channel_stats = mean, std
    trainer = _trainer(config, out, validation_set is not None, *machine, stop)
    _check_batch(config, trainer.world_size)
    with _locked(out) if trainer.is_global_zero else contextlib.nullcontext():
        if trainer.is_global_zero:
            _check_out(out, last, resume)  # a run that has just ended
        if resume:
            _check_same_run(last, module)
        if trainer.is_global_zero:
            remove_temporary(out)
            with atomic_write(out / "config.yaml") as file:
                file.write(dump_config(config))
            LOG.info(
                "%d recordings to learn from, %d held out, %d classes; %d parameters; %d epochs on %s",
                len(train_set.recordings), len(held_out), len(train_set.classes),
                sum(p.numel() for p in module.model.parameters()), config.training.epochs, trainer.strategy.root_device,
            )  # fmt: skip
        begin, cpu_begin = time.perf_counter(), time.process_time()
        stop.training = True
        try:
            _fit(trainer, module, RecordingData(config, train_set, validation_set), last, resume)
        except TrainingError as error:
            if trainer.world_size == 1 and config.training.retries and begins_anew(error, trainer):
                raise _AnewError(error) from error
            raise
        finally:
            stop.training = False
        best = out / "checkpoints" / "best.ckpt"
        chosen = best if validation_set is not None and best.is_file() else last
        if trainer.is_global_zero:
            seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
            scores = _store_threshold(chosen, config, train_set, validation_set, data)
            _write_summary(out / "run.json", trainer, seconds, cpu_seconds, scores)
    return chosen


def _fit(trainer: pl.Trainer, module: LocalizerModule, data: RecordingData, last: Path, resume: bool) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error}. {_kept(last)}") from None
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise TrainingError(
                f"out of memory; lower data.max_length or training.batch_size, or raise training.accumulate. {_kept(last)}"
            ) from error
        raise


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else trains into ``out`` meanwhile; the lock ends with the process, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"{out}: another training is writing there; wait for it or choose another --out") from None


def _check_same_run(last: Path, module: LocalizerModule) -> None:
    """Resuming makes sense only with the configuration, classes and recordings that the run began with.

    Raises:
        ConfigError: lists what differs.
    """
    header = checked_header(read_checkpoint(last), last)
    differences = _changed_settings(config_from_dict(header["config"]), module.config)
    if tuple(header["classes"]) != module.classes:
        differences.append(f"classes were {', '.join(map(str, header['classes']))}, now {', '.join(module.classes)}")
    before, now = header.get("data"), module.data
    if isinstance(before, dict) and before != now:
        differences.append(f"recordings were {_described(before)}, now {_described(now or {})}")
    model = module.model
    for name in ("feature_mean", "feature_std"):
        then, value = header[name], getattr(model, name)
        if then.shape != value.shape or not torch.allclose(then, value, rtol=1e-3, atol=1e-6):
            differences.append(f"features have another mean or spread ({name})")
            break
    if differences:
        raise ConfigError(f"--resume: {last} is of another run; nothing was written: {'; '.join(differences)}")


def _changed_settings(before: ExperimentConfig, now: ExperimentConfig) -> list[str]:
    then, here = config_to_dict(before), config_to_dict(now)
    free = {("training", "num_workers")}  # changes nothing but the speed
    return [
        f"{section}.{name} was {shown(then.get(section, {}).get(name))}, now {shown(here.get(section, {}).get(name))}"
        for section in {**then, **here}
        for name in {**then.get(section, {}), **here.get(section, {})}
        if then.get(section, {}).get(name) != here.get(section, {}).get(name) and (section, name) not in free
    ]


def _described(data: dict[str, Any]) -> str:
    return f"{data.get('recordings')} with {data.get('segments')} segments (digest {data.get('digest')})"


def _store_threshold(
    path: Path, config: ExperimentConfig, train_set: RecordingDataset, validation: RecordingDataset | None, data: Path
) -> dict[str, Any]:
    """Put the score of the best F1 on held-out recordings, or where there are none on the training ones, in a checkpoint.

    Returns:
        ``training_mAP`` (of some training recordings where others are held out), ``validation_mAP`` or None, and
        ``advice``: what they say, in lines.
    """
    split = "validation" if validation is not None else "training"
    loaded = load_checkpoint(path)
    classes, evaluation = loaded.classes, config.evaluation
    seen = range(len(train_set.recordings)) if validation is None else some_of(train_set, LOOKED_AT)
    annotations = load_split_annotations(data, config.data)
    recordings = [train_set.recordings[i] for i in seen]
    learned = RecordingDataset(
        annotations, recordings, located(data, config.data.features), config.data, config.stored_dim, training=False
    )
    scored = learned if validation is None else validation
    found = detect(loaded.model, scored, config.inference)
    threshold = best_f1_threshold(scored.recordings, found, len(classes))
    content = read_checkpoint(path)
    content["tzn"] |= {"score_threshold": threshold, "score_threshold_split": split}
    write_checkpoint(path, content)
    known = found if validation is None else detect(loaded.model, learned, config.inference)
    training = mean_ap(learned, known, classes, evaluation) if any(len(r.labels) for r in recordings) else None
    held_out = None
    if validation is not None and any(len(r.labels) for r in validation.recordings):
        held_out = mean_ap(validation, found, classes, evaluation)
    lines = [] if training is None else advice(training, held_out)
    return {"training_mAP": training, "validation_mAP": held_out, "advice": lines}


def build_datasets(config: ExperimentConfig, data: Path) -> tuple[RecordingDataset, RecordingDataset | None]:
    """Training recordings and (where ``data.validation`` names some) validation recordings."""
    c = config.data
    annotations = load_split_annotations(data, c)
    classes = class_names(annotations, c)
    if len(classes) != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes = {config.model.num_classes}, but {data / c.annotations} has {len(classes)}"
        )
    unknown = [name for name in config.evaluation.short_classes if name not in classes]
    if unknown:
        raise ConfigError(f"evaluation.short_classes: {unknown[0]!r} is not a class; the data has {', '.join(classes)}")
    folder, width, seed = located(data, c.features), config.stored_dim, config.training.seed
    chosen = select_recordings(annotations, c, "train")
    train_set = RecordingDataset(annotations, chosen, folder, c, width, training=True, seed=seed)
    if not c.validation:
        return train_set, None
    held_out = select_recordings(annotations, c, "validation")
    return train_set, RecordingDataset(annotations, held_out, folder, c, width, training=False)


class TrainingBar(Callback):
    """Optimiser steps, epoch and loss on stderr, where that is a terminal; Lightning's own bars go to standard output."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(total=total, initial=trainer.global_step, desc="train", unit="step", disable=None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or self._bar.disable or trainer.global_step == self._bar.n:
            return
        self._bar.update(trainer.global_step - self._bar.n)
        loss = trainer.callback_metrics.get("train/loss")
        loss_text = "" if loss is None else f", loss={float(loss):.3f}"
        self._bar.set_postfix_str(f"epoch={trainer.current_epoch + 1}/{trainer.max_epochs}{loss_text}", refresh=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()


def _trainer(
    config: ExperimentConfig, out: Path, validate: bool, accelerator: str, devices: int | None, num_nodes: int,
    progress: bool, stop: StopOnSignal,
) -> pl.Trainer:  # fmt: skip
    c = config.training
    loggers: list[Logger] = [
        CSVLogger(out / "logs", name="csv", flush_logs_every_n_steps=20),
        TensorBoardLogger(out / "logs", name="tensorboard"),
    ]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = devices or (processes if processes > 1 or accelerator == "cpu" else None)
    every = min(c.validate_every, c.epochs) if validate and c.validate_every else c.epochs
    try:
        return pl.Trainer(
            max_epochs=c.epochs,
            accelerator=accelerator,
            devices=devices or "auto",
            num_nodes=num_nodes,
            strategy="ddp" if (devices or 1) * num_nodes > 1 else "auto",
            precision=c.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=c.accumulate,
            gradient_clip_val=c.clip_norm or None,
            plugins=[AtomicCheckpointIO()],
            callbacks=[*_callbacks(config, out, validate, progress), stop],
            logger=loggers,
            log_every_n_steps=1,
            check_val_every_n_epoch=every,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(
            f"--device {accelerator}, --devices {devices}, training.precision = {c.precision}: {' '.join(str(error).split())}"
        ) from None


def _callbacks(config: ExperimentConfig, out: Path, validate: bool, progress: bool) -> list[Callback]:
    folder = out / "checkpoints"
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    callbacks: list[Callback] = []
    if config.training.ema_decay:
        # Before the checkpoint callbacks: they save what it averaged.
        callbacks.append(EMAWeightAveraging(decay=config.training.ema_decay, use_buffers=False))
    if validate:
        callbacks.append(BestCheckpoint(config.training.patience, filename="best", **common))
    else:  # the best epoch is the one of the lowest training loss
        callbacks.append(
            ModelCheckpoint(filename="best", monitor="train/loss_epoch", save_on_train_epoch_end=True, **common)
        )
    callbacks.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common))
    if config.training.retries:
        callbacks.append(LossWatch())
    if progress:
        callbacks.append(TrainingBar())
    return callbacks


def _write_summary(path: Path, trainer: pl.Trainer, seconds: float, cpu_seconds: float, scores: dict[str, Any]) -> None:
    summary = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "seconds": round(seconds, 1),  # of this start; a resumed run counts from where it resumed
        "cpu_seconds": round(cpu_seconds, 1),
        "process_cpu_seconds": round(time.process_time(), 1),  # planning, scoring and start-up included
        "device": str(trainer.strategy.root_device),
        "torch": torch.__version__,
        "tzn": __version__,
        **scores,
    }
    with atomic_write(path) as file:
        json.dump(summary, file, indent=1)


def _check_out(out: Path, last: Path, resume: bool) -> None:
    if resume and not last.is_file():
        raise ConfigError(f"--resume: {last} does not exist; start the run without --resume")
    if not resume and last.exists():
        raise ConfigError(f"{out} already holds a run; add --resume to continue it or choose another --out")


def _check_batch(config: ExperimentConfig, world: int) -> None:
    c = config.training
    if c.batch_size % (c.accumulate * world):
        raise ConfigError(
            f"training.batch_size = {c.batch_size} (over all processes) is not divisible by "
            f"training.accumulate = {c.accumulate} x {world} processes"
        )


def _kept(last: Path) -> str:
    return f"The last good checkpoint is kept: {last}" if last.is_file() else "No checkpoint had been written yet"

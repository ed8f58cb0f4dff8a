"""One training run: data, module, trainer, checkpoints, resuming."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from tzn import __version__
from tzn.config import ExperimentConfig
from tzn.config_loading import dump_config
from tzn.data.dataset import (
    RecordingDataset,
    class_names,
    collate,
    fit_standardisation,
    load_split_annotations,
    select_recordings,
)
from tzn.errors import ConfigError, TrainingError
from tzn.files import atomic_write
from tzn.training.distillation import load_teacher
from tzn.training.module import LocalizerModule

# Lightning's tips and tree warnings say nothing about a run.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*(treespec|does not have many workers|LeafSpec).*")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it, so a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_write(path, "wb") as file:
            torch.save(checkpoint, file)


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
) -> Path:
    """Train a localizer and return the checkpoint to use (best on validation where there is one, else the last).

    Args:
        config: the experiment; ``model.input_dim`` and ``model.num_classes`` must fit the data.
        data: folder that ``config.data.annotations`` and ``config.data.features`` are relative to.
        out: folder of the run: ``config.yaml``, ``checkpoints/last.ckpt`` and ``best.ckpt``, ``logs/``, ``run.json``.
        resume: continue the run in ``out`` from its last checkpoint; the same seeds give the same run.
        accelerator, devices, num_nodes: as in Lightning; under ``torchrun`` devices default to its processes.

    Raises:
        ConfigError, DataError, CheckpointError: configuration, data or teacher do not fit; nothing is written.
        TrainingError: NaN loss or out of memory; the last good checkpoint is kept.
    """
    data, out = Path(data), Path(out)
    last = out / "checkpoints" / "last.ckpt"
    _check_out(out, last, resume)
    train_set, validation_set = build_datasets(config, data)
    # Before seeding: building a teacher draws random numbers, and a student with one starts as the student without.
    teacher = load_teacher(config, train_set.classes) if config.training.teacher else None
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    module = LocalizerModule(config, train_set.classes, validation_set.recordings if validation_set else (), teacher)
    mean, std = fit_standardisation(train_set)
    module.model.feature_mean.copy_(mean)
    module.model.feature_std.copy_(std)
    train_set.channel_std = std
    trainer = _trainer(config, out, validation_set is not None, accelerator, devices, num_nodes, progress)
    _check_batch(config, trainer.world_size)
    if trainer.is_global_zero:
        with atomic_write(out / "config.yaml") as file:
            file.write(dump_config(config))
    begin, cpu_begin = time.perf_counter(), time.process_time()
    try:
        loaders = RecordingData(config, train_set, validation_set)
        trainer.fit(module, datamodule=loaders, ckpt_path=str(last) if resume else None, weights_only=True)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error}. {_kept(last)}") from None
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise TrainingError(
                f"out of memory; lower data.max_length or training.batch_size, or raise training.accumulate. {_kept(last)}"
            ) from error
        raise
    if trainer.is_global_zero:
        _write_summary(out / "run.json", trainer, time.perf_counter() - begin, time.process_time() - cpu_begin)
    best = out / "checkpoints" / "best.ckpt"
    return best if validation_set is not None and best.is_file() else last


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
    folder, width, seed = data / c.features, config.model.feature_dim, config.training.seed
    chosen = select_recordings(annotations, c, "train")
    train_set = RecordingDataset(annotations, chosen, folder, c, width, training=True, seed=seed)
    if not c.validation:
        return train_set, None
    held_out = select_recordings(annotations, c, "validation")
    return train_set, RecordingDataset(annotations, held_out, folder, c, width, training=False)


def _trainer(
    config: ExperimentConfig, out: Path, validate: bool, accelerator: str, devices: int | None, num_nodes: int,
    progress: bool,
) -> pl.Trainer:  # fmt: skip
    c = config.training
    loggers: list[Logger] = [
        CSVLogger(out / "logs", name="csv", flush_logs_every_n_steps=20),
        TensorBoardLogger(out / "logs", name="tensorboard"),
    ]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = devices or (processes if processes > 1 or accelerator == "cpu" else None)
    every = c.validate_every if validate and c.validate_every else c.epochs
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
        callbacks=_callbacks(config, out, validate, progress),
        logger=loggers,
        log_every_n_steps=1,
        check_val_every_n_epoch=every,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=out,
    )


def _callbacks(config: ExperimentConfig, out: Path, validate: bool, progress: bool) -> list[Callback]:
    folder = out / "checkpoints"
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    callbacks: list[Callback] = []
    if config.training.ema_decay:
        # Before the checkpoint callbacks: they save what it averaged.
        callbacks.append(EMAWeightAveraging(decay=config.training.ema_decay, use_buffers=False))
    # Without validation recordings the best epoch is the one of the lowest training loss.
    monitor: dict[str, Any] = (
        {"monitor": "val/mAP", "mode": "max"} if validate else {"monitor": "train/loss_epoch", "mode": "min"}
    )
    callbacks.append(ModelCheckpoint(filename="best", save_on_train_epoch_end=not validate, **monitor, **common))
    callbacks.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common))
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    return callbacks


def _write_summary(path: Path, trainer: pl.Trainer, seconds: float, cpu_seconds: float) -> None:
    summary = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "seconds": round(seconds, 1),  # of this start; a resumed run counts from where it resumed
        "cpu_seconds": round(cpu_seconds, 1),
        "device": str(trainer.strategy.root_device),
        "torch": torch.__version__,
        "tzn": __version__,
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

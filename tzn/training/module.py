"""The LightningModule: what happens in one training step, and how weights are optimised."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tzn.config import ExperimentConfig, TrainingConfig
from tzn.config_loading import config_to_dict
from tzn.data.annotations import Recording
from tzn.data.dataset import Batch
from tzn.detections import Detections
from tzn.errors import TrainingError
from tzn.evaluation.report import evaluate
from tzn.inference.localize import localize_batch
from tzn.models import ActionFormer, ActionFormerConfig, TemporalZoomNet, build_model
from tzn.models.checkpoint import checkpoint_header
from tzn.training.distillation import Teacher
from tzn.training.objective import ActionFormerObjective, Objective

LARGEST_WEIGHT = 1e18  # the product of two such numbers overflows float32


class LocalizerModule(pl.LightningModule):
    """Trains a :class:`TemporalZoomNet` or an :class:`ActionFormer`.

    Args:
        config: the experiment.
        classes: class names in label order; stored in the checkpoint.
        validation: ground truth of the validation recordings (may be empty).
        data: what the run's recordings are, see :func:`tzn.training.resolve.fingerprint`; stored in the checkpoint.
        teacher: a trained network to learn from; it stays outside the module, so neither checkpoints, averages nor
            optimisers hold its weights.
    """

    def __init__(
        self, config: ExperimentConfig, classes: tuple[str, ...], validation: Iterable[Recording] = (),
        teacher: Teacher | None = None, data: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.classes, self.teacher, self.data = config, classes, teacher, data
        self.validation_truth = list(validation)
        self.model = build_model(config.model)
        if isinstance(self.model, TemporalZoomNet):
            self.model.training_depth = config.training.depth
        kind = ActionFormerObjective if isinstance(config.model, ActionFormerConfig) else Objective
        self.objective = kind(config.model, config.training)  # type: ignore[arg-type]
        self._detections: dict[str, Detections] = {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Random numbers of a step depend on nothing but (seed, step, process): a resumed run draws the same.
        position = self.current_epoch * 1_000_003 + batch_idx
        torch.manual_seed((self.config.training.seed * 7919 + position) * 65_537 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            outputs = self.model(*self._padded(batch))
        except ValueError as error:  # ops refuse NaN before a loss could show it
            self._check_weights()
            raise TrainingError(
                f"the network diverged ({error}) in epoch {self.current_epoch}; lower training.learning_rate"
            ) from error
        progress = self.global_step / max(self.trainer.estimated_stepping_batches, 1)
        taught = () if self.teacher is None else (self.teacher(batch.features, batch.mask),)
        losses = self.objective(outputs, batch.segments, batch.labels, progress, *taught)
        bad = [name for name, value in losses.items() if not torch.isfinite(value)]
        if bad:
            raise TrainingError(
                f"loss became NaN or infinite ({', '.join(bad)}) at epoch {self.current_epoch}, "
                f"step {self.global_step}, recordings {', '.join(batch.ids)}; "
                "lower training.learning_rate, or use training.precision=32-true"
            )
        size = len(batch.ids)
        for name, value in losses.items():
            # Averaged over processes: the curve is the one of the global batch.
            self.log(
                f"train/{name}",
                value.detach(),
                prog_bar=name in ("loss", "depth_mean"),
                sync_dist=True,
                batch_size=size,
            )
        whole = losses["loss"].detach()
        self.log("train/loss_epoch", whole, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return losses["loss"]

    def on_train_epoch_end(self) -> None:
        self._check_weights()  # before a checkpoint takes the place of a good one

    def on_validation_epoch_start(self) -> None:
        self._check_weights()

    def _check_weights(self) -> None:
        for name, weight in self.model.named_parameters():
            if not bool((weight.detach().abs() < LARGEST_WEIGHT).all()):
                raise TrainingError(
                    f"weights diverged ({name}) in epoch {self.current_epoch}; lower training.learning_rate"
                )

    def _padded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(self.model, ActionFormer):
            return self.model.padded(batch.features, batch.mask)
        return batch.features, batch.mask

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._detections.update(localize_batch(self.model, batch, self.config.inference))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, self._detections)
            self._detections = {key: value for part in gathered for key, value in part.items()}
        if not self.trainer.sanity_checking:
            report = evaluate(self.validation_truth, self._detections, self.classes, self.config.evaluation)
            # Every process computes it from all detections, so every process agrees on the best checkpoint.
            self.log("val/mAP", report.score.average_mAP, prog_bar=True, rank_zero_only=False)
            self.log("val/mAP_error", report.score.standard_error, rank_zero_only=False)
            for tiou, value in zip(report.score.tiou, report.score.mAP, strict=True):
                self.log(f"val/mAP@{tiou:g}", float(value), rank_zero_only=False)
        self._detections = {}

    def configure_optimizers(self) -> Any:
        c = self.config.training
        optimizer = torch.optim.AdamW(decay_groups(self.model, c.weight_decay), lr=c.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total, c))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        header = checkpoint_header(self.model, config_to_dict(self.config), self.classes)
        checkpoint["tzn"] = header | {"data": self.data}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: weights of linear layers and convolutions decay; biases, norms, scales and position biases do not."""
    decayed = {
        f"{name}.weight" if name else "weight"
        for name, part in model.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv1d))
    }
    named = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, total: int, config: TrainingConfig) -> float:
    """Factor on the learning rate: linear over the warm-up epochs, then half a cosine to zero.

    A warm-up that would take all epochs (``training.epochs=1`` on top of a longer recipe) takes a fifth of the steps.
    """
    share = config.warmup_epochs / config.epochs
    warmup = round(total * (share if share < 1 else 0.2))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))

"""What goes wrong in a training: a loss that does not fall, a network that learns too little, or too much by heart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from tzn.config import EvaluationConfig, InferenceConfig
from tzn.data.dataset import RecordingDataset
from tzn.detections import Detections
from tzn.errors import TrainingError
from tzn.evaluation.report import evaluate
from tzn.inference.localize import localize
from tzn.models import Localizer
from tzn.training.objective import NORM_MOMENTUM

WATCHED = 0.2  # share of the steps after which the loss must have fallen
LEAST_STEPS = 20  # fewer say nothing about a loss
FALLEN = 0.98  # of the first steps' loss
SLOWER = 3.0  # by which a new beginning divides the learning rate
UNDERFIT = 0.5  # mAP on training recordings
OVERFIT = 0.3  # mAP on training recordings above that on new ones
LOOKED_AT = 16_384  # grid steps of training recordings that are scored, at least


class LossWatch(Callback):
    """Ends a training whose class and offset losses are after a fifth of the steps what they were in the beginning.

    Looked at are the losses of all points over the positive ones among them, of a third of the watched steps each, and a
    difference counts that is above two standard errors. The losses as trained would not do: they are divided by a running
    count that begins at ``training.loss_norm``, and where positives are rarer they rise while it falls. The depth's loss
    rises by plan, so it is left out. State is kept in checkpoints.

    Raises:
        TrainingError: with both losses.
    """

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.positives: list[float] = []
        self.norm: float | None = None  # running count after the step before
        self.watching = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        last = int(trainer.estimated_stepping_batches * WATCHED)
        metrics = trainer.callback_metrics
        if not self.watching or last < LEAST_STEPS or len(self.sums) >= last or "train/class" not in metrics:
            return
        norm = float(module.objective.point_norm)  # type: ignore[union-attr,arg-type]
        before = float(module.config.training.loss_norm) if self.norm is None else self.norm  # type: ignore[union-attr]
        self.norm = norm
        self.sums.append((float(metrics["train/class"]) + float(metrics["train/offset"])) * norm)
        self.positives.append(max((norm - NORM_MOMENTUM * before) / (1 - NORM_MOMENTUM), 1.0))
        if len(self.sums) == last:
            part = last // 3
            first, early = _ratio(self.sums[:part], self.positives[:part])
            now, late = _ratio(self.sums[-part:], self.positives[-part:])
            if now - 2 * math.hypot(early, late) > FALLEN * first:
                raise TrainingError(
                    f"the loss does not fall ({first:.3g} a positive point in the first {part} steps, {now:.3g} in the {part} "
                    f"before step {last}); lower training.learning_rate"
                )

    def state_dict(self) -> dict[str, Any]:
        return {"sums": list(self.sums), "positives": list(self.positives), "norm": self.norm}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watching = "sums" in state_dict  # a run that began before these were kept is not judged by half of them
        self.sums, self.positives = list(state_dict.get("sums", [])), list(state_dict.get("positives", []))
        self.norm = state_dict.get("norm")


class BestCheckpoint(ModelCheckpoint):
    """Keeps the last epoch whose validation mAP is within a standard error of the best one so far.

    On few validation segments the highest of ten scores is mostly luck, and luck favours early epochs as much as late
    ones, which have learned more. So a score counts as worse only where the segments are enough to tell (the
    one-standard-error rule, Breiman et al. 1984, section 3.4.3, with "later" for "simpler"). State is kept in checkpoints.

    Args:
        patience: so many validations in a row that are worse end the training; 0: none does.
        common: as of ``ModelCheckpoint``.
    """

    def __init__(self, patience: int, **common: Any) -> None:
        super().__init__(monitor="val/mAP", mode="max", save_on_train_epoch_end=False, **common)
        self.patience = patience
        self.top, self.error, self.worse = -math.inf, 0.0, 0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        score = -math.inf if current is None or current.isnan() else float(current)
        if score > self.top:
            self.top, self.error = score, float(trainer.callback_metrics.get("val/mAP_error", 0.0))
        kept = score >= self.top - self.error
        self.worse = 0 if kept else self.worse + 1
        if self.patience and self.worse >= self.patience:
            trainer.should_stop = True
        return kept

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"top": self.top, "error": self.error, "worse": self.worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.top = state_dict.get("top", self.top)
        self.error, self.worse = state_dict.get("error", 0.0), state_dict.get("worse", 0)


def _ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """Sum over sum, and its standard error (Cochran 1977, Sampling Techniques, eq. 6.13)."""
    number, total = len(sums), sum(counts)
    ratio = sum(sums) / total
    spread = sum((s - ratio * c) ** 2 for s, c in zip(sums, counts, strict=True)) / max(number - 1, 1)
    return ratio, math.sqrt(spread * number) / total


def begins_anew(error: TrainingError, trainer: pl.Trainer) -> bool:
    """Whether a smaller learning rate may help: the error came early, and memory is not what was short."""
    early = trainer.global_step <= max(int(trainer.estimated_stepping_batches * WATCHED), LEAST_STEPS)
    return early and "learning_rate" in str(error)


def detect(model: Localizer, dataset: RecordingDataset, config: InferenceConfig) -> dict[str, Detections]:
    """Detections of every recording of a dataset, by id."""
    found = {}
    for i in range(len(dataset.recordings)):
        example = dataset[i]
        found[example.id], _ = localize(model, example.features, example.grid, example.duration, config)
    return found


def some_of(dataset: RecordingDataset, steps: int) -> list[int]:
    """Indices of recordings spread over a dataset that have at least so many steps together, and segments."""
    chosen: list[int] = []
    count = len(dataset.recordings)
    total = 0
    for i in _spread(count):
        if total >= steps and chosen:
            break
        if len(dataset.recordings[i].labels):
            chosen.append(i)
            total += dataset.raw(i)[0].shape[0]
    return sorted(chosen)


def _spread(count: int) -> Iterator[int]:
    """0 … count - 1, first far apart, then between."""
    seen: set[int] = set()
    step = count
    while len(seen) < count:
        for i in range(step // 2, count, max(step, 1)):
            if i not in seen:
                seen.add(i)
                yield i
        if step <= 1:
            yield from (i for i in range(count) if i not in seen)
            return
        step //= 2


def mean_ap(
    dataset: RecordingDataset, found: dict[str, Detections], classes: Sequence[str], config: EvaluationConfig
) -> float:
    """Average mAP of a dataset's recordings that were looked at."""
    recordings = [r for r in dataset.recordings if r.id in found]
    return float(evaluate(recordings, found, classes, config.replace(length_buckets=())).score.average_mAP)


def advice(training: float, validation: float | None) -> list[str]:
    """What scores on training and on held-out recordings say, with a remedy each; nothing where all is well."""
    lines = []
    if training < UNDERFIT:
        lines.append(
            f"underfit: mAP is {100 * training:.0f} on the recordings that were learned from; train longer (--minutes, "
            "training.epochs) or wider (model.width), and see 'tzn data check' for labels that do not fit their features"
        )
    if validation is not None and training - validation > OVERFIT:
        lines.append(
            f"overfit: mAP is {100 * training:.0f} on the recordings that were learned from, {100 * validation:.0f} on "
            "held-out ones; more recordings of other people or places help most, else more data.noise and data.stretch, "
            "model.dropout=0.2 or a narrower model.width"
        )
    return lines

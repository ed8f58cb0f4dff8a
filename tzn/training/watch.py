"""What goes wrong in a training: a loss that does not fall, a network that learns too little, or too much by heart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tzn.config import EvaluationConfig, InferenceConfig
from tzn.data.dataset import RecordingDataset
from tzn.detections import Detections
from tzn.errors import TrainingError
from tzn.evaluation.report import evaluate
from tzn.inference.localize import localize
from tzn.models import Localizer

WATCHED = 0.2  # share of the steps after which the loss must have fallen
LEAST_STEPS = 20  # fewer say nothing about a loss
FALLEN = 0.98  # of the first steps' loss
SLOWER = 3.0  # by which a new beginning divides the learning rate
UNDERFIT = 0.5  # mAP on training recordings
OVERFIT = 0.3  # mAP on training recordings above that on new ones
LOOKED_AT = 16_384  # grid steps of training recordings that are scored, at least


class LossWatch(Callback):
    """Ends a training whose class and offset losses are after a fifth of the steps what they were in the beginning.

    The depth's loss rises by plan, so it is left out. State is kept in checkpoints.

    Raises:
        TrainingError: with both losses.
    """

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        last = int(trainer.estimated_stepping_batches * WATCHED)
        metrics = trainer.callback_metrics
        if last < LEAST_STEPS or len(self.seen) >= last or "train/class" not in metrics:
            return
        self.seen.append(float(metrics["train/class"]) + float(metrics["train/offset"]))
        if len(self.seen) == last:
            part = last // 5
            first, now = sum(self.seen[:part]) / part, sum(self.seen[-part:]) / part
            if not now < FALLEN * first:
                raise TrainingError(
                    f"the loss does not fall ({first:.3g} in the first {part} steps, {now:.3g} in the {part} before step "
                    f"{last}); lower training.learning_rate"
                )

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = list(state_dict["seen"])


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

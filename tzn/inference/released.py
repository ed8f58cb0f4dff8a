"""Released ActionFormer checkpoints as checkpoints of tzn, ready for ``tzn eval`` and ``tzn predict``."""

from __future__ import annotations

from pathlib import Path

from tzn.config import ExperimentConfig
from tzn.config_loading import config_to_dict
from tzn.data.annotations import class_label_ids
from tzn.errors import CheckpointError, ConfigError
from tzn.models import ActionFormerConfig, load_actionformer_checkpoint
from tzn.models.checkpoint import save_checkpoint


def convert_released_checkpoint(source: Path, target: Path, config: ExperimentConfig, annotations: Path) -> None:
    """Write the averaged weights of a released ``.pth.tar`` with configuration and class names to ``target``.

    Args:
        config: describes the released network, e.g. ``configs/actionformer_thumos14_i3d.yaml``.
        annotations: its ``label_id`` name the outputs of the network.

    Raises:
        ConfigError: a configuration of another network. CheckpointError, DataError: unusable files.
    """
    if not isinstance(config.model, ActionFormerConfig):
        raise ConfigError("the configuration has no actionformer section; released checkpoints are ActionFormer's")
    model = load_actionformer_checkpoint(source, config.model)
    single = config.data.single_class
    classes = ("action",) if single else output_classes(annotations, config.model.num_classes)
    save_checkpoint(target, model, config_to_dict(config), classes)


def output_classes(annotations: Path, num_classes: int) -> tuple[str, ...]:
    """Names of a network's outputs: output i is the class of ``label_id`` i, or "unused i" where no class has it.

    Raises:
        DataError: unreadable annotations. CheckpointError: ids that do not fit the number of outputs.
    """
    ids = class_label_ids(annotations)
    if not ids or max(ids.values()) >= num_classes:
        found = f"label ids up to {max(ids.values())}" if ids else "no consistent label ids"
        raise CheckpointError(f"{annotations}: {found}, expected ids below the {num_classes} outputs of the network")
    by_id = {number: name for name, number in ids.items()}
    return tuple(by_id.get(i, f"unused {i}") for i in range(num_classes))

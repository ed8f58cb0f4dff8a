"""Localizers and their configurations."""

from tzn.models.actionformer import ActionFormer
from tzn.models.actionformer_checkpoint import load_actionformer_checkpoint
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig
from tzn.models.exported import ExportedNetwork
from tzn.models.temporal_zoom_net import Outputs, TemporalZoomNet

Localizer = TemporalZoomNet | ActionFormer | ExportedNetwork

__all__ = [
    "ActionFormer",
    "ActionFormerConfig",
    "ExportedNetwork",
    "Localizer",
    "Outputs",
    "TemporalZoomNet",
    "TemporalZoomNetConfig",
    "build_model",
    "load_actionformer_checkpoint",
]


def build_model(config: TemporalZoomNetConfig | ActionFormerConfig) -> Localizer:
    """A freshly initialised localizer."""
    return ActionFormer(config) if isinstance(config, ActionFormerConfig) else TemporalZoomNet(config)

"""Localizers and their configurations."""

from tzn.models.config import TemporalZoomNetConfig
from tzn.models.temporal_zoom_net import Outputs, TemporalZoomNet

__all__ = ["Outputs", "TemporalZoomNet", "TemporalZoomNetConfig"]

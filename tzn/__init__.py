"""tzn: temporal zoom networks, fused kernels and models for finding actions in time.

>>> import tzn
>>> model = tzn.load("hapt")  # what comes along, the folder of a run, or a checkpoint; see tzn.localizer.Localizer
>>> model.classes[:3]
('WALKING', 'WALKING_UPSTAIRS', 'WALKING_DOWNSTAIRS')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tzn import ops
    from tzn.detections import Detections
    from tzn.localizer import Localizer, load

__version__ = "0.1.0"
__all__ = ["Detections", "Localizer", "__version__", "load", "ops"]

# Imported at first use, so that the command line and tools that ask for the version need not load torch.
_HOMES = {"Detections": "tzn.detections", "Localizer": "tzn.localizer", "load": "tzn.localizer"}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("tzn.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'tzn' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

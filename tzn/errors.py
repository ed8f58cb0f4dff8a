"""Errors that end a command with one clear line. The command line catches :class:`TznError` and exits with 2."""

from __future__ import annotations


class TznError(Exception):
    """Base of every error that a user can act on."""


class DataError(TznError, ValueError):
    """Annotations, features or predictions are not what was expected."""


class ConfigError(TznError, ValueError):
    """A configuration file or an override does not fit the typed configuration."""


class CheckpointError(TznError, ValueError):
    """A checkpoint is missing, damaged or of another kind."""


class TrainingError(TznError, RuntimeError):
    """Training cannot go on (NaN loss, out of memory, …); the last good checkpoint is kept."""


class LimitWarning(UserWarning):
    """A limit of the configuration cut detections of a recording."""

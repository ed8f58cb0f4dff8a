"""Errors that end a command with one clear line. The command line catches :class:`TznError`."""

from __future__ import annotations


class TznError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 2  # of the command that it ends


class DataError(TznError, ValueError):
    """Annotations, features or predictions are not what was expected."""


class ConfigError(TznError, ValueError):
    """A configuration file or an override does not fit the typed configuration."""


class CheckpointError(TznError, ValueError):
    """A checkpoint is missing, damaged, hostile or of another kind."""


class TrainingError(TznError, RuntimeError):
    """Training cannot go on (NaN loss, out of memory, …); the last good checkpoint is kept."""


class LimitWarning(UserWarning):
    """A limit of the configuration cut detections of a recording."""


class StoppedError(TznError):
    """A signal ended the command; exit code 128 + its number, as shells have it."""

    def __init__(self, signal_number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM; as an interrupt, so that nothing takes it for an error that it can go on after."""

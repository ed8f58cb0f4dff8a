"""Running a trained localizer."""

from tzn.inference.localize import Trace, localize, localize_batch

__all__ = ["Trace", "localize", "localize_batch"]

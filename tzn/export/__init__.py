"""``tzn export``: a trained localizer as a file for other runtimes, with everything that running it takes (docs/export.md)."""

from tzn.export.write import FORMATS, export_localizer

__all__ = ["FORMATS", "export_localizer"]

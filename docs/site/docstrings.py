"""Docstrings as Markdown: examples become code blocks, Sphinx roles become names. A Griffe extension (mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> |\s*$).*\n?)*)+", re.M)
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]*)`")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = mended(obj.docstring.value)


def mended(text: str) -> str:
    text = EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
    return ROLE.sub(r"`\1`", text)

"""What the code cites stands there: every "docs/x.md section N" names a section of a page.

It looks at all packages, so it mirrors none of them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path
    for folder in ("tzn", "csrc", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".md") and path != Path(__file__)
)
CITATION = re.compile(r"(docs/[\w-]+\.md),? sections? (\d[\d.]*(?:(?:, | and | to |-)\d[\d.]*)*)")
# The design outside the repository, which nobody who reads the code has.
ELSEWHERE = re.compile(
    r"\bDESIGN(?:\.md)? sections?|ACTIONFORMER(?:_SPEC)?(?:\.md)?\b(?= sections?)|ACTIONFORMER(?:_SPEC)?\.md"
)


@cache
def sections(page: str) -> set[str]:
    """Numbers of the headings, and of the paragraphs that begin with one in bold."""
    text = (ROOT / page).read_text()
    return set(re.findall(r"^#+ (\d+)\.", text, re.M)) | set(re.findall(r"\*\*(\d+\.\d+)", text))


def citations(text: str) -> list[tuple[str, str]]:
    """(page, number) of every section that ``text`` cites; of a range "2-4" its ends, which stand for what is between."""
    running = re.sub(r"\s*\n[\s#/*]*", " ", text)
    return [
        (page, number.rstrip("."))
        for page, numbers in CITATION.findall(running)
        for number in re.split(r", | and | to |-", numbers)
    ]


def test_every_cited_section_exists():
    found = {path.relative_to(ROOT): citations(path.read_text()) for path in CODE}
    wrong = [
        f"{path}: {page} section {number}"
        for path, cited in found.items()
        for page, number in cited
        if not (ROOT / page).is_file() or number not in sections(page)
    ]
    assert wrong == []
    assert sum(map(len, found.values())) >= 10


def test_nothing_is_cited_that_a_reader_does_not_have():
    assert [str(path.relative_to(ROOT)) for path in CODE if ELSEWHERE.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("as in docs/design.md section 2.", [("docs/design.md", "2")]),
        ("(docs/actionformer.md section 12.1)", [("docs/actionformer.md", "12.1")]),
        ("docs/design.md sections 2-4 and 6", [("docs/design.md", n) for n in ("2", "4", "6")]),
        ("docs/design.md\n    section 2", [("docs/design.md", "2")]),
        ("// docs/design.md\n// section 9", [("docs/design.md", "9")]),
    ],
)
def test_citations_are_found(text, cited):
    assert citations(text) == cited

"""What MkDocs does not do by itself: pages from files that lie elsewhere in the repository, and links to them.

* README, CHANGELOG, CONTRIBUTING, the results of the benchmarks, the cards of the models, … stand where a reader of the
  repository looks for them; ``PAGES`` gives each a place on the site.
* A page writes ```docs/training.md``` in backticks, which reads well everywhere; on the site it becomes a link.
* Notebooks become pages with their outputs; the commands and configuration keys are printed by the program itself.
* A page of docs/ that is not in the navigation (mkdocs.yml) is added to "How to".
"""

from __future__ import annotations

import argparse
import base64
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
# File of the repository: its place on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    **{
        str(path.relative_to(ROOT)): str(Path("results") / path.relative_to(RESULTS))
        for path in sorted(RESULTS.rglob("*"))
        if path.suffix in (".md", ".png", ".svg")
    },
    **{f"tzn/pretrained/{path.name}": f"models/{path.name}" for path in sorted((ROOT / "tzn/pretrained").glob("*.md"))},
    **{
        str(path.relative_to(ROOT)): f"code/{path.parent.relative_to(ROOT).as_posix().replace('/', '-')}.md"
        for folder in ("csrc", "tzn")
        for path in sorted((ROOT / folder).rglob("README.md"))
    },
}
REFERENCE = re.compile(r"(?<!\[)`((?:[\w.-]+/)*[\w.-]+\.(?:md|png))`(?!\])")
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def place_of(path: str) -> str | None:
    """The page that a file of the repository is on the site, both relative to their roots."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and (ROOT / path).is_file() and not path.endswith((".py", ".ipynb")):
        return path.removeprefix("docs/")
    return None


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(config.nav)))
    how_to = next(entry["How to"] for entry in config.nav if isinstance(entry, dict) and "How to" in entry)
    how_to += sorted(path.name for path in DOCS.glob("*.md") if path.name not in listed)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in PAGES.items():
        path = ROOT / source
        content = path.read_bytes()
        files.append(
            File.generated(config, place, content=content.decode() if path.suffix in (".md", ".svg") else content)
        )
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/config.md", content=keys_page()))
    files.append(File.generated(config, "results.md", content=results_page()))
    files.append(File.generated(config, "models.md", content=models_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    source = next((s for s, p in PAGES.items() if p == place), f"docs/{place}")
    if source.startswith("tzn/pretrained/"):
        markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S)
    outside = re.split(r"(^```.*?^```$)", markdown, flags=re.S | re.M)
    return "".join(
        part if part.startswith("```") else linked(part, source, place, getattr(page.file, "src_uri", ""))
        for part in outside
    )


def linked(text: str, source: str, place: str, own: str) -> str:
    """``text`` with links to files of the repository turned to their pages; a page does not link to itself."""

    def to_page(path: str) -> str | None:
        target = place_of(path)
        return None if target is None or target == own else posixpath.relpath(target, posixpath.dirname(place) or ".")

    def reference(match: re.Match[str]) -> str:
        path = match[1]
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        found = to_page(path) or to_page(beside) or to_page(f"benchmarks/results/{path}")
        return match[0] if found is None else f"[`{path}`]({found})"

    def link(match: re.Match[str]) -> str:
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        found = to_page(beside)
        if found is not None:
            return match[1] + found + match[3]
        # Code and folders are not on the site: their names stay, without a link.
        return match[0] if not (ROOT / beside).exists() or place_of(beside) == own else "]" + "(#)"

    text = LINK.sub(link, text)
    text = re.sub(r"(?<!!)\[([^\]]*)\]\(#\)", r"\1", text)
    return REFERENCE.sub(reference, text)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: texts, code, and the outputs that it was saved with."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts += [shown for output in cell["outputs"] if (shown := output_of(output))]
    name = path.relative_to(ROOT)
    return "\n\n".join(parts) + f"\n\nThis page is the notebook `{name}`; a test executes it.\n"


def output_of(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return f'<img alt="output" src="data:image/png;base64,{picture}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text else ""


def _commands() -> dict[str, argparse.ArgumentParser]:
    sys.path.insert(0, str(ROOT))
    from tzn.cli import build_parser

    (choices,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return choices.choices


def commands_page() -> str:
    """``tzn COMMAND --help`` of every command."""
    parts = ["# Commands", "What `tzn COMMAND --help` says. Pipes, exit codes and how much is said: `docs/predict.md`."]
    for name, parser in _commands().items():
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
        parts += [f"## tzn {name}", f"```text\n{parser.format_help().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def keys_page() -> str:
    """Every key of a configuration, as ``tzn config`` lists it."""
    sys.path.insert(0, str(ROOT))
    from tzn.config_loading import config_keys

    parts = ["# Configuration keys", "", "What `tzn config` lists; how to choose them: `docs/training.md`."]
    section = None
    for key in config_keys():
        head, _, name = key.name.partition(".")
        if head != section:
            section = head
            parts.append(f"\n## {head}\n\n| key | default | expected | meaning |\n|---|---|---|---|")
        given = "must be set" if key.required else f"`{json.dumps(key.default, ensure_ascii=False)}`"
        cells = (f"`{name}`", given, key.allowed, key.meaning)
        parts.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def results_page() -> str:
    """A list of the result files, each with its first line of text."""
    rows = [
        "# Results in full",
        "",
        "Files of `benchmarks/results`; which program writes which: `benchmarks/README.md`.",
        "",
    ]
    for source, place in PAGES.items():
        if place.startswith("results/") and place.endswith(".md"):
            first = next(
                (line for line in (ROOT / source).read_text().splitlines() if line.strip() and line[0] not in "#|!"), ""
            )
            rows.append(f"* [{place.removeprefix('results/').removesuffix('.md')}]({place}): {first}")
    return "\n".join(rows) + "\n"


def models_page() -> str:
    rows = [
        "# The models that come along",
        "",
        "`tzn pretrained list` shows them, `tzn pretrained show NAME` a card.",
        "",
    ]
    for source, place in PAGES.items():
        if place.startswith("models/"):
            title = re.search(r"^# (.*)$", (ROOT / source).read_text(), re.M)
            rows.append(f"* [{title[1] if title else place}]({place})")
    return "\n".join(rows) + "\n"

"""What ``mkdocs build`` adds to docs/: pages of files outside it, and the reference of the command line.

Hooks of mkdocs, named in mkdocs.yml. Pages of the repository's root keep their place and their links; on the site they
stand under ``project/``.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Address on the site <- file of the repository.
OUTSIDE = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/deploy.md": "deploy/README.md",
    "project/notice.md": "NOTICE",
}
_PLACES = {source: address for address, source in OUTSIDE.items()}
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_VERBS = "<!-- verbs -->"
_WIDE = ("measured.md",)  # tables take the room of the navigation beside them


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of ``OUTSIDE``."""
    from mkdocs.structure.files import File

    for address, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# {source.capitalize()}\n\n```text\n{text}\n```\n"
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: object) -> str:
    """Point links at where things stand on the site, and fill in the verbs of the command line."""
    address = page.file.src_uri
    source = OUTSIDE.get(address, f"docs/{address}")  # where the text stands in the repository
    markdown = _LINK.sub(lambda link: _relinked(link, source, address, files), markdown)
    if address in _WIDE:
        page.meta["hide"] = ["navigation"]
    return markdown.replace(_VERBS, verbs()) if _VERBS in markdown else markdown


def on_page_content(html: str, **_: object) -> str:
    """Take off the colons with which docstrings announce an example; Markdown needs only its indentation."""
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")


def _relinked(link: re.Match[str], source: str, address: str, files: Files) -> str:
    """The link from ``source`` in the repository as a link from ``address`` on the site; unchanged if it is one."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
    place = _PLACES.get(target) or target.removeprefix("docs/")
    if files.get_file_from_path(place) is None:
        return link[0]
    return f"]({os.path.relpath(place, posixpath.dirname(address) or '.')}{link[2] or ''})"


def verbs() -> str:
    """Every verb of ``edgeclip`` as Markdown, from the same declarations as its ``--help``."""
    import typer

    from edgeclip.cli import app

    command = typer.main.get_command(app)
    return "\n\n".join(_verb(name, verb) for name, verb in _leaves("edgeclip", command))


def _leaves(name: str, command: Any) -> list[tuple[str, Any]]:
    """``command``, or what is below it, each with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(name, command)]
    return [leaf for word in sorted(inner) for leaf in _leaves(f"{name} {word}", inner[word])]


def _verb(name: str, verb: Any) -> str:
    context = verb.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *verb.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in verb.get_params(context)]
    rows = [f"| `{name}` | {_escaped(said)} |" for name, said in filter(None, records) if name != "--help"]
    table = "\n".join(["| argument or option | what |", "|---|---|", *rows])
    return "\n\n".join([f"## {name}", _escaped(verb.help or ""), f"```text\n{usage}\n```", table])


def _escaped(text: str) -> str:
    """Text for a Markdown table; Typer's own escapes of brackets are taken off first."""
    return re.sub(r"([|<>*_\[\]{}`])", r"\\\1", text.replace("\\[", "[").replace("\b", ""))

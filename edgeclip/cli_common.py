"""What the commands share: consoles, arguments, progress bars."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
notices = Console(stderr=True)

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or .tar, or the word starter.")]
ClassesHelp = (
    'Class names: "mug, bottle, phone", or a file (one a line, or JSON). Synonyms: "mobile phone | smartphone".'
)
TemplatesHelp = "Prompt templates: simple, imagenet (CLIP's 80) or a file with one a line, {} standing for the name."


def progress_bars() -> Progress:
    """Bars on stderr that vanish when done; none where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notices,
        transient=True,
        disable=not notices.is_terminal,
    )


def split_names(names: str) -> list[str]:
    """``"a, b"`` as ``["a", "b"]``."""
    return [name.strip() for name in names.split(",") if name.strip()]

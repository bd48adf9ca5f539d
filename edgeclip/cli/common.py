"""What the commands share: consoles, arguments, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console()
notices = Console(stderr=True)

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or .tar, or the word starter.")]
ClassesHelp = (
    'Class names: "mug, bottle, phone", or a file (one a line, JSON, CSV, YAML). Synonyms: "mobile phone | smartphone".'
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


@contextmanager
def named_bars() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with (what is done, steps done, steps in all; 0 where nobody knows): a bar for each name."""
    with progress_bars() as bars:
        tasks: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield watch


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The same for one thing: what to call with (steps done, steps in all)."""
    with named_bars() as watch:
        yield partial(watch, name)


@contextmanager
def changing_bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """One bar that says what is done at the moment: what to call with (what, steps done, steps in all)."""
    with progress_bars() as bars:
        task = bars.add_task(name, total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)

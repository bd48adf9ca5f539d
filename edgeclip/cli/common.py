"""What the commands share: consoles that show text from outside as it is, arguments, progress bars."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from edgeclip.errors import InputError
from edgeclip.outputs import check_folder_writable, find_output
from edgeclip.printable import printable
from edgeclip.runtime.sources.address import as_usual, without_password

_LARGEST, _LARGEST_SEED = 10**12, (1 << 32) - 1


class SafeConsole(Console):
    """A console on which names, paths and messages from outside stay text, wherever in a renderable they stand.

    Nothing in a string is markup (``[/b]``) or an emoji (``:cat:``), and what would move the cursor is written out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every text on its way to the terminal passes here; the terminal's own control codes are marked as such."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As rich's, whose spinner would take a string for markup."""
        return _PlainStatus(_plain(status), console=self, **options)


class _PlainStatus(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else _plain(status), **options)


def _plain(text: RenderableType) -> RenderableType:
    return Text(text) if isinstance(text, str) else text


def echo_json(text: str) -> None:
    """Print JSON on stdout, not wrapped as the console would, with what JSON itself lets through written as escapes."""
    typer.echo(re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", text))


console = SafeConsole()
notices = SafeConsole(stderr=True)


class NoticesLog(logging.Handler):
    """What is logged, by us or a library, as lines on stderr; without it Python writes them there as they are."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        try:
            notices.print(self.format(record), highlight=False, soft_wrap=True)
        except Exception:  # noqa: BLE001 - as every handler of Python's
            self.handleError(record)


BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or .tar, or the word starter.")]
ClassesHelp = (
    'Class names: "mug, bottle, phone", or a file (one a line, JSON, CSV, YAML). Synonyms: "mobile phone | smartphone".'
)
TemplatesHelp = "Prompt templates: simple, imagenet (CLIP's 80) or a file with one a line, {} standing for the name."


def with_checked_numbers(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that refuses numbers which no option of any means: not finite, or beyond all counts and times."""

    @wraps(verb)
    def checked(**options: Any) -> Any:
        for name, value in options.items():
            for number in value if isinstance(value, list | tuple) else (value,):
                least, most = (0, _LARGEST_SEED) if name == "seed" else (-_LARGEST, _LARGEST)
                if isinstance(number, int | float) and not least <= number <= most:
                    flag = f"--{name.replace('_', '-')}"
                    raise InputError(
                        f"expected a number from {least:,} to {most:,} with {flag}, got {str(number)[:20]}"
                    )
        return verb(**options)

    return checked


def output_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: refuses one that cannot be written before any work is done.

    Where it is standard output, what is said to people goes to stderr.
    """
    if path is not None and find_output(path).is_stdout:
        console.stderr = True
    return path


def output_folder(path: Path | None) -> Path | None:
    """The same of an option that names a folder to make, or to write files into."""
    if path is not None:
        check_folder_writable(path)
    return path


def without_passwords(text: str) -> str:
    """A message without the secrets of this command line, also where an address stands in another's place."""
    for word in sys.argv[1:]:
        for given in (word, word.partition("=")[2]):
            if given and (shown := without_password(given)) != given:
                for form in {given, as_usual(given), str(Path(given)), repr(given)[1:-1]}:
                    text = text.replace(form, shown)
    return text


def progress_bars() -> Progress:
    """Bars on stderr that vanish when done; none where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
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

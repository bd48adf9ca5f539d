"""Words on the command line in, one call of the Python API and what it says out.

A new verb: a function in the file of its subject that takes options, calls the API once and prints; a line in the list
below.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from edgeclip.cli import adapt, bench, bundle, calibrate, devices, doctor, evaluate, label, make, plan, prompts
from edgeclip.cli.common import NoticesLog, console, notices
from edgeclip.errors import EdgeclipError
from edgeclip.printable import printable
from edgeclip.runtime.sources.address import without_password
from edgeclip.version import __version__


class _Verbs(TyperGroup):
    """The verbs; what typer says of a command line that is wrong repeats its words, which may hold anything."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _said_safely():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _said_safely():
            return super().invoke(ctx)


@contextmanager
def _said_safely() -> Iterator[None]:
    try:
        yield
    except _ClickError as error:
        said = printable(_without_passwords(error.format_message()))
        error.format_message = lambda: said
        raise


# Typer brings a click of its own or takes another's, by its version; this is the base of its errors in both.
_ClickError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    cls=_Verbs,
    name="edgeclip",
    help="CLIP-style models on the edge: train, export with proof, label camera streams zero-shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    make.export,
    make.quantize,
    make.build,
    plan.plan,
    make.train,
    bench.bench,
    adapt.fewshot,
    adapt.wise_ft,
    adapt.qat,
    label.label,
    doctor.doctor,
    evaluate.robustness,
    bench.tradeoff,
    bundle.inspect,
    bundle.verify,
    bundle.demo,
):
    app.command()(verb)
app.command("eval")(evaluate.evaluate)
app.add_typer(prompts.app, name="prompts")
app.add_typer(devices.app, name="devices")
app.add_typer(calibrate.app, name="calibrate")


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and the error's exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger().addHandler(NoticesLog())
    logging.captureWarnings(capture=True)  # Python's, which would be written as they are
    try:
        app()
    except EdgeclipError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        _print_error(error)
        sys.exit(EdgeclipError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - Python would print the same, but an error's text as it is
        notices.print(_without_passwords(traceback.format_exc()), highlight=False, soft_wrap=True)
        sys.exit(1)


def _print_error(error: Exception) -> None:
    notices.print(Text.assemble(("error:", "bold red"), f" {_without_passwords(str(error))}"), soft_wrap=True)


def _without_passwords(text: str) -> str:
    """A message without the secrets of this command line, also where an address stands in another's place."""
    for word in sys.argv[1:]:
        for given in (word, word.partition("=")[2]):
            if given and (shown := without_password(given)) != given:
                for form in {given, str(Path(given)), repr(given)[1:-1]}:
                    text = text.replace(form, shown)
    return text


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt

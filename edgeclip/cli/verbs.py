"""Every verb of the command line, by its words.

A new verb: a function in the file of its subject that takes options, calls the API once and prints; a line in the list
below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeclip.cli import adapt, bench, bundle, calibrate, devices, doctor, evaluate, label, make, plan, prompts, prove
from edgeclip.cli.apart import with_outputs_apart
from edgeclip.cli.common import console, with_checked_numbers, without_passwords
from edgeclip.printable import printable
from edgeclip.version import __version__

# Typer brings a click of its own or takes another's, by its version; this is the base of its errors in both.
_ClickError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


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
        said = printable(without_passwords(error.format_message()))
        error.format_message = lambda: said
        raise


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
    prove.prove,
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
for group in (app, prompts.app, devices.app, calibrate.app):
    for command in group.registered_commands:
        command.callback = command.callback and with_checked_numbers(with_outputs_apart(command.callback))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    console.stderr = False  # until an output takes standard output for itself
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit

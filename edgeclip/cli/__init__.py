"""Words on the command line in, one call of the Python API and what it says out.

A new verb: a function in the file of its subject that takes options, calls the API once and prints; a line in the list
below.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from edgeclip.cli import adapt, bench, bundle, calibrate, devices, doctor, evaluate, label, make, plan, prompts
from edgeclip.cli.common import console, notices
from edgeclip.errors import EdgeclipError
from edgeclip.version import __version__

app = typer.Typer(
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
    try:
        app()
    except EdgeclipError as error:
        notices.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        notices.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(EdgeclipError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    console.stderr = False  # until an output takes standard output for itself
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)

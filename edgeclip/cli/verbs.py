"""Every verb of the command line, by its words.

A new verb: a function in the file of its subject that takes options, calls the API once and prints; a line in the list
below.
"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeclip.cli import adapt, bench, bundle, calibrate, devices, doctor, evaluate, label, make, plan, prompts
from edgeclip.cli.common import console, with_checked_numbers
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
for group in (app, prompts.app, devices.app, calibrate.app):
    for command in group.registered_commands:
        command.callback = command.callback and with_checked_numbers(command.callback)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    console.stderr = False  # until an output takes standard output for itself
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit

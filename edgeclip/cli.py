"""The command line: one thin command per verb."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edgeclip import (
    __version__,
    cli_adapt,
    cli_bench,
    cli_calibrate,
    cli_devices,
    cli_doctor,
    cli_eval,
    cli_evidence,
    cli_label,
    cli_make,
    cli_plan,
    cli_prompts,
    cli_tradeoff,
)
from edgeclip.bundle import Bundle
from edgeclip.cli_common import (
    BundleArgument,
    ClassesHelp,
    TemplatesHelp,
    build_table,
    console,
    notices,
)
from edgeclip.errors import EdgeclipError, InputError
from edgeclip.extras import require
from edgeclip.prompts import check_table_name, load_templates, parse_classes

app = typer.Typer(
    name="edgeclip",
    help="CLIP-style models on the edge: train, export with proof, label camera streams zero-shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts_app = typer.Typer(help="Prompt tables: class names × templates, encoded once.", no_args_is_help=True)
for verb in (
    cli_make.export,
    cli_make.quantize,
    cli_make.build,
    cli_plan.plan,
    cli_make.train,
    cli_bench.bench,
    cli_adapt.fewshot,
    cli_adapt.wise_ft,
    cli_adapt.qat,
    cli_label.label,
    cli_doctor.doctor,
    cli_evidence.robustness,
    cli_tradeoff.tradeoff,
):
    app.command()(verb)
app.command("eval")(cli_eval.evaluate)
prompts_app.command("study")(cli_prompts.prompts_study)
app.add_typer(prompts_app, name="prompts")
app.add_typer(cli_devices.app, name="devices")
app.add_typer(cli_calibrate.app, name="calibrate")


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
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


@prompts_app.command("build")
def prompts_build(
    bundle: BundleArgument,
    classes: Annotated[str, typer.Option(help=ClassesHelp)],
    name: Annotated[str, typer.Option(help="Name of the table.")],
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    background: Annotated[
        str | None, typer.Option(help='What means nothing of interest, so unknown: "empty room, wall | plaster".')
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .safetensors file instead.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table of that name.")] = False,
) -> None:
    """Encode class names × templates with the bundle's text encoder and add the table to the bundle."""
    check_table_name(name)
    opened = Bundle.open(bundle)
    if output is None and opened.is_starter:
        raise InputError("the shipped starter bundle is read-only: pass --output FILE.safetensors")
    if output and output.exists() and not overwrite:
        raise InputError(f"{output} exists already: choose another --output or pass --overwrite")
    nothing = () if background is None else parse_classes(background)
    table = build_table(opened, parse_classes(classes), load_templates(templates), name=name, background=nothing)
    if output:
        table.save(output)
    else:
        opened.add_table(table, overwrite=overwrite)
    of_which = f" ({len(table.background)} background)" if table.background else ""
    console.print(
        f"{name}: {len(table.classes)} classes{of_which} × {len(table.templates)} templates → {output or opened.path}",
        highlight=False,
    )


@app.command()
def inspect(bundle: BundleArgument) -> None:
    """Print what a bundle holds."""
    from edgeclip.card import print_card

    print_card(Bundle.open(bundle), console)


@app.command()
def verify(bundle: BundleArgument) -> None:
    """Check every file of a bundle against its sha256, and every table against the encoder."""
    opened = Bundle.open(bundle)
    for relative in opened.verify():
        console.print(f"[green]ok[/]  {relative}", highlight=False)
    for entry in opened.manifest.tables:
        opened.table(entry.name)
    console.print(f"{len(opened.manifest.files)} files match; model {opened.manifest.model.id}", highlight=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("demo-out"),
    variant: Annotated[str, typer.Option(help="Form of the encoder.")] = "fp32",
) -> None:
    """Label a camera-like stream made from real photographs with the starter bundle, and say how well it went."""
    require("skimage", purpose="get the demo's photographs")
    from edgeclip.demo import run_demo

    run_demo(output, variant=variant, console=console)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)

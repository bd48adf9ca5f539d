"""The command line: one thin command per verb."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli import adapt, bench, calibrate, devices, doctor, evaluate, label, make, plan, prompts
from edgeclip.cli.common import (
    BundleArgument,
    ClassesHelp,
    TemplatesHelp,
    build_table,
    console,
    notices,
)
from edgeclip.errors import EdgeclipError, InputError
from edgeclip.extras import require
from edgeclip.prompts import PromptTable, check_table_name, load_templates, parse_classes
from edgeclip.version import __version__

app = typer.Typer(
    name="edgeclip",
    help="CLIP-style models on the edge: train, export with proof, label camera streams zero-shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts_app = typer.Typer(help="Prompt tables: class names × templates, encoded once.", no_args_is_help=True)
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
):
    app.command()(verb)
app.command("eval")(evaluate.evaluate)
prompts_app.command("study")(prompts.prompts_study)
app.add_typer(prompts_app, name="prompts")
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
    earlier = _earlier_table(opened, name, output)
    if earlier and earlier.decisions:
        table = dataclasses.replace(table, decisions=earlier.decisions)
    if output:
        table.save(output)
    else:
        opened.add_table(table, overwrite=overwrite)
    of_which = f" ({len(table.background)} background)" if table.background else ""
    console.print(
        f"{name}: {len(table.classes)} classes{of_which} × {len(table.templates)} templates → {output or opened.path}",
        highlight=False,
    )
    for said in {opened.decisions(table, each.facts.variant).said for each in table.decisions}:
        console.print(said, highlight=False, markup=False, soft_wrap=True)


def _earlier_table(bundle: Bundle, name: str, output: Path | None) -> PromptTable | None:
    """The table that is about to be replaced: its decisions stay, to be fitted again."""
    if output:
        return PromptTable.load(output) if output.exists() else None
    return bundle.table(name) if any(entry.name == name for entry in bundle.manifest.tables) else None


@app.command()
def inspect(bundle: BundleArgument) -> None:
    """Print what a bundle holds."""
    from edgeclip.cli.card import print_card

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
    from edgeclip.cli.demo import run_demo

    run_demo(output, variant=variant, console=console)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)

"""The verbs ``prompts build`` and ``prompts study``: tables of class names, and what names and templates are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli.common import BundleArgument, ClassesHelp, TemplatesHelp, bar, console, named_bars, output_file
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.files import write_json, write_text
from edgeclip.printable import counted
from edgeclip.prompts import check_table_name, load_templates, parse_classes

app = typer.Typer(help="Prompt tables: class names × templates, encoded once.", no_args_is_help=True)


@app.command()
def build(
    bundle: BundleArgument,
    classes: Annotated[str, typer.Option(help=ClassesHelp)],
    name: Annotated[str, typer.Option(help="Name of the table.")],
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    background: Annotated[
        str | None, typer.Option(help='What means nothing of interest, so unknown: "empty room, wall | plaster".')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .safetensors file instead.", callback=output_file)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table of that name.")] = False,
) -> None:
    """Encode class names × templates with the bundle's text encoder and add the table to the bundle."""
    opened = Bundle.open(bundle)
    with bar("prompts") as watch:
        table = opened.build_table(
            name,
            classes,
            templates,
            background=() if background is None else background,
            output=output,
            overwrite=overwrite,
            progress=watch,
        )
    of_which = f" ({len(table.background)} background)" if table.background else ""
    console.print(
        f"{name}: {counted(len(table.classes), 'class', 'classes')}{of_which} × "
        f"{counted(len(table.templates), 'template')} → {output or opened.path}",
        highlight=False,
    )
    for said in {opened.decisions(table, each.facts.variant).said for each in table.decisions}:
        console.print(said, highlight=False, markup=False, soft_wrap=True)


@app.command()
def study(
    bundle: BundleArgument,
    data: Annotated[
        str, typer.Option(help="Images of known class: one folder a class, WebDataset tars, CSV or JSONL.")
    ],
    names: Annotated[Path | None, typer.Option(help="JSON: folder name → class name or list of names.")] = None,
    classes: Annotated[str | None, typer.Option(help=f"{ClassesHelp} Folders of --data are found among them.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "imagenet",
    variant: Annotated[str, typer.Option(help="Form of the encoder; better the one that will run.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the halves: to choose on, to test on.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write one HTML page that needs nothing else.", callback=output_file),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON.", callback=output_file)
    ] = None,
    apply: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add the recommended table to the bundle, or to FILE.safetensors."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace page, table or JSON of that name.")] = False,
) -> None:
    """Say what each template and each name contributes, which class names are ambiguous, and what to change.

    Changes are chosen on one half of the labelled images and tested on the other; what is not beyond noise there is
    not recommended.
    """
    require("torch", purpose="encode class names")
    from edgeclip.evaluation.prompts.report import print_report, prompt_page
    from edgeclip.evaluation.prompts.study import StudyOptions, recommended_table, study_bundle

    # What is asked for, before anything is computed.
    opened = Bundle.open(bundle)
    table_file = Path(apply) if apply and apply.endswith(".safetensors") else None
    table_name = table_file.stem if table_file else apply
    if table_name is not None:
        check_table_name(table_name)
    if apply and not table_file:
        if opened.is_starter:
            raise InputError("the shipped starter bundle is read-only: pass --apply FILE.safetensors")
        if not overwrite and any(entry.name == apply for entry in opened.manifest.tables):
            raise InputError(f"the bundle has a table {apply!r} already: choose another name or pass --overwrite")
    for file in (output, json_file, table_file):
        if file and file.exists() and not overwrite:
            raise InputError(f"{file} exists already: choose another name or pass --overwrite")
    options = StudyOptions(
        data=data,
        names=names,
        classes=parse_classes(classes) if classes is not None else (),
        templates=load_templates(templates),
        variant=variant,
        seed=seed,
    )

    # The study.
    with named_bars() as watch:
        studied = study_bundle(opened, options, progress=watch)
    report = studied.report
    table = recommended_table(studied, name=table_name) if table_name is not None else None
    print_report(report, console)

    # What is written.
    written: list[str] = []
    if output:
        write_text(output, prompt_page(studied))
        written.append(str(output))
    if json_file:
        write_json(json_file, report)
        written.append(str(json_file))
    if table and table_file:
        table.save(table_file)
        written.append(str(table_file))
    elif table:
        opened.add_table(table, overwrite=overwrite)
        written.append(f"table {table.name} in {opened.path}")
    if table and not (report.study.choice and report.study.choice.recommended):
        console.print("the table has names and templates as they were given: no change is recommended", highlight=False)
    if written:
        console.print("written: " + ", ".join(written), markup=False, highlight=False, soft_wrap=True)

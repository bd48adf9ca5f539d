"""``edgeclip fewshot``: a bundle and a few labelled images in, a table or the few-shot curve out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli_common import BundleArgument, TemplatesHelp, console, progress_bars, split_names
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.prompts import check_table_name, load_templates, parse_classes


def fewshot(
    bundle: BundleArgument,
    data: Annotated[Path, typer.Option(help="A folder with one folder of labelled images a class.")],
    name: Annotated[str | None, typer.Option(help="Name of the table to make.")] = None,
    shots: Annotated[int, typer.Option(help="Images a class to learn from; 0 for all there are.")] = 16,
    method: Annotated[str, typer.Option(help="probe, zs-probe, tip-adapter or tip-adapter-f.")] = "zs-probe",
    names: Annotated[Path | None, typer.Option(help="JSON: folder name → class name or list of names.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    background: Annotated[str | None, typer.Option(help="What means nothing of interest, so unknown.")] = None,
    variant: Annotated[str, typer.Option(help="Form of the encoder; better the one that will run.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .safetensors file instead.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table of that name.")] = False,
    curve: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw accuracy over shots there instead: PNG and JSON.")
    ] = None,
    methods: Annotated[str, typer.Option(help="With --curve: which.")] = "probe, zs-probe, tip-adapter, tip-adapter-f",
    seeds: Annotated[int, typer.Option(help="With --curve: random choices of images.")] = 5,
) -> None:
    """Adapt a prompt table to a few labelled images a class, or draw what more of them would bring.

    The result is a table like any other: rows, or rows and keys. How far it goes from zero-shot is chosen by
    cross-validation on the images given; nothing else is looked at.
    """
    require("torch", purpose="adapt a table")
    from edgeclip.evaluation.adapt import FewShotOptions, adapt_bundle, curve_lines, curve_of_bundle, save_curve
    from edgeclip.training.fewshot_curve import CurveOptions

    opened = Bundle.open(bundle)
    options = FewShotOptions(
        method=method,
        shots=shots,
        templates=load_templates(templates),
        names=names,
        background=() if background is None else parse_classes(background),
        variant=variant,
        seed=seed,
    )
    if (curve is None) == (name is None):
        raise InputError("expected --name for a table or --curve FOLDER for a curve: one of them")
    if curve is None and output is None and opened.is_starter:
        raise InputError("the shipped starter bundle is read-only: pass --output FILE.safetensors")
    if output and output.exists() and not overwrite:
        raise InputError(f"{output} exists already: choose another --output or pass --overwrite")
    if name is not None:
        check_table_name(name)
    with progress_bars() as bars:
        tasks: dict[str, int] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        if curve is not None:
            report = curve_of_bundle(
                opened, data, options, CurveOptions(tuple(split_names(methods)), seeds=seeds), progress=watch
            )
            lines = curve_lines(report)
            lines.append("written: " + ", ".join(str(path) for path in save_curve(report, curve)))
        else:
            assert name is not None
            adapted = adapt_bundle(opened, data, options, name=name, progress=watch)
            if output:
                adapted.table.save(output)
            else:
                opened.add_table(adapted.table, overwrite=overwrite)
            lines = [f"{name}: {len(adapted.table.classes)} classes, {adapted.table.adapted or 'as the text has it'}"]
            if adapted.top1 is not None and adapted.zero_shot_top1 is not None:
                lines.append(
                    f"cross-validated on these images: top-1 {adapted.top1:.3f}, zero-shot {adapted.zero_shot_top1:.3f}"
                )
            lines.append(f"written: {output or opened.path}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

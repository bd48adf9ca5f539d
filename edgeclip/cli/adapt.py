"""``edgeclip fewshot``, ``wise-ft`` and ``qat``: images in; a table, checkpoint or INT8 variants out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.class_names import split_names
from edgeclip.cli.common import (
    BundleArgument,
    TemplatesHelp,
    bar,
    console,
    named_bars,
    notices,
    output_file,
    output_folder,
)
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.files import atomic_folder, write_json
from edgeclip.printable import counted
from edgeclip.prompts import check_table_name, load_templates, parse_classes

_ALPHAS = "0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1"


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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .safetensors file instead.", callback=output_file)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table of that name.")] = False,
    curve: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Draw accuracy over shots there instead: PNG and JSON.", callback=output_folder
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="With --curve: which.")] = "probe, zs-probe, tip-adapter, tip-adapter-f",
    seeds: Annotated[int, typer.Option(help="With --curve: random choices of images.")] = 5,
) -> None:
    """Adapt a prompt table to a few labelled images a class, or draw what more of them would bring.

    The result is a table like any other: rows, or rows and keys. How far it goes from zero-shot is chosen by
    cross-validation on the images given; nothing else is looked at.
    """
    require("torch", purpose="adapt a table")
    from edgeclip.evaluation.fewshot import (
        FewShotOptions,
        adapt_bundle,
        adapted_lines,
        curve_lines,
        curve_of_bundle,
        save_curve,
    )
    from edgeclip.training.adapt.curve import CurveOptions

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
    with named_bars() as watch:
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
            lines = adapted_lines(adapted)
            lines.append(f"written: {output or opened.path}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def wise_ft(
    zero_shot: Annotated[str, typer.Argument(help="Checkpoint that fine-tuning started from, or the word starter.")],
    fine_tuned: Annotated[str, typer.Argument(help="Checkpoint (or run) that it ended with.")],
    data: Annotated[
        Path | None, typer.Option(help="Labelled images like those of the fine-tuning: the target.")
    ] = None,
    shift: Annotated[
        list[Path] | None, typer.Option(help="Labelled images unlike them; once for each such set.")
    ] = None,
    alphas: Annotated[str, typer.Option(help="Models to measure; 0 is zero-shot, 1 fine-tuned.")] = _ALPHAS,
    save: Annotated[
        str | None, typer.Option(metavar="ALPHA", help="Write that checkpoint; `best`: highest top-1 on --data.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="JSON: folder name → class name or list of names.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for the curve and the checkpoint.", callback=output_folder
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON.", callback=output_file)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Measure the models between a checkpoint and its fine-tuned form, and keep one of them (WiSE-FT, Wortsman 2022).

    Into FOLDER go curve.json, with --shift a picture (curve.png), with --save the checkpoint. Without --data nothing is
    measured. `--save best` looks at --data alone, never at the shift sets: the highest top-1 there, of equals the
    smallest alpha.

    Cost: the image tower runs over all images once for each alpha; once in all where both checkpoints have the same one
    (locked while tuning). The text tower likewise, over the prompts.
    """
    require("torch", purpose="interpolate checkpoints")
    from edgeclip.evaluation.wise import WiseOptions, measure_wise, read_sets, save_wise, wise_lines
    from edgeclip.training.adapt.wise import CheckpointsBetween

    # What is asked for, before anything is computed.
    options = WiseOptions(
        tuple(_alpha(part, "--alphas") for part in split_names(alphas)), load_templates(templates), names
    )
    if data is None and (shift or json_file or save in (None, "best")):
        raise InputError("expected --data with labelled images to measure on, got none; --save ALPHA alone needs none")
    alpha = None if save in (None, "best") else _alpha(str(save), "--save")
    if save and output is None:
        raise InputError("expected --output FOLDER with --save, got none: the checkpoint is written there")
    if output is not None:
        _check_apart(output, zero_shot, fine_tuned, overwrite=overwrite)
    sets = read_sets(data, shift or [], names) if data else []

    # The curve.
    way, report, lines = CheckpointsBetween(zero_shot, fine_tuned), None, []
    if sets:
        with bar("images") as watch:
            report = measure_wise(way, sets, options, progress=watch)
        lines = wise_lines(report)
        alpha = report.best if save == "best" else alpha

    # What is written.
    if output is not None:
        with atomic_folder(output, overwrite=overwrite, holds=("curve.json", "checkpoint")) as folder:
            written = save_wise(report, folder) if report else []
            if alpha is not None:
                way.save(folder / "checkpoint", alpha, results=report.figures_at(alpha) if report else {})
                written.append(folder / "checkpoint")
        lines.append("written: " + ", ".join(str(output / path.name) for path in written))
    if json_file and report:
        write_json(json_file, report)
    if alpha is not None:
        lines.append(f"checkpoint of alpha {alpha:g}; next: edgeclip export {output}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _alpha(text: str, option: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise InputError(f"expected numbers from 0 (zero-shot) to 1 (fine-tuned) for {option}, got {text!r}")
    return alpha


def _check_apart(output: Path, *checkpoints: str, overwrite: bool) -> None:
    """Refuse to replace a folder that was not asked to be, or one that a checkpoint is read from."""
    from edgeclip.training.checkpoint.files import checkpoint_folder

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already: choose another --output or pass --overwrite")
    for name in checkpoints:
        if checkpoint_folder(name).resolve().is_relative_to(output.resolve()):
            raise InputError(f"expected an --output apart from {name}, got {output}: it would be replaced")


def qat(
    bundle: BundleArgument,
    images: Annotated[
        Path,
        typer.Option(help="Folder of images like those that the device will see; no labels. Golden ones are left out."),
    ],
    variants: Annotated[str, typer.Option(help="Which to make: int8, int8-cpu or both.")] = "int8, int8-cpu",
    count: Annotated[int, typer.Option(help="Images to train on.")] = 256,
    steps: Annotated[int, typer.Option(help="Steps to train for.")] = 200,
    lr: Annotated[float, typer.Option(help="Learning rate of the weights.")] = 3e-5,
    seed: Annotated[int, typer.Option(help="Seed of the choice and order of images.")] = 0,
) -> None:
    """Train a bundle's encoder to be INT8, for when edgeclip quantize misses its budget.

    The model that the bundle was made from is loaded again; its FP32 embeddings of the images are what is learnt.
    """
    require("nncf", purpose="quantize")
    from edgeclip.export.int8.qat import QatOptions
    from edgeclip.export.int8.qat_bundle import train_int8_on

    options = QatOptions(steps=steps, lr=lr, seed=seed)
    opened = Bundle.open(bundle)
    with notices.status("reading images") as status:
        done = train_int8_on(
            opened, images, names=split_names(variants), count=count, options=options, progress=status.update
        )
    first, last = done.losses[0], sum(done.losses[-10:]) / len(done.losses[-10:])
    console.print(
        f"loss {first:.4f} → {last:.4f} in {counted(len(done.losses), 'step')} on "
        f"{counted(done.images, 'image')}\nwritten: {opened.path}",
        markup=False,
        highlight=False,
    )

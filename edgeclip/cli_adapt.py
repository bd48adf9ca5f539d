"""``edgeclip fewshot`` and ``edgeclip qat``: a bundle and images in, an adapted table or trained INT8 variants out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli_common import BundleArgument, TemplatesHelp, console, notices, progress_bars, split_names
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
    from edgeclip.evaluation.adapt import (
        FewShotOptions,
        adapt_bundle,
        adapted_lines,
        curve_lines,
        curve_of_bundle,
        save_curve,
    )
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
            lines = adapted_lines(adapted)
            lines.append(f"written: {output or opened.path}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def qat(
    bundle: BundleArgument,
    images: Annotated[Path, typer.Option(help="Folder of images like those that the device will see; no labels.")],
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
    from edgeclip.calibration.images import sample_images
    from edgeclip.export.export_bundle import calibration_inputs
    from edgeclip.export.extend import require_writable
    from edgeclip.export.qat import QatOptions
    from edgeclip.export.qat_bundle import train_int8
    from edgeclip.training.load import HUB_PREFIX, load_model

    if count < 2 or steps < 1 or lr <= 0:
        raise InputError(f"expected --count of 2, --steps of 1 and --lr above 0 at least, got {count}, {steps}, {lr}")
    opened = Bundle.open(bundle)
    require_writable(opened)
    origin = opened.manifest.model.origin
    with notices.status("loading the model") as status:
        name = f"{HUB_PREFIX}{origin.name}" if origin.loader == "transformers" else origin.name
        pretrained = (origin.pretrained or "none") if origin.loader == "open_clip" else None
        model = load_model(name, pretrained=pretrained, seed=origin.seed or 0)
        chosen = calibration_inputs(sample_images(images, count, seed=seed), (), model.encoder)
        options = QatOptions(steps=steps, lr=lr, seed=seed)
        done = train_int8(opened, model, chosen, names=split_names(variants), options=options, progress=status.update)
    first, last = done.losses[0], sum(done.losses[-10:]) / len(done.losses[-10:])
    console.print(
        f"loss {first:.4f} → {last:.4f} in {len(done.losses)} steps on {len(chosen)} images\nwritten: {opened.path}",
        markup=False,
        highlight=False,
    )

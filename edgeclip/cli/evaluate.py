"""The verbs ``eval`` and ``robustness``: what a model is worth where it will stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.class_names import split_names
from edgeclip.cli.common import BundleArgument, TemplatesHelp, bar, console, named_bars, output_file, output_folder
from edgeclip.errors import InputError
from edgeclip.extras import require


def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images: a folder with one folder a class, WebDataset tars, CSV, TSV or JSONL."),
    ] = None,
    captions: Annotated[
        str | None, typer.Option(help="Captioned images for retrieval: JSONL, CSV, TSV or WebDataset tars.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Class names: JSON folder → name or names, a list in order, or a file of sets.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="A set whose usual class names and templates to take: imagenet, cifar10, flowers, …")
    ] = "",
    templates: Annotated[
        str, typer.Option(help="simple, imagenet (CLIP's 80), or a file. \\[simple; with --classes the set's]")
    ] = "",
    variant: Annotated[list[str] | None, typer.Option(help="Form of the encoder; may be given again. \\[fp32]")] = None,
    engine: Annotated[str, typer.Option(help="Inference engine; see docs/engines.md.")] = "onnxruntime",
    against: Annotated[
        str | None, typer.Option(help="Another variant: print the difference on the same images, with its interval.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.", callback=output_file)
    ] = None,
) -> None:
    """Zero-shot accuracy and retrieval with 95 % intervals, by class and by confusion. Can be stopped and run again."""
    require("torch", purpose="encode class names")
    from edgeclip.evaluation.accuracy.evaluate import evaluate as measure
    from edgeclip.evaluation.accuracy.report import print_report
    from edgeclip.files import write_json

    with named_bars() as watch:
        report = measure(
            bundle,
            data,
            captions=captions,
            variants=variant or ["fp32"],
            engine=engine,
            against=against,
            classes=classes,
            names=names,
            templates=templates,
            progress=watch,
        )
    if json_file:
        write_json(json_file, report.as_json())
    print_report(report, console)


_DEFAULT_VARIANTS = ("fp32", "int8-cpu")


def robustness(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="[BUNDLE]", help="Bundle, or the word starter. Not needed for --sheet alone."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled images without shift; they are corrupted.")] = None,
    shift: Annotated[
        list[Path] | None,
        typer.Option(help="Other labelled images: ImageNet-R, -A, -V2, -Sketch, or one folder a class. Repeatable."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="JSON: folder name → class name or names; for --shift sets with such folders too."),
    ] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    variants: Annotated[
        str, typer.Option(help="Forms of the encoder; all are held against the first. Default: fp32 and int8-cpu.")
    ] = "",
    corruptions: Annotated[str, typer.Option(help="By name, or none for shift sets alone. Default: all.")] = "",
    severities: Annotated[str, typer.Option(help="Of 1 (mild) to 5 (hard).")] = "1,3,5",
    limit: Annotated[
        int | None, typer.Option(help="Images of each set, a seeded sample with each class's share. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that sample.")] = 0,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of another model's run with the same options, for effective robustness. Repeatable."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result as JSON.", callback=output_file)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for robustness.json, .txt and .png.", callback=output_folder),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Write a contact sheet of the corruptions; of an image of --data, if given.", callback=output_file
        ),
    ] = None,
) -> None:
    """Zero-shot accuracy under camera faults and on other images, and whether INT8 loses more there than on clean ones.

    With --sheet FILE.png and no bundle, only the pictures.
    """
    from edgeclip.evaluation.robustness.corruptions import SUITE, check_severities, corruptions_called

    chosen = () if corruptions == "none" else tuple(split_names(corruptions)) or tuple(SUITE)
    corruptions_called(chosen)
    levels = check_severities(_number(word) for word in split_names(severities))
    if sheet:
        _write_sheet(sheet, data, chosen or tuple(SUITE), seed=seed)
        console.print(f"contact sheet: {sheet}", highlight=False, markup=False)
        if bundle is None:
            return
    if bundle is None or data is None:
        raise InputError(
            "expected a bundle and --data DIR to measure on, or --sheet FILE.png alone, got only part of it"
        )
    require("torch", purpose="encode class names")
    if output:
        require("matplotlib", purpose="draw a plot")
    from edgeclip.evaluation.data.shift_sets import names_of, open_shift_set
    from edgeclip.evaluation.robustness.baseline import against_baseline
    from edgeclip.evaluation.robustness.measure import RobustnessOptions, measure_robustness
    from edgeclip.evaluation.robustness.report import read_report, report_lines, save_report
    from edgeclip.files import write_json
    from edgeclip.prompts import load_templates

    opened = Bundle.open(bundle)
    there = [variant.name for variant in opened.manifest.variants]
    options = RobustnessOptions(
        variants=tuple(split_names(variants)) or tuple(name for name in _DEFAULT_VARIANTS if name in there),
        corruptions=chosen,
        severities=levels,
        limit=limit,
        seed=seed,
        templates=load_templates(templates),
    )
    for name in options.variants:
        opened.variant(name)
    baselines = [read_report(path) for path in baseline or ()]
    clean = open_shift_set(data, names)
    shifts = [open_shift_set(folder, names_of(folder, names)) for folder in shift or ()]
    with bar("images") as watch:
        report = measure_robustness(opened, clean, shifts, options, progress=watch)
    if baselines:
        report = against_baseline(report, baselines)
    for line in report_lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file:
        write_json(json_file, report)
    if output:
        for path in save_report(report, output):
            console.print(str(path), style="dim", markup=False, highlight=False, soft_wrap=True)


def _write_sheet(path: Path, data: Path | None, corruptions: tuple[str, ...], *, seed: int) -> None:
    """The contact sheet of one image of ``data``, or of a photograph that scikit-image ships."""
    from edgeclip.evaluation.robustness.views import contact_sheet
    from edgeclip.export.photographs import photograph
    from edgeclip.files import atomic_file
    from edgeclip.runtime.images import is_image_name, write_image

    if not is_image_name(path):
        raise InputError(f"expected an image file such as corruptions.png with --sheet, got {path}")
    if data:
        from edgeclip.evaluation.data.shift_sets import open_shift_set, stratified

        (item,) = stratified(open_shift_set(data), 1, seed=seed)
        key, image = item.key, item.read()
    else:
        key = "chelsea.png"
        image = photograph(key)
    with atomic_file(path) as temporary:
        write_image(temporary, contact_sheet(image, key=key, corruptions=corruptions))


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise InputError(f"expected --severities such as 1,3,5, got {word!r}") from None

"""The command line: one thin command per verb."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeclip import __version__
from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeclipError, InputError
from edgeclip.extras import require
from edgeclip.prompts import PromptTable, check_table_name, load_templates, parse_classes

app = typer.Typer(
    name="edgeclip",
    help="CLIP-style models on the edge: train, export with proof, label camera streams zero-shot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts_app = typer.Typer(help="Prompt tables: class names × templates, encoded once.", no_args_is_help=True)
app.add_typer(prompts_app, name="prompts")

console = Console()
notices = Console(stderr=True)

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or .tar, or the word starter.")]
ClassesHelp = (
    'Class names: "mug, bottle, phone", or a file (one a line, or JSON). Synonyms: "mobile phone | smartphone".'
)
TemplatesHelp = "Prompt templates: simple, imagenet (CLIP's 80) or a file with one a line, {} standing for the name."


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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="open_clip name, hf:NAME, a local folder, a checkpoint, or starter.")],
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag; none for random weights.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Bundle to make. [MODEL.edgeclip]")] = None,
    photos: Annotated[Path | None, typer.Option(help="Photographs for the parity check. [scikit-image's]")] = None,
    int8_cpu: Annotated[bool, typer.Option("--int8-cpu", help="Add an INT8 variant for ONNX Runtime on CPUs.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Images to measure INT8 ranges on. [crops of the photographs]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a model into a bundle: ONNX image encoder, proved equal to the model on real photographs."""
    require("torch", purpose="export a model")
    require("onnxscript", purpose="export a model")
    from edgeclip.export.export_bundle import export_bundle
    from edgeclip.export.photographs import photographs
    from edgeclip.training.load import load_model

    target = output or Path(f"{Path(model.removeprefix('hf:')).name}.edgeclip")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already: choose another --output or pass --overwrite")
    images = photographs(photos)
    with console.status("loading the model") as status:
        loaded = load_model(model, pretrained=pretrained, seed=seed)
        makers = []
        if int8_cpu:
            from edgeclip.calibration.images import sample_images
            from edgeclip.export.int8_cpu import CALIBRATION_IMAGES, int8_cpu_maker

            images_to_calibrate = sample_images(calibration, CALIBRATION_IMAGES) if calibration else []
            makers.append(int8_cpu_maker(loaded.encoder, images_to_calibrate))
        bundle = export_bundle(
            loaded, target, photos=images, extra_variants=makers, overwrite=overwrite, progress=status.update
        )
    from edgeclip.card import print_card

    print_card(bundle, console)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/starter.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Checkpoint folder. [runs/NAME]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Train a contrastive image–text model from a recipe; the checkpoint can be exported."""
    require("torch", purpose="train a model", extra="train")
    require("yaml", purpose="read a recipe")
    from edgeclip.training.recipe import load_recipe
    from edgeclip.training.train import train_recipe

    loaded = load_recipe(recipe, overrides=set_ or [])
    target = output or Path("runs") / loaded.name
    train_recipe(loaded, target, console=console, overwrite=overwrite)
    console.print(f"checkpoint: {target}\nnext: edgeclip export {target}", highlight=False)


@prompts_app.command("build")
def prompts_build(
    bundle: BundleArgument,
    classes: Annotated[str, typer.Option(help=ClassesHelp)],
    name: Annotated[str, typer.Option(help="Name of the table.")],
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
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
    table = _build_table(opened, classes, templates, name=name)
    if output:
        table.save(output)
    else:
        opened.add_table(table, overwrite=overwrite)
    console.print(
        f"{name}: {len(table.classes)} classes × {len(table.templates)} templates → {output or opened.path}",
        highlight=False,
    )


@app.command()
def label(
    bundle: BundleArgument,
    source: Annotated[str, typer.Argument(help="An image, a folder of images, a video file or a camera index.")],
    table: Annotated[str | None, typer.Option(help="Table in the bundle, or a .safetensors file.")] = None,
    classes: Annotated[str | None, typer.Option(help=ClassesHelp + " Needs the text encoder.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    top: Annotated[int, typer.Option(help="Labels to report for each frame.")] = 5,
    jsonl: Annotated[Path | None, typer.Option(help="Write one JSON line a frame.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write a video with the labels drawn in (.mp4, .mkv).")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many frames.")] = None,
    variant: Annotated[str, typer.Option(help="Form of the encoder; edgeclip inspect lists them.")] = "fp32",
    engine: Annotated[str, typer.Option(help="Inference engine.")] = "onnxruntime",
    threads: Annotated[int | None, typer.Option(help="CPU threads for the encoder. [all]")] = None,
) -> None:
    """Label an image, a folder, a video or a camera, live."""
    from edgeclip.runtime.label import LabelOptions, label_source
    from edgeclip.runtime.source import open_source
    from edgeclip.runtime.terminal import TerminalView, print_summary

    if table is not None and classes is not None:
        raise InputError("expected --table or --classes, got both: leave one out")
    opened = Bundle.open(bundle)
    options = LabelOptions(
        variant=variant, engine=engine, threads=threads, top_k=top, limit=limit, jsonl=jsonl, overlay=overlay
    )
    with open_source(source) as frames:
        if classes is None:
            chosen = _find_table(opened, table)
        else:
            chosen = _build_table(opened, classes, templates, name="classes")
        with TerminalView(console, frames.name, limit or frames.total) as view:
            account = label_source(opened, frames, chosen, options, watch=view)
    print_summary(account, console)


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


@app.command("eval")
def evaluate(
    bundle: BundleArgument,
    data: Annotated[Path, typer.Option(help="A folder with one folder of images a class.")],
    names: Annotated[Path | None, typer.Option(help="JSON: folder name → class name or list of names.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    variant: Annotated[str, typer.Option(help="Form of the encoder.")] = "fp32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
) -> None:
    """Zero-shot accuracy over an image folder: top-1 and top-5 with 95 % intervals."""
    require("torch", purpose="encode class names")
    from edgeclip.evaluation.zeroshot import evaluate_folder, print_result

    opened = Bundle.open(bundle)
    with _progress() as bars:
        task = bars.add_task("images", total=None)
        result = evaluate_folder(
            opened,
            data,
            names=names,
            templates=load_templates(templates),
            variant=variant,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    print_result(result, console)
    if json_file:
        from edgeclip.files import write_json

        write_json(json_file, result)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("demo-out"),
    variant: Annotated[str, typer.Option(help="Form of the encoder.")] = "fp32",
) -> None:
    """Label a camera-like stream made from real photographs with the starter bundle, and say how well it went."""
    require("skimage", purpose="get the demo's photographs")
    from edgeclip.demo import run_demo

    run_demo(output, variant=variant, console=console)


def _find_table(bundle: Bundle, name_or_file: str | None) -> PromptTable:
    if name_or_file and name_or_file.endswith(".safetensors"):
        table = PromptTable.load(Path(name_or_file))
        bundle.check_table(table)
        return table
    return bundle.table(name_or_file)


def _build_table(bundle: Bundle, classes: str, templates: str, *, name: str) -> PromptTable:
    parsed, loaded = parse_classes(classes), load_templates(templates)
    extra = "demo" if bundle.manifest.model.origin.loader == "edgeclip" else "export"
    require("torch", purpose="encode class names", extra=extra)
    from edgeclip.export.tables import table_for_bundle

    with _progress() as bars:
        task = bars.add_task("prompts", total=None)
        return table_for_bundle(
            bundle,
            parsed,
            loaded,
            name=name,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notices,
        transient=True,
        disable=not notices.is_terminal,
    )


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)

"""The verb ``eval``: a bundle and labelled or captioned images in, accuracy and retrieval with their intervals out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from edgeclip.bundle import Bundle
from edgeclip.cli_common import BundleArgument, console, progress_bars
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
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
) -> None:
    """Zero-shot accuracy and retrieval with 95 % intervals, by class and by confusion. Can be stopped and run again."""
    require("torch", purpose="encode class names")
    from edgeclip.evaluation.class_sets import set_templates
    from edgeclip.evaluation.dataset import open_captioned, open_labelled
    from edgeclip.evaluation.eval_report import EvalReport, print_report
    from edgeclip.evaluation.retrieval import evaluate_retrieval
    from edgeclip.evaluation.zeroshot import evaluate_set
    from edgeclip.files import write_json

    if data is None and captions is None:
        raise InputError("expected --data, --captions or both, got neither: say what to measure on")
    opened, variants = Bundle.open(bundle), list(dict.fromkeys(variant or ["fp32"]))
    for name in variants:
        opened.variant(name)
    prompts = set_templates(templates, classes)
    labelled = open_labelled(data, names, class_set=classes) if data is not None else None
    captioned = open_captioned(captions) if captions is not None else None
    accuracies, retrievals = [], []
    with progress_bars() as bars:
        if labelled:
            watch = _watch(bars, "images")
            accuracies = evaluate_set(
                opened, labelled, templates=prompts, variants=variants, engine=engine, against=against, progress=watch
            )
        for name in variants if captioned else ():
            assert captioned
            watch = _watch(bars, "captioned images")
            retrievals.append(evaluate_retrieval(opened, captioned, variant=name, engine=engine, progress=watch))
    report = EvalReport(accuracies, retrievals)
    if json_file:
        write_json(json_file, report.as_json())
    print_report(report, console)


def _watch(bars: Progress, name: str) -> Callable[[int, int], None]:
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)

"""The verbs ``bench`` and ``tradeoff``: how fast each variant is here, and which one to ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, cast

import typer

from edgeclip.class_names import split_names
from edgeclip.cli.common import changing_bar, console, output_file, output_folder
from edgeclip.errors import InputError
from edgeclip.extras import require


def bench(
    bundles: Annotated[
        list[str] | None, typer.Argument(metavar="BUNDLE...", help="Bundle folders or .tars, or starter.")
    ] = None,
    variants: Annotated[str, typer.Option(help="Forms of the encoder. [all]")] = "",
    engines: Annotated[str, typer.Option(help="Engines. [all that run here]")] = "",
    stages: Annotated[
        str, typer.Option(help="engine: a batch; end-to-end: a frame to its label; pipelined: most images a second.")
    ] = "engine, end-to-end",
    batches: Annotated[str, typer.Option(help="Images at once.")] = "1",
    threads: Annotated[str, typer.Option(help='CPU threads an inference, e.g. "1, 2". [all]')] = "",
    frame: Annotated[str, typer.Option(metavar="WxH", help="Frames of end-to-end.")] = "1920x1080",
    rounds: Annotated[int, typer.Option(help="Times that each is measured; intervals are over these.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of each in a round.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order in which they take turns.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every time measured as JSON.", callback=output_file)
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Instead: compare two such files, the second to the first.")
    ] = None,
) -> None:
    """Time a bundle's variants on the engines of this machine, in turns, each proved first."""
    from edgeclip.evaluation.bench.bench import BenchOptions
    from edgeclip.evaluation.bench.bench import bench as measure
    from edgeclip.evaluation.bench.card import print_comparison, print_result
    from edgeclip.evaluation.bench.records import Stage, load_result
    from edgeclip.files import write_json

    if compare:
        if bundles:
            raise InputError("expected bundles or --compare, got both")
        print_comparison(load_result(compare[0]), load_result(compare[1]), console)
        return
    if not bundles:
        raise InputError("expected a bundle to measure, got none: name one, such as starter")
    options = BenchOptions(
        variants=tuple(split_names(variants)),
        engines=tuple(split_names(engines)),
        stages=cast(tuple[Stage, ...], tuple(split_names(stages))),
        batches=_numbers(batches, "--batches"),
        threads=_numbers(threads, "--threads") or (None,),
        frame=_frame(frame),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    with changing_bar("proving") as watch:
        result = measure(bundles, options, progress=watch)
    if json_file:
        write_json(json_file, result)
    print_result(result, console)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in split_names(text))
    except ValueError:
        raise InputError(f"expected numbers such as 1, 8 with {option}, got {text[:40]!r}") from None


def _frame(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([1-9][0-9]{0,8})[xX×]([1-9][0-9]{0,8})", text.strip())
    if sides is None:
        raise InputError(f"expected --frame WxH, such as 1920x1080, got {text[:40]!r}")
    return int(sides[2]), int(sides[1])


def tradeoff(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundle folders or .tars, or starter.")],
    data: Annotated[str, typer.Option(help="Labelled images that decide: class folders, WebDataset, CSV, TSV, JSONL.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for tradeoff.html, .png, .json and bench.json.", callback=output_folder
        ),
    ],
    shift: Annotated[
        list[Path] | None, typer.Option(help="Other labelled images whose accuracy is told too. Repeatable.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Class names of --data, as for eval.")] = None,
    classes: Annotated[str, typer.Option(help="A set whose usual names and templates to take: imagenet, …")] = "",
    templates: Annotated[
        str, typer.Option(help="simple, imagenet (CLIP's 80), or a file. \\[simple; with --classes the set's]")
    ] = "",
    max_latency_ms: Annotated[float | None, typer.Option(help="At most so long, the median.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="At least this top-1; then the fastest is taken.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="At most so much memory.")] = None,
    variants: Annotated[str, typer.Option(help="Forms of the encoder. \\[all]")] = "",
    engines: Annotated[str, typer.Option(help="Engines. \\[all that run here]")] = "",
    stage: Annotated[
        str, typer.Option(help="What is timed: end-to-end, a frame to its label; engine, an image; pipelined.")
    ] = "end-to-end",
    rounds: Annotated[int, typer.Option(help="Times that each is timed; intervals are over these.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of each in a round.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Time anew, even where OUTPUT/bench.json would do.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the recommendation into its bundle: label then runs it here.")
    ] = False,
) -> None:
    """Measure latency, accuracy and memory of every variant here, and say which one to ship."""
    require("torch", purpose="encode class names")
    require("matplotlib", purpose="draw a plot")
    require("jinja2", purpose="write a page")
    from edgeclip.evaluation.bench.bench import BenchOptions
    from edgeclip.evaluation.bench.records import Stage
    from edgeclip.evaluation.tradeoff.report import print_tradeoff
    from edgeclip.evaluation.tradeoff.run import tradeoff as measure

    options = BenchOptions(
        variants=tuple(split_names(variants)),
        engines=tuple(split_names(engines)),
        stages=(cast(Stage, stage),),
        rounds=rounds,
        seconds=seconds,
    )
    said: list[str] = []
    with changing_bar("proving") as watch:
        report = measure(
            bundles,
            data,
            output=output,
            max_latency_ms=max_latency_ms,
            min_accuracy=min_accuracy,
            max_memory_mb=max_memory_mb,
            options=options,
            shift=shift or (),
            classes=classes,
            names=names,
            templates=templates,
            again=again,
            apply=apply,
            progress=watch,
            notice=said.append,
        )
    print_tradeoff(report, console)
    for line in said:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

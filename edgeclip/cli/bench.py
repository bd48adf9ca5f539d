"""The command that times a bundle's variants, and compares two results.

The verb ``tradeoff``: bundles and labelled images in, what to ship and the evidence for it out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli.common import console, progress_bars, split_names
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
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every time measured as JSON.")] = None,
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
    with progress_bars() as bars:
        task = bars.add_task("proving", total=None)
        result = measure(
            [Bundle.open(path) for path in bundles],
            options,
            progress=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )
    if json_file:
        write_json(json_file, result)
    print_result(result, console)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in split_names(text))
    except ValueError:
        raise InputError(f"expected numbers such as 1, 8 with {option}, got {text!r}") from None


def _frame(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise InputError(f"expected --frame WxH, such as 1920x1080, got {text!r}")
    return int(height), int(width)


def tradeoff(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundle folders or .tars, or starter.")],
    data: Annotated[str, typer.Option(help="Labelled images that decide: class folders, WebDataset, CSV, TSV, JSONL.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tradeoff.html, .png, .json and bench.json.")
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
    from edgeclip.evaluation.data.class_sets import set_templates
    from edgeclip.evaluation.data.dataset import open_labelled
    from edgeclip.evaluation.data.shift_sets import names_of, open_shift_set
    from edgeclip.evaluation.tradeoff.measure import measure_tradeoff, recommendation_of, reusable
    from edgeclip.evaluation.tradeoff.records import TradeoffLimits
    from edgeclip.evaluation.tradeoff.report import print_tradeoff, save_tradeoff
    from edgeclip.export.bundle import require_writable
    from edgeclip.files import write_json
    from edgeclip.runtime.proof.choose import add_recommendation

    limits = TradeoffLimits(max_latency_ms=max_latency_ms, min_accuracy=min_accuracy, max_memory_mb=max_memory_mb)
    options = BenchOptions(
        variants=tuple(split_names(variants)),
        engines=tuple(split_names(engines)),
        stages=(cast(Stage, stage),),
        rounds=rounds,
        seconds=seconds,
    )
    opened = [Bundle.open(path) for path in bundles]
    if output.exists() and not output.is_dir():
        raise InputError(f"expected a folder with --output, got the file {output}")
    for bundle in opened if apply else ():
        require_writable(bundle)  # now, not after minutes of measuring
    if stage == "end-to-end" and (bare := [bundle.path.name for bundle in opened if not bundle.manifest.tables]):
        raise InputError(
            f"expected a prompt table in {', '.join(bare)} to label frames with, got none: edgeclip prompts build, or "
            "--stage engine"
        )
    prompts = set_templates(templates, classes)
    sets = [open_labelled(data, names, class_set=classes)]
    sets += [open_shift_set(folder, names_of(folder, names)) for folder in shift or ()]
    kept = output / "bench.json"
    say = partial(console.print, style="dim", markup=False, highlight=False, soft_wrap=True)
    timed = None if again else reusable(kept, opened, options, notice=say)
    with progress_bars() as bars:
        task = bars.add_task("proving", total=None)
        report = measure_tradeoff(
            opened,
            sets,
            options,
            limits,
            templates=prompts,
            timed=timed,
            progress=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
            timing_done=lambda result: write_json(kept, result),
        )
    print_tradeoff(report, console)
    for path in save_tradeoff(report, output):
        say(str(path))
    if apply and (found := recommendation_of(report)) is not None and report.decision.label is not None:
        model = report.point(report.decision.label).model
        target = next(bundle for bundle in opened if bundle.manifest.model.id == model)
        add_recommendation(target, found)
        say(f"written into {target.path}: edgeclip label runs it on this machine")

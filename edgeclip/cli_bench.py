"""The command that times a bundle's variants, and compares two results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli_common import console, progress_bars, split_names
from edgeclip.errors import InputError


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
    from edgeclip.evaluation.bench import BenchOptions
    from edgeclip.evaluation.bench import bench as measure
    from edgeclip.evaluation.bench_card import print_comparison, print_result
    from edgeclip.evaluation.bench_records import Stage, load_result
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

"""The commands that choose calibration images from footage, and say whether they cover other footage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli_common import console, notices, progress_bars
from edgeclip.errors import InputError

_BundleOption = Annotated[str, typer.Option(help="Whose encoder says what is alike: a bundle, or the word starter.")]
_VariantOption = Annotated[str, typer.Option(help="Form of that encoder.")]
_EngineOption = Annotated[str, typer.Option(help="Inference engine.")]
_EveryOption = Annotated[float, typer.Option(metavar="S", help="Of videos and cameras, a frame every S seconds.")]
_DurationOption = Annotated[
    float | None,
    typer.Option(metavar="S", help="Read S seconds of each video or camera. \\[all of a file, 60 of a camera]"),
]
_SeedOption = Annotated[int, typer.Option(help="Seed of what is held out and of ties.")]


def images(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="Folders, images, videos, cameras, RTSP: as for label."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("calib"),
    count: Annotated[int, typer.Option(help="Images to choose.")] = 512,
    bundle: _BundleOption = "starter",
    variant: _VariantOption = "fp32",
    engine: _EngineOption = "onnxruntime",
    every: _EveryOption = 0.2,
    duration: _DurationOption = None,
    holdout: Annotated[float, typer.Option(help="Share of the footage that is held out to judge the choice by.")] = 0.2,
    seed: _SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
) -> None:
    """Choose calibration images from footage: no near-duplicates, all exposures and times, nothing left far from them.

    The folder is what export, quantize and qat take as --calibration (qat: --images). Fewer images than asked for are
    said, and are no error.
    """
    from edgeclip.calibration.choose_images import ChooseOptions
    from edgeclip.calibration.footage import Sampling
    from edgeclip.evaluation.calibration_run import calibrate_images

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already: choose another --output or pass --overwrite")
    sampling = Sampling(every_s=every, duration_s=duration, holdout=holdout, seed=seed)
    options = ChooseOptions(count=count, sampling=sampling, variant=variant, engine=engine)
    with progress_bars() as bars:
        task = bars.add_task("frames", total=None)
        record = calibrate_images(
            Bundle.open(bundle),
            sources,
            output,
            options,
            overwrite=overwrite,
            progress=lambda done: bars.update(task, completed=done),
        )
    counts = record.counts
    lines = [
        f"{len(record.images)} images out of {counts.candidates:,} frames, {counts.near_duplicates:,} of them "
        f"near-duplicates; {counts.held_out:,} held out",
        "exposure: " + "; ".join(f"{name} {number}" for name, number in record.exposures.items()),
    ]
    if record.coverage:
        lines.append(record.coverage.verdict)
    lines.append(f"written: {output}, report in {output / 'coverage.html'}")
    for note in record.notes:
        notices.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def drift(
    a: Annotated[str, typer.Argument(metavar="A", help="A folder that calibrate images wrote, or a source.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Footage to hold against it: a source, or such a folder.")],
    bundle: _BundleOption = "starter",
    variant: _VariantOption = "fp32",
    engine: _EngineOption = "onnxruntime",
    count: Annotated[int, typer.Option(help="Images to choose, where A is a source.")] = 256,
    every: _EveryOption = 0.2,
    duration: _DurationOption = None,
    seed: _SeedOption = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page, e.g. drift.html.")] = None,
) -> None:
    """Whether calibration images chosen at one site cover the footage of another.

    Exit code 0: covered, or unclear; 1: not covered; 2: the options or sources cannot be used.
    """
    from edgeclip.calibration.choose_images import ChooseOptions
    from edgeclip.calibration.footage import Sampling
    from edgeclip.evaluation.calibration_run import compare_sites

    sampling = Sampling(every_s=every, duration_s=duration, seed=seed)
    options = ChooseOptions(count=count, sampling=sampling, variant=variant, engine=engine)
    with progress_bars() as bars:
        task = bars.add_task("frames", total=None)
        found = compare_sites(
            Bundle.open(bundle),
            a,
            b,
            options,
            output=output,
            json_file=json_file,
            progress=lambda done: bars.update(task, completed=done),
        )
    console.print(found.verdict, markup=False, highlight=False, soft_wrap=True)
    for item in found.exposure:
        console.print(f"{item.name}: A {item.a[0]:.1f}, B {item.b[0]:.1f} grey levels", markup=False, highlight=False)
    if output:
        console.print(str(output), style="dim", markup=False, highlight=False, soft_wrap=True)
    if found.covered == "no":
        raise typer.Exit(1)

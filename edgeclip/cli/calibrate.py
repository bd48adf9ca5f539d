"""The commands that fit a bundle to its site: images to measure ranges on, drift from them, what scores mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli.common import BundleArgument, console, named_bars, notices, output_file, output_folder, progress_bars
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.printable import counted
from edgeclip.prompts import PromptTable

app = typer.Typer(
    help="Fit a bundle to its site: calibration images, drift, decisions that mean something.", no_args_is_help=True
)


_BundleOption = Annotated[str, typer.Option(help="Whose encoder says what is alike: a bundle, or the word starter.")]
_VariantOption = Annotated[str, typer.Option(help="Form of that encoder.")]
_EngineOption = Annotated[str, typer.Option(help="Inference engine.")]
_EveryOption = Annotated[float, typer.Option(metavar="S", help="Of videos and cameras, a frame every S seconds.")]
_DurationOption = Annotated[
    float | None,
    typer.Option(metavar="S", help="Read S seconds of each video or camera. \\[all of a file, 60 of a camera]"),
]
_SeedOption = Annotated[int, typer.Option(help="Seed of all that is drawn.")]


@app.command()
def images(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="Folders, images, videos, cameras, RTSP: as for label."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", callback=output_folder)] = Path(
        "calib"
    ),
    count: Annotated[int, typer.Option(help="Images to choose.")] = 512,
    bundle: _BundleOption = "starter",
    variant: _VariantOption = "fp32",
    engine: _EngineOption = "onnxruntime",
    every: _EveryOption = 0.2,
    duration: _DurationOption = None,
    seed: _SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
) -> None:
    """Choose calibration images from footage: no near-duplicates, and of every exposure and time some.

    The folder is what export, quantize and qat take as --calibration (qat: --images). Fewer images than asked for are
    said, and are no error.
    """
    from edgeclip.calibration.choice.choose import ChooseOptions
    from edgeclip.evaluation.calibration_images import PAGE, calibrate_images

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already: choose another --output or pass --overwrite")
    options = ChooseOptions(count, every, duration, seed, variant, engine)
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
        f"{counted(len(record.images), 'image')} out of {counted(counts.seen, 'frame')}, {counts.unchanged:,} of them "
        f"unchanged and {counts.near_duplicates:,} near-duplicates",
        "exposure: " + "; ".join(f"{name} {number}" for name, number in record.exposures.items()),
    ]
    lines.append(f"written: {output}, report in {output / PAGE}")
    for note in record.notes:
        notices.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def drift(
    a: Annotated[str, typer.Argument(metavar="A", help="A folder that calibrate images wrote, or a source.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Footage to hold against it: a source, or such a folder.")],
    bundle: _BundleOption = "starter",
    variant: _VariantOption = "fp32",
    engine: _EngineOption = "onnxruntime",
    every: _EveryOption = 0.2,
    duration: _DurationOption = None,
    seed: _SeedOption = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON.", callback=output_file)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a page, e.g. drift.html.", callback=output_file)
    ] = None,
) -> None:
    """Whether footage differs from what calibration images were chosen from.

    Exit code 0: no drift was found; 1: drift; 2: the options or sources cannot be used.
    """
    from edgeclip.calibration.choice.choose import ChooseOptions
    from edgeclip.evaluation.calibration_images import compare_footage

    options = ChooseOptions(every_s=every, duration_s=duration, seed=seed, variant=variant, engine=engine)
    with progress_bars() as bars:
        task = bars.add_task("frames", total=None)
        found = compare_footage(
            Bundle.open(bundle),
            a,
            b,
            options,
            output=output,
            json_file=json_file,
            progress=lambda done: bars.update(task, completed=done),
        )
    console.print(found.verdict, markup=False, highlight=False, soft_wrap=True)
    for name, (of_a, of_b) in found.exposure.items():
        console.print(f"{name}: A {of_a:.1f}, B {of_b:.1f} grey levels", markup=False, highlight=False)
    if output:
        console.print(str(output), style="dim", markup=False, highlight=False, soft_wrap=True)
    if found.drifted:
        raise typer.Exit(1)


@app.command()
def decisions(
    bundle: BundleArgument,
    table: Annotated[str, typer.Option(help="A table of the bundle, or a .safetensors file.")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images: one folder a class, CSV, TSV, JSONL, shards; or reviewed lines of label."),
    ] = None,
    precision_target: Annotated[
        float | None, typer.Option(help="Share of reported labels that is to be right. \\[0.95; --refit: as before]")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="How sure each promise is to be. \\[0.9; --refit: as before]")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Class names of folders: JSON folder → name or names.")] = None,
    others: Annotated[
        bool, typer.Option("--others", help="Labels that are not of the table are images of none of its classes.")
    ] = False,
    source: Annotated[str, typer.Option(help="Video or folder that reviewed lines are of, if they do not say.")] = "",
    footage: Annotated[
        list[str] | None, typer.Option(help="No labels: footage that shows next to nothing of the classes. Repeatable.")
    ] = None,
    label_rate: Annotated[float, typer.Option(help="With --footage: share of its frames that may get a label.")] = 0.01,
    background: Annotated[
        int, typer.Option(help="With --footage: words for what the site looks like, if the table has none.")
    ] = 16,
    every: Annotated[float, typer.Option(help="With --footage: take a frame so often, seconds.")] = 1.0,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit again on the same images, after a prompt edit or a new variant.")
    ] = False,
    variant: Annotated[
        list[str] | None, typer.Option(help="Form of the encoder that will run; repeatable. \\[all for the engine]")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Inference engine. \\[onnxruntime; --refit: as before]")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write a .safetensors file instead of the table itself.", callback=output_file
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with reliability and every class.", callback=output_file)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON.", callback=output_file)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of those names.")] = False,
) -> None:
    """Make scores probabilities, and find thresholds that promise a precision, for each variant that may run.

    A label below its class's threshold is then reported as unknown. Decisions are kept in the table, bound to the
    variant's graph and to the prompts; where either changes they are stale, which is said, until --refit.
    """
    require("sklearn", purpose="fit decisions")
    from edgeclip.calibration.decisions.background import FootageOptions
    from edgeclip.evaluation.decisions.calibrate import calibrate_decisions
    from edgeclip.evaluation.decisions.data import DataOptions
    from edgeclip.evaluation.decisions.report import as_json, decision_page, print_calibrated
    from edgeclip.files import write_json, write_text

    # What is asked for, before anything is computed.
    if report and footage:
        raise InputError(
            "expected --report with labelled images, got --footage: there is no reliability without labels"
        )
    opened = Bundle.open(bundle)
    loaded, in_bundle = _table(opened, table)
    target = output or (None if in_bundle else Path(table))
    if target is None and opened.is_starter:
        raise InputError("the shipped starter bundle is read-only: pass --output FILE.safetensors")
    for file in (output, report, json_file):
        if file and file.exists() and not overwrite:
            raise InputError(f"{file} exists already: choose another name or pass --overwrite")

    # The fit.
    with named_bars() as watch:
        found, options = calibrate_decisions(
            opened,
            loaded,
            data=DataOptions(data=data, names=str(names or ""), others=others, source=source) if data else None,
            footage=footage or (),
            refit=refit,
            target=precision_target,
            confidence=confidence,
            footage_options=FootageOptions(label_rate, background),
            every_s=every,
            variants=variant or (),
            engine=engine,
            progress=watch,
        )
    print_calibrated(found, console)

    # What is written.
    if target:
        found.table.save(target)
    else:
        opened.add_table(found.table, overwrite=True, replaces=loaded)
    written = [str(target) if target else f"table {loaded.name} in {opened.path}"]
    if report:
        write_text(
            report,
            decision_page(found, bundle=opened.path.name, target=options.target, confidence=options.confidence),
        )
        written.append(str(report))
    if json_file:
        write_json(json_file, as_json(found))
        written.append(str(json_file))
    console.print("written: " + ", ".join(written), markup=False, highlight=False, soft_wrap=True)


def _table(bundle: Bundle, wanted: str) -> tuple[PromptTable, bool]:
    """The table, and whether it is one of the bundle's."""
    if not wanted.endswith(".safetensors"):
        return bundle.table(wanted), True
    table = PromptTable.load(Path(wanted))
    bundle.check_table(table)
    return table, False

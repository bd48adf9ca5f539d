"""A bundle and a folder of labelled images in, a few-shot table for that bundle, or the few-shot curve, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.calibration.hashed_images import files as image_files
from edgeclip.devices.machine.probe import Description, describe_machine, summary
from edgeclip.documents import encode_json
from edgeclip.errors import InputError
from edgeclip.evaluation.charts import COLOURS, new_figure, save_figure
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.files import atomic_folder, write_json
from edgeclip.printable import counted
from edgeclip.prompts import PromptClass, PromptTable, load_templates, parse_classes
from edgeclip.runtime.images import list_labelled
from edgeclip.training.adapt.curve import Curve, CurveOptions, draw_curve
from edgeclip.training.adapt.fewshot import METHODS, Adapted, adapt, method_called
from edgeclip.training.adapt.linear_probe import Shots
from edgeclip.training.adapt.recipe import FewShotRecipe

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FewShotOptions:
    """How a table is adapted.

    Attributes:
        method: of ``METHODS``.
        shots: images a class, taken at random; 0 for all that there are.
        templates: of the text rows that it begins with.
        names: JSON, folder name → class name or list of names.
        background: further rows of text that mean "nothing of interest".
        variant: form of the encoder that embeds the images; better the one that will run.
        seed: of the choice of images and of the folds.
    """

    method: str = "zs-probe"
    shots: int = 16
    templates: tuple[str, ...] = ()
    names: Path | None = None
    background: tuple[PromptClass, ...] = ()
    variant: str = "fp32"
    seed: int = 0


class CurveReport(msgspec.Struct, frozen=True):
    """A curve, and what it is of; ``curve.json``."""

    data: str
    model_id: str
    variant: str
    templates: tuple[str, ...]
    unreadable: int
    curve: Curve
    machine: Description


def adapt_bundle(
    bundle: Bundle, data: Path, options: FewShotOptions, *, name: str, progress: Progress | None = None
) -> Adapted:
    """Make a table for ``bundle`` from text and from some of the images in ``data/CLASS/*``.

    Raises:
        InputError: an unknown method, or fewer than 0 shots.
        SourceError: no class folders, or no image that can be decoded.
    """
    method_called(options.method)
    if options.shots < 0:
        raise InputError(f"expected shots of 0 (all there are) or more, got {options.shots}")
    files, folders = list_labelled(data)
    labels = np.array([label for _, label in files])
    chooser = np.random.default_rng(options.seed)
    rows = np.concatenate(
        [chooser.permutation(np.flatnonzero(labels == c))[: options.shots or None] for c in range(len(folders))]
    )
    table = _text_table(bundle, folders, options, name, progress)
    shots, _ = _embed(bundle, [files[row] for row in sorted(rows)], options.variant, progress)
    return adapt(table, shots, bundle.manifest.encoder, options.method, seed=options.seed)


def curve_of_bundle(
    bundle: Bundle,
    data: Path,
    options: FewShotOptions,
    curve: CurveOptions,
    *,
    progress: Progress | None = None,
) -> CurveReport:
    """Measure the few-shot curve on ``data/CLASS/*``; see ``training/adapt/curve.py``.

    Raises:
        InputError: an unknown method, or a class with fewer than two images.
        SourceError: no class folders, or no image that can be decoded.
    """
    files, folders = list_labelled(data)
    table = _text_table(bundle, folders, options, data.name or "data", progress)
    images, unreadable = _embed(bundle, files, options.variant, progress)
    watch = (lambda done, total: progress("fits", done, total)) if progress else None
    measured = draw_curve(table, images, bundle.manifest.encoder, curve, progress=watch)
    return CurveReport(
        data=data.name,
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        templates=options.templates,
        unreadable=unreadable,
        curve=measured,
        machine=describe_machine(),
    )


def run_recipe(recipe: FewShotRecipe, folder: Path, *, console: Console, overwrite: bool = False) -> None:
    """Make the table of a recipe, and its curve if it asks for one, in a folder that is whole or absent.

    Raises:
        InputError: the folder exists and ``overwrite`` is false; and as ``adapt_bundle`` and
            ``curve_of_bundle`` say.
    """
    console.print(
        msgspec.json.format(encode_json(recipe), indent=2).decode(), highlight=False, markup=False, soft_wrap=True
    )
    bundle, data = Bundle.open(recipe.bundle), Path(recipe.data)
    options = FewShotOptions(
        method=recipe.method,
        shots=recipe.shots,
        templates=load_templates(recipe.templates),
        names=Path(recipe.names) if recipe.names else None,
        background=parse_classes(recipe.background) if recipe.background else (),
        variant=recipe.variant,
        seed=recipe.seed,
    )
    with atomic_folder(folder, overwrite=overwrite, holds=("recipe.json",)) as temporary:
        adapted = adapt_bundle(bundle, data, options, name=recipe.name)
        adapted.table.save(temporary / f"{recipe.name}.safetensors")
        lines = adapted_lines(adapted)
        if recipe.curve.seeds:
            curve = CurveOptions(recipe.curve.methods, recipe.curve.shots, recipe.curve.seeds)
            report = curve_of_bundle(bundle, data, options, curve)
            save_curve(report, temporary)
            lines += curve_lines(report)
        write_json(temporary / "recipe.json", recipe)
    for line in [*lines, f"written: {folder}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def adapted_lines(adapted: Adapted) -> list[str]:
    """What was chosen and what it is worth, for people."""
    table = adapted.table
    lines = [
        f"{table.name}: {counted(len(table.classes), 'class', 'classes')}, {table.adapted or 'as the text has it'}"
    ]
    if adapted.top1 is not None and adapted.zero_shot_top1 is not None:
        lines.append(
            f"cross-validated on these images: top-1 {adapted.top1:.3f}, zero-shot {adapted.zero_shot_top1:.3f}"
        )
    return lines


def curve_lines(report: CurveReport) -> list[str]:
    """The curve as a table, for people."""
    curve = report.curve
    lines = [
        f"{report.data}: {counted(curve.images, 'image')} in {counted(curve.classes, 'class', 'classes')}, "
        f"{curve.tested} of them tested on for each of {counted(curve.seeds, 'seed')}; up to {curve.most_shots} shots "
        "a class are there",
        "method          shots  top-1  95 % interval   beside zero-shot  95 % interval",
    ]
    for method in dict.fromkeys(point.method for point in curve.points):
        for point in curve.of(method):
            lines.append(
                f"{method:<15} {point.shots:>5}  {point.top1:.3f}  {point.low:.3f}–{point.high:.3f}     "
                f"{point.gain:+.3f}            {point.gain_low:+.3f} to {point.gain_high:+.3f}"
            )
    below = curve.below_zero_shot()
    verdict = ", ".join(f"{point.method} at {point.shots}" for point in below) if below else "nowhere"
    lines.append(f"zero-shot-initialised methods below zero-shot: {verdict}")
    return [*lines, f"{report.variant} of model {report.model_id} on {summary(report.machine)}"]


def save_curve(report: CurveReport, folder: Path) -> tuple[Path, Path]:
    """Write ``curve.json`` and ``curve.png`` into a folder; returns both paths."""
    numbers, picture = folder / "curve.json", folder / "curve.png"
    write_json(numbers, report)
    plot_curves([report], picture)
    return numbers, picture


def plot_curves(reports: Sequence[CurveReport], path: Path) -> None:
    """Draw one panel a data set: top-1 over shots, a line and its 95 % band for each method."""
    figure = new_figure(5.2 * len(reports), 4.0)
    for panel, report in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports, strict=True):
        curve = report.curve
        numbers = sorted({point.shots for point in curve.points})
        for method, colour in zip(METHODS, COLOURS, strict=False):
            if not (points := curve.of(method)):
                continue
            where = [numbers.index(point.shots) for point in points]  # evenly spaced, as the numbers double
            panel.plot(where, [point.top1 for point in points], "o-", ms=4, lw=1.6, color=colour, label=method)
            low, high = [point.low for point in points], [point.high for point in points]
            panel.fill_between(where, low, high, color=colour, alpha=0.15, lw=0)
        if zero := [point.top1 for point in curve.points if point.shots == 0]:
            panel.axhline(zero[0], color="0.4", lw=1, ls="--", label="zero-shot")
        panel.set_xticks(range(len(numbers)), [str(number) for number in numbers])
        panel.set_xlabel("labelled images a class")
        panel.set_ylabel("top-1")
        panel.set_title(
            f"{report.data} ({counted(curve.classes, 'class', 'classes')}, {counted(curve.seeds, 'seed')})", fontsize=10
        )
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="lower right")
    save_figure(figure, path)


def _text_table(
    bundle: Bundle, folders: Sequence[str], options: FewShotOptions, name: str, progress: Progress | None
) -> PromptTable:
    watch = (lambda done, total: progress("prompts", done, total)) if progress else None
    classes = class_prompts(folders, options.names)
    return table_for_bundle(
        bundle, classes, options.templates, name=name, background=options.background, progress=watch
    )


def _embed(
    bundle: Bundle, files: Sequence[tuple[Path, int]], variant: str, progress: Progress | None
) -> tuple[Shots, int]:
    """Embeddings of the files that can be decoded, and how many cannot."""
    watch = (lambda done, total: progress("images", done, total)) if progress else None
    rows, keep = image_embeddings(bundle, variant, image_files([path for path, _ in files]), progress=watch)
    labels = np.array([label for _, label in files], np.int64)
    return Shots(rows[keep], labels[keep]), int((~keep).sum())

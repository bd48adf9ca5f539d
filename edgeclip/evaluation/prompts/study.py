"""A bundle, labelled images and prompts in; what the prompts are worth, what to change, and the table of that, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.errors import InputError
from edgeclip.evaluation.data.class_sets import plain_name
from edgeclip.evaluation.data.dataset import Items, LabelledSet, open_labelled
from edgeclip.evaluation.prompts.choice import Change, Contribution, PromptChoice, changed_rows, choose, contributions
from edgeclip.evaluation.prompts.confused_names import ALIKE, NAMES, ConfusedNames, confused_names
from edgeclip.evaluation.prompts.rows import IntArray, PromptRows, prompt_rows
from edgeclip.evaluation.statistics.metrics import predictions, top_k
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray, PromptClass, PromptTable, make_classes, name_alike

ALPHA = 0.05  # chance of any false claim in a study: half for changes of prompts, half for pairs of classes
FEW = 10  # labelled images a class: with fewer, only large effects show


@dataclass(frozen=True)
class StudyOptions:
    """What is studied.

    Attributes:
        data: images of known class.
        names: file of the classes' names.
        classes: the classes; the folders of ``data`` are found among their labels, and those without a folder have no
            images. Empty for the folders' own names, or those in ``names``.
        templates: to study.
        variant: form of the encoder that embeds the images; better the one that will run.
        seed: of the halves.
    """

    data: str
    names: Path | None = None
    classes: tuple[PromptClass, ...] = ()
    templates: tuple[str, ...] = ()
    variant: str = "fp32"
    seed: int = 0


class ClassResult(msgspec.Struct, frozen=True):
    """A class: its names, labelled images, and how many of those are right."""

    label: str
    names: list[str]
    images: int
    right: int


class Suggestion(msgspec.Struct, frozen=True):
    """What to do, and why; all of them are beyond noise."""

    action: str
    evidence: str


class Study(msgspec.Struct, frozen=True):
    """Everything that a study found.

    Attributes:
        classes: in row order.
        templates: that were given.
        images: N.
        top1, ci95: with all names and templates, and its Wilson interval.
        contributions: of each template and each name of several, on all images; intervals are each one's own.
        choice: made on one half and tested on the other; None with too few images for two halves.
        nearest, confused: pairs of classes, see ``confused_names``.
        suggestions: empty if nothing is beyond noise.
        notes: what limits the study, in words.
    """

    classes: list[ClassResult]
    templates: list[str]
    images: int
    top1: float
    ci95: tuple[float, float]
    contributions: list[Contribution]
    choice: PromptChoice | None
    nearest: list[ConfusedNames]
    confused: list[ConfusedNames]
    suggestions: list[Suggestion]
    notes: list[str]


class PromptReport(msgspec.Struct, frozen=True):
    """A study, and what it is of.

    Attributes:
        data: where the images are.
        failed: images that could not be decoded, and samples without an image or label.
        prompts: names × templates.
    """

    data: str
    failed: int
    prompts: int
    model: str
    model_id: str
    variant: str
    seed: int
    study: Study
    machine: Description


class Studied(NamedTuple):
    """A report and what it is of: rows, N images, and both (N,) rows of their true class and of their label."""

    report: PromptReport
    prompts: PromptRows
    items: Items
    truth: IntArray
    said: IntArray


def study_bundle(
    bundle: Bundle, options: StudyOptions, *, progress: Callable[[str, int, int], None] | None = None
) -> Studied:
    """Embed images and prompts, each once, and study them.

    Args:
        progress: called with (what, done, in all).

    Raises:
        InputError: names and classes are both given, or folders that are no class.
        SourceError: no image that can be decoded.
        VariantError: no such variant.
        ModelError: the text encoder cannot be loaded, or is not the one that the bundle was made with.
    """

    def watch(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    bundle.variant(options.variant)  # a misspelt one should not be found out after the prompts are encoded
    if options.names and options.classes:
        raise InputError("expected names or classes, got both: names can be given with the classes")
    given = open_labelled(options.data, options.names)
    classes = options.classes or given.classes
    folders = _class_of_folder(given, classes)
    prompts = prompt_rows(bundle, classes, options.templates, progress=watch("prompts"))
    embedded = image_embeddings(bundle, options.variant, given.items, progress=watch("images"))
    kept = np.flatnonzero(embedded.keep)
    images, truth = embedded.rows[kept], folders[given.labels[kept]]
    report = PromptReport(
        data=given.name,
        failed=len(given.items) - len(kept) + given.damaged.count,
        prompts=len(prompts.names) * len(prompts.templates),
        model=bundle.manifest.model.name,
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        seed=options.seed,
        study=study_prompts(prompts, images, truth, seed=options.seed, progress=watch("templates")),
        machine=describe_machine(),
    )
    said = predictions(images, prompts.class_rows(), truth).predicted
    return Studied(report, prompts, given.items.take(kept), truth, said)


def study_prompts(
    prompts: PromptRows,
    images: FloatArray,
    labels: IntArray,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Study prompts on unit embeddings.

    Args:
        images, labels: (N, D) and (N,), index of each one's class.
        seed: of the halves.
        progress: called with (templates done, templates in all).

    Raises:
        InputError: fewer than two classes, or no image.
    """
    if len(prompts.classes) < 2:
        raise InputError(f"expected two classes or more to tell apart, got {len(prompts.classes)}: give more")
    if not len(images):
        raise InputError("expected labelled images, got none")
    rows = prompts.class_rows()
    ranks = predictions(images, rows, labels).ranks
    best = top_k(ranks, 1)
    classes = [
        ClassResult(item.label, list(item.names), int((labels == row).sum()), int((ranks[labels == row] == 0).sum()))
        for row, item in enumerate(prompts.classes)
    ]
    choice = choose(prompts, images, labels, seed=seed, alpha=ALPHA / 2)
    # What a change of prompts mends is not to be blamed on names.
    mended = changed_rows(prompts, choice.recommended) if choice and choice.recommended else rows
    nearest, confused = confused_names(mended, prompts.labels, images, labels, alpha=ALPHA / 2)
    return Study(
        classes=classes,
        templates=list(prompts.templates),
        images=len(images),
        top1=best.value,
        ci95=best.ci95,
        contributions=contributions(prompts, images, labels, progress=progress),
        choice=choice,
        nearest=nearest,
        confused=confused,
        suggestions=_suggestions(choice, nearest),
        notes=_notes(classes, choice),
    )


def recommended_table(studied: Studied, *, name: str) -> PromptTable:
    """The table that a study recommends: with the changes that are beyond noise, or with everything as it was given."""
    prompts, choice = studied.prompts, studied.report.study.choice
    change = (choice.recommended if choice else None) or Change(list(prompts.templates), {})
    names = {item.label: list(item.names) for item in prompts.classes} | change.names
    rows = changed_rows(prompts, change)
    table = PromptTable(name, make_classes(names), rows, tuple(change.templates), studied.report.model_id)
    name_alike(table)
    return table


def _class_of_folder(given: LabelledSet, classes: Sequence[PromptClass]) -> IntArray:
    """(F,) row of the class that each folder is of."""
    row_of = {plain_name(item.label): row for row, item in enumerate(classes)}
    if strange := [folder for folder in given.folders if plain_name(folder) not in row_of]:
        raise InputError(
            f"expected the folders of {given.name} among the classes, got {', '.join(strange[:5])}: add them or leave "
            "the folders out"
        )
    return np.array([row_of[plain_name(folder)] for folder in given.folders], np.int64)


def _suggestions(choice: PromptChoice | None, nearest: list[ConfusedNames]) -> list[Suggestion]:
    found: list[Suggestion] = []
    for claim in choice.claims if choice else []:
        if claim.beyond_noise:
            listed = "" if claim.change.names else f": {'; '.join(claim.change.templates)}"
            evidence = f"top-1 {claim.difference} on the half that had no say in the choice"
            found.append(Suggestion(f"Use {claim.what}{listed}", evidence))
    for pair in nearest:
        shown, confusions = f"“{pair.first}” and “{pair.second}”", sum(pair.confusions)
        if pair.verdict == NAMES:
            action = f"Try other names for {shown}: they are closer than their images"
            evidence = (
                f"text tells {pair.text_right:.0%} of the two's images apart, the images themselves "
                f"{pair.images_right:.0%}: {pair.gap}; text cosine {pair.text_cosine:.2f}, {confusions} confusions"
            )
            found.append(Suggestion(action, evidence))
        elif pair.verdict == ALIKE:
            action = f"Merge {shown}, or accept that they are mixed up: no name can help this encoder"
            evidence = (
                f"even the mean of each class's other images tells only {pair.images_right:.0%} of "
                f"{sum(pair.images)} apart; {confusions} confusions"
            )
            found.append(Suggestion(action, evidence))
    return found


def _notes(classes: list[ClassResult], choice: PromptChoice | None) -> list[str]:
    notes: list[str] = []
    middle = int(np.median([item.images for item in classes if item.images]))
    if middle < FEW:
        notes.append(f"Few labels: {counted(middle, 'image')} a class at the median. Only large effects can show.")
    if absent := [item.label for item in classes if not item.images]:
        shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        notes.append(
            f"No images of {len(absent)} of {len(classes)} classes ({shown}): of them only the text was looked at."
        )
    if choice is None:
        return [*notes, "Too few images to choose on one half and test on the other: no change was tried."]
    if not choice.recommended:
        notes.append("No change of templates or names is beyond noise: keep them as they are.")
    if not choice.claims:
        return [*notes, "No change looked worth trying on the half that chooses."]
    least = (
        "no gain at all could"
        if choice.least_points > 100
        else f"a gain below {choice.least_points:.1f} points could not"
    )
    return [*notes, f"Tested on {counted(choice.tested_on, 'image')}: {least} be told from noise there."]

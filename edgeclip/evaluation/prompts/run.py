"""A bundle, folders of images and prompts in, a study of the prompts with the images behind it out; or its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.calibration.hashed_images import files
from edgeclip.calibration.images import find_images
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.data.class_sets import plain_name
from edgeclip.evaluation.data.dataset import Items, LabelledSet, open_labelled
from edgeclip.evaluation.prompts.claims import Change, changed_rows
from edgeclip.evaluation.prompts.rows import IntArray, PromptRows, prompt_rows
from edgeclip.evaluation.prompts.study import Study, study_prompts
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.prompts import FloatArray, PromptClass, PromptTable, make_classes
from edgeclip.runtime.images import Image

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StudyOptions:
    """What is studied.

    Attributes:
        data: images of known class; None for none.
        unlabelled: a folder of images of no known class; None for none.
        names: file of the classes' names, for ``data``.
        classes: the classes; with ``data`` its folders are found among their labels, and those without a folder have
            no images. Empty for the folders' own names, or those in ``names``.
        templates: to study.
        variant: form of the encoder that embeds the images; better the one that will run.
        seed: of the halves.
    """

    data: str | None = None
    unlabelled: Path | None = None
    names: Path | None = None
    classes: tuple[PromptClass, ...] = ()
    templates: tuple[str, ...] = ()
    variant: str = "fp32"
    seed: int = 0


class PromptReport(msgspec.Struct, frozen=True):
    """A study, and what it is of.

    Attributes:
        data, unlabelled: where the images are; None if there are none.
        failed: images of both that could not be decoded, and samples without an image or label.
        prompts: names × templates.
    """

    data: str | None
    unlabelled: str | None
    failed: int
    prompts: int
    model: str
    model_id: str
    variant: str
    seed: int
    study: Study
    machine: Description


@dataclass(frozen=True)
class Gallery:
    """Labelled images and what they were labelled as, for people to look at.

    Attributes:
        items: N images.
        truth, said: (N,) rows of the true class and of the label, with all names and templates.
        labels: of the classes.
    """

    items: Items
    truth: IntArray
    said: IntArray
    labels: tuple[str, ...]

    def of(self, truth: str, said: str | None = None, *, most: int) -> list[int]:
        """The first images of a class that were labelled as another one; as any other if None."""
        own = self.truth == self.labels.index(truth)
        wanted = self.said != self.truth if said is None else self.said == self.labels.index(said)
        return [int(row) for row in np.flatnonzero(own & wanted)[:most]]

    def said_of(self, row: int) -> str:
        """The label of an image."""
        return self.labels[int(self.said[row])]

    def read(self, rows: Sequence[int]) -> dict[int, Image]:
        """Decode images by row; what can no longer be read is left out."""
        found: dict[int, Image] = {}
        wanted = sorted(set(rows))
        for row, item in zip(wanted, self.items.take(wanted), strict=True):
            try:
                found[row] = item.read()
            except SourceError:
                continue
        return found


class Studied(NamedTuple):
    """A report, the rows that it is of, and the labelled images if there are any."""

    report: PromptReport
    prompts: PromptRows
    gallery: Gallery | None


def study_bundle(bundle: Bundle, options: StudyOptions, *, progress: Progress | None = None) -> Studied:
    """Embed images and prompts, each once, and study them.

    Args:
        progress: called with (what, done, in all).

    Raises:
        InputError: no images or classes are given, or folders that are no class.
        SourceError: no image that can be decoded.
        VariantError: no such variant.
        ModelError: the text encoder cannot be loaded, or is not the one that the bundle was made with.
    """

    def watch(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    # What is to be embedded.
    bundle.variant(options.variant)  # a misspelt one should not be found out after the prompts are encoded
    if options.data is None and options.unlabelled is None:
        raise InputError("expected images: --data with one folder a class, --unlabelled with any, or both")
    if options.names and options.classes:
        raise InputError("expected --names or --classes, got both: names can be given with the classes")
    given = open_labelled(options.data, options.names) if options.data else None
    classes = options.classes or (given.classes if given else ())
    if not classes:
        raise InputError('expected --classes with images that have no labels: for example "mug | cup, bottle, book"')
    folders = _class_of_folder(given, classes) if given else np.zeros(0, np.int64)
    others = files(find_images(options.unlabelled)) if options.unlabelled else []

    # Embeddings.
    prompts = prompt_rows(bundle, classes, options.templates, progress=watch("prompts"))
    images: FloatArray = np.zeros((0, bundle.manifest.encoder.embedding_dim), np.float32)
    labels, failed, unlabelled, kept = np.zeros(0, np.int64), 0, None, np.zeros(0, np.int64)
    if given:
        embedded = image_embeddings(bundle, options.variant, given.items, progress=watch("images"))
        kept = np.flatnonzero(embedded.keep)
        images, labels = embedded.rows[kept], folders[given.labels[kept]]
        failed = len(given.items) - len(kept) + given.damaged.count
    if options.unlabelled:
        embedded = image_embeddings(bundle, options.variant, others, progress=watch("images without labels"))
        unlabelled = embedded.rows[embedded.keep]
        failed += int((~embedded.keep).sum())

    # The study.
    study = study_prompts(
        prompts,
        images,
        labels,
        unlabelled=unlabelled,
        logit_scale=bundle.manifest.encoder.logit_scale,
        seed=options.seed,
        progress=watch("templates"),
    )
    report = PromptReport(
        data=given.name if given else None,
        unlabelled=str(options.unlabelled) if options.unlabelled else None,
        failed=failed,
        prompts=len(prompts.names) * len(prompts.templates),
        model=bundle.manifest.model.name,
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        seed=options.seed,
        study=study,
        machine=describe_machine(),
    )
    if given is None:
        return Studied(report, prompts, None)
    said = predictions(images, prompts.class_rows(), labels).predicted
    return Studied(report, prompts, Gallery(given.items.take(kept), labels, said, prompts.labels))


def recommended_table(studied: Studied, *, name: str) -> PromptTable:
    """The table that a study recommends: with the changes that are beyond noise, or with everything as it was given."""
    prompts, verdict = studied.prompts, studied.report.study.verdict
    change = (verdict.recommended if verdict else None) or Change(list(prompts.templates), {})
    names = {item.label: list(item.names) for item in prompts.classes} | change.names
    rows = changed_rows(prompts, change)
    return PromptTable(name, make_classes(names), rows, tuple(change.templates), studied.report.model_id)


def _class_of_folder(given: LabelledSet, classes: Sequence[PromptClass]) -> IntArray:
    """(F,) row of the class that each folder is of."""
    row_of = {plain_name(item.label): row for row, item in enumerate(classes)}
    if strange := [folder for folder in given.folders if plain_name(folder) not in row_of]:
        raise InputError(
            f"expected the folders of {given.name} among the classes, got {', '.join(strange[:5])}: add them or leave "
            "the folders out"
        )
    return np.array([row_of[plain_name(folder)] for folder in given.folders], np.int64)

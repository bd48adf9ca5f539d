"""Prompt rows and embeddings of images, labelled or not, in; what each template and name is worth out."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from edgeclip.errors import InputError
from edgeclip.evaluation.prompts.agreement import Agreement, study_agreement
from edgeclip.evaluation.prompts.claims import Verdict, changed_rows, try_changes
from edgeclip.evaluation.prompts.names import ClassNames, study_names
from edgeclip.evaluation.prompts.pairs import ALIKE, NAMES, TEXT_ONLY, PairStudy, study_pairs
from edgeclip.evaluation.prompts.rows import IntArray, PromptRows
from edgeclip.evaluation.prompts.templates import Subset, TemplateResult, halves, study_subset, study_templates
from edgeclip.evaluation.statistics.metrics import predictions, top_k
from edgeclip.evaluation.statistics.paired import Hits
from edgeclip.prompts import FloatArray

ALPHA = 0.05  # chance of any false claim in a study: half for changes of prompts, half for pairs of classes
FEW = 10  # labelled images a class: with fewer, only large effects show
_SUSPECT = 0.95  # of a pair's text cosine among all: what is looked at where there are no images


class ClassResult(msgspec.Struct, frozen=True):
    """A class: its names, labelled images, how many of those are right, and the label most wrong ones got."""

    label: str
    names: list[str]
    images: int
    right: int
    mistaken_for: str | None = None


class Suggestion(msgspec.Struct, frozen=True):
    """What to do, why, and whether that rests on accuracy (and is beyond noise) or only on agreement or text."""

    action: str
    evidence: str
    on: str


class Study(msgspec.Struct, frozen=True):
    """Everything that a study found.

    Attributes:
        classes: in row order.
        templates: that were given.
        images: labelled ones; 0 if there are none, and then nothing here is accuracy.
        top1, ci95: with all names and templates, and its Wilson interval.
        template_results: each template on all labelled images; intervals are each template's own.
        subset: a greedy choice; None with fewer than two templates or images on either half.
        names: classes that have several.
        pairs: of classes, with the change of prompts that is recommended if there is one.
        verdict: of the changes that were tried; None where there are no labels to try them on.
        agreement: of images without labels, if there were any.
        suggestions: empty if nothing is beyond noise.
        notes: what limits the study, in words.
    """

    classes: list[ClassResult]
    templates: list[str]
    images: int
    top1: float | None
    ci95: tuple[float, float] | None
    template_results: list[TemplateResult]
    subset: Subset | None
    names: list[ClassNames]
    pairs: PairStudy
    verdict: Verdict | None
    agreement: Agreement | None
    suggestions: list[Suggestion]
    notes: list[str]


def study_prompts(
    prompts: PromptRows,
    images: FloatArray,
    labels: IntArray,
    *,
    unlabelled: FloatArray | None = None,
    logit_scale: float = 100.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Study prompts on unit embeddings.

    Args:
        images, labels: (N, D) and (N,), index of each one's class; N may be 0.
        unlabelled: (M, D), of no known class.
        logit_scale: of the model.
        seed: of the halves.
        progress: called with (templates done, templates in all).

    Raises:
        InputError: fewer than two classes, or no image at all.
    """
    if len(prompts.classes) < 2:
        raise InputError(f"expected two classes or more to tell apart, got {len(prompts.classes)}: give more")
    if not len(images) and (unlabelled is None or not len(unlabelled)):
        raise InputError("expected images, labelled or not, got none")
    rows = prompts.class_rows()
    results: list[TemplateResult] = []
    names: list[ClassNames] = []
    subset: Subset | None = None
    verdict: Verdict | None = None
    if len(images):
        results = study_templates(prompts, images, labels, progress=progress)
        names = study_names(prompts, images, labels)
        choose, test = halves(labels, seed)
        if len(choose) and len(test):
            if len(prompts.templates) > 1:
                subset = study_subset(prompts, images, labels, choose, test)
            verdict = try_changes(prompts, images, labels, (choose, test), subset, alpha=ALPHA / 2)
    ranks, said = predictions(images, rows, labels)
    best = top_k(ranks, 1) if len(images) else None
    classes = _classes(prompts, labels, said, ranks == 0)
    # What a change of prompts mends is not to be blamed on names.
    mended = changed_rows(prompts, verdict.recommended) if verdict and verdict.recommended else rows
    pairs = study_pairs(mended, prompts.labels, images, labels, alpha=ALPHA / 2)
    agreement = None
    if unlabelled is not None and len(unlabelled):
        agreement = study_agreement(prompts, unlabelled, logit_scale=logit_scale)
    return Study(
        classes=classes,
        templates=list(prompts.templates),
        images=len(images),
        top1=best.value if best else None,
        ci95=best.ci95 if best else None,
        template_results=results,
        subset=subset,
        names=names,
        pairs=pairs,
        verdict=verdict,
        agreement=agreement,
        suggestions=_suggestions(verdict, pairs, agreement, labelled=bool(len(images))),
        notes=_notes(classes, verdict, agreement, labelled=bool(len(images))),
    )


def _classes(prompts: PromptRows, labels: IntArray, said: IntArray, hits: Hits) -> list[ClassResult]:
    found: list[ClassResult] = []
    for index, item in enumerate(prompts.classes):
        own = labels == index
        wrong = np.bincount(said[own & (said != index)], minlength=len(prompts.classes))
        mistaken = prompts.labels[int(wrong.argmax())] if wrong.any() else None
        found.append(ClassResult(item.label, list(item.names), int(own.sum()), int(hits[own].sum()), mistaken))
    return found


def _suggestions(
    verdict: Verdict | None, pairs: PairStudy, agreement: Agreement | None, *, labelled: bool
) -> list[Suggestion]:
    found: list[Suggestion] = []
    for claim in verdict.claims if verdict else []:
        if claim.beyond_noise:
            kept = claim.change.templates
            dropped = not claim.change.names and claim.what.startswith("without")
            listed = f": {'; '.join(kept)}" if not (claim.change.names or dropped) and len(kept) <= 12 else ""
            found.append(
                Suggestion(
                    f"{'Go' if dropped else 'Use'} {claim.what}{listed}",
                    f"top-1 {claim.difference} on the half that had no say in the choice",
                    "accuracy",
                )
            )
    for pair in pairs.nearest:
        shown = f"“{pair.first}” and “{pair.second}”"
        if pair.verdict == NAMES and pair.gap:
            found.append(
                Suggestion(
                    f"Try other names for {shown}: they are closer than their images",
                    f"text tells {pair.text_right:.0%} of the two's images apart, the images themselves "
                    f"{pair.images_right:.0%}: {pair.gap}; text cosine {pair.text_cosine:.2f}, "
                    f"{sum(pair.confusions)} confusions",
                    "accuracy",
                )
            )
        elif pair.verdict == ALIKE and pair.gap:
            found.append(
                Suggestion(
                    f"Merge {shown}, or accept that they are mixed up: no name can help this encoder",
                    f"even the mean of each class's other images tells only {pair.images_right:.0%} of "
                    f"{pair.gap.n} apart; {sum(pair.confusions)} confusions",
                    "accuracy",
                )
            )
    suspects = [item for item in pairs.nearest if item.verdict == TEXT_ONLY and item.closer_than >= _SUSPECT]
    for pair in suspects[:3]:
        found.append(
            Suggestion(
                f"Look at images of “{pair.first}” and “{pair.second}”",
                f"text cosine {pair.text_cosine:.2f}, closer than {pair.closer_than:.0%} of pairs; there are too few "
                "labelled images to say whether that matters",
                "text",
            )
        )
    if agreement:
        found.extend(
            Suggestion(
                f"Look at the template “{item.template}”: it stands apart",
                f"alone it labels {item.agreement:.0%} of images as all do "
                f"(95 % {item.ci95[0]:.0%}–{item.ci95[1]:.0%}), the median template "
                f"{np.median([other.agreement for other in agreement.templates]):.0%}; "
                "that is agreement, not accuracy" + (": the labelled part decides" if labelled else ""),
                "agreement",
            )
            for item in agreement.templates
            if item.apart
        )
    return found


def _notes(
    classes: list[ClassResult], verdict: Verdict | None, agreement: Agreement | None, *, labelled: bool
) -> list[str]:
    notes: list[str] = []
    if labelled:
        with_images = [item.images for item in classes if item.images]
        middle = int(np.median(with_images))
        if middle < FEW:
            notes.append(f"Few labels: {middle} images a class at the median. Only large effects can show.")
        if absent := [item.label for item in classes if not item.images]:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            notes.append(
                f"No images of {len(absent)} of {len(classes)} classes ({shown}): of them only the text was looked at."
            )
        if verdict and not verdict.recommended:
            notes.append("No change of templates or names is beyond noise: keep them as they are.")
        if verdict is None:
            notes.append("Too few images to choose on one half and test on the other: no change was tried.")
        elif verdict.claims:
            least = (
                f"a gain below {verdict.least_points:.1f} points" if verdict.least_points <= 100 else "no gain at all"
            )
            could = "could not" if verdict.least_points <= 100 else "could"
            notes.append(f"Tested on {verdict.tested_on:,} images: {least} {could} be told from noise there.")
        else:
            notes.append("No change looked worth trying on the half that chooses.")
    else:
        notes.append("No labels: nothing here is accuracy. Agreement says what differs, not what is right.")
    if agreement and labelled:
        notes.append("The part without labels measures agreement, not accuracy.")
    return notes

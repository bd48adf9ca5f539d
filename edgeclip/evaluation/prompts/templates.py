"""Labelled embeddings and prompt rows in, what each template adds, and the few that do best together, out."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.rows import IntArray, PromptRows, hits_of, margins_of
from edgeclip.evaluation.statistics.paired import PairedDifference, paired_difference
from edgeclip.prompts import FloatArray, unit_rows

MOST_TEMPLATES = 10
_MOST_IMAGES = 4000  # to choose on: more would make a choice of 80 templates take minutes


class TemplateResult(msgspec.Struct, frozen=True):
    """One template beside all of them together, on the same images.

    Attributes:
        alone: a table of it alone.
        left_out: a table of all the others; above 0 where the template does harm. None where there is no other.
    """

    template: str
    alone: PairedDifference
    left_out: PairedDifference | None


class Step(msgspec.Struct, frozen=True):
    """A template that greedy choice took, and the top-1 so far on the half it chose by and on the other half."""

    template: str
    chosen_on: float
    tested_on: float


class Subset(msgspec.Struct, frozen=True):
    """A greedy choice of templates.

    Attributes:
        path: every step that was tried, in order.
        templates: the first of them that were best on the half they were chosen by.
        difference: those beside all templates, on the other half.
        all_tested_on: top-1 of all templates on the other half.
        other_half: what is chosen if the halves change places.
    """

    path: list[Step]
    templates: list[str]
    difference: PairedDifference
    all_tested_on: float
    other_half: list[str]

    @property
    def chosen_twice(self) -> int:
        """Templates that both halves choose."""
        return len(set(self.templates) & set(self.other_half))


def halves(labels: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    """Indices of one half of the images, to choose on, and of the other, to test on; each class in halves.

    Of an odd number of images, and so of a single one, chance says which half gets one more.
    """
    chooser = np.random.default_rng(seed)
    first: list[IntArray] = []
    for label in np.unique(labels):
        own = chooser.permutation(np.flatnonzero(labels == label))
        first.append(own[: (len(own) + int(chooser.integers(2))) // 2])
    chosen = np.sort(np.concatenate(first)) if first else np.zeros(0, np.int64)
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def study_templates(
    prompts: PromptRows,
    images: FloatArray,
    labels: IntArray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[TemplateResult]:
    """Each template alone and left out, against all together.

    Args:
        images: (N, D) unit embeddings.
        labels: (N,) index of each one's class.
    """
    reference = hits_of(images, labels, prompts.class_rows())
    results: list[TemplateResult] = []
    count = len(prompts.templates)
    for index, template in enumerate(prompts.templates):
        alone = hits_of(images, labels, prompts.class_rows([index]))
        others = hits_of(images, labels, prompts.without_template(index)) if count > 1 else None
        results.append(
            TemplateResult(
                template,
                paired_difference(reference, alone),
                None if others is None else paired_difference(reference, others),
            )
        )
        if progress:
            progress(index + 1, count)
    return results


def study_subset(prompts: PromptRows, images: FloatArray, labels: IntArray, choose: IntArray, test: IntArray) -> Subset:
    """Choose templates greedily on some of the images and compare them with all templates on the others.

    Args:
        choose, test: indices of images, from ``halves``; neither may be empty.
    """
    path = _greedy(prompts, images[choose], labels[choose])
    reference = hits_of(images[test], labels[test], prompts.class_rows())
    steps: list[Step] = []
    for count in range(1, len(path) + 1):
        rows = prompts.class_rows(path[:count])
        on = [float(hits_of(images[half], labels[half], rows).mean()) for half in (choose, test)]
        steps.append(Step(prompts.templates[path[count - 1]], *on))
    best = _best([step.chosen_on for step in steps])
    back = _greedy(prompts, images[test], labels[test])
    prefixes = [prompts.class_rows(back[: count + 1]) for count in range(len(back))]
    scores = [float(hits_of(images[test], labels[test], rows).mean()) for rows in prefixes]
    candidate = hits_of(images[test], labels[test], prompts.class_rows(path[:best]))
    return Subset(
        path=steps,
        templates=[step.template for step in steps[:best]],
        difference=paired_difference(reference, candidate),
        all_tested_on=float(reference.mean()),
        other_half=[prompts.templates[index] for index in back[: _best(scores)]],
    )


def _best(scores: list[float]) -> int:
    """How many steps to take: the fewest of those that score highest."""
    return int(np.argmax(scores)) + 1


def _greedy(prompts: PromptRows, images: FloatArray, labels: IntArray) -> list[int]:
    """Templates in the order in which each adds most hits to those before it; of equals, the larger mean margin."""
    if len(images) > _MOST_IMAGES:
        few = np.linspace(0, len(images) - 1, _MOST_IMAGES).astype(np.int64)
        images, labels = images[few], labels[few]
    of_template = [prompts.by_template[:, index] for index in range(len(prompts.templates))]  # T times (C, D)
    total = np.zeros_like(of_template[0])
    chosen: list[int] = []
    while len(chosen) < min(MOST_TEMPLATES, len(of_template)):
        found: dict[int, tuple[int, float]] = {}
        for index in set(range(len(of_template))).difference(chosen):
            scored = margins_of(images, labels, unit_rows(total + of_template[index]))
            found[index] = (int(scored.hits.sum()), float((scored.own - scored.rival).mean()))
        best = max(sorted(found), key=lambda index: found[index])
        chosen.append(best)
        total = total + of_template[best]
    return chosen

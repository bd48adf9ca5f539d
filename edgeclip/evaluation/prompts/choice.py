"""Labelled embeddings and prompt rows in; what each template and name is worth, and a choice of them, out.

What a template or a name is worth is told on all images. A choice is made on one half of them and tested on the other:
what it gains where it chooses is partly chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.rows import IntArray, PromptRows, hits_of
from edgeclip.evaluation.statistics.paired import PairedDifference, holm, mcnemar_p, paired_difference
from edgeclip.hits import Hits
from edgeclip.prompts import FloatArray

MOST_TEMPLATES = 10
_MOST_IMAGES = 4000  # to choose templates on: more would make a choice of 80 take minutes
_LIKELY = 0.2  # p value, on the half that chooses, up to which fewer names are taken; less likely ones only blur them


class Contribution(msgspec.Struct, frozen=True):
    """A template, or a name of a class that has several, beside all of them together on the same images.

    Attributes:
        what: the template or the name.
        label: the class of a name, whose other names it is compared with; empty for a template.
        top1: of a table of it alone; of a name: its class has this name only.
        alone: that, beside all.
        left_out: a table without it, beside all; above 0 where it does harm. None where there is no other.
    """

    what: str
    label: str
    top1: float
    alone: PairedDifference
    left_out: PairedDifference | None


class Change(msgspec.Struct, frozen=True):
    """Names and templates that a table would be made of in place of all that were given.

    Attributes:
        templates: those kept.
        names: those kept, for each class that loses some.
    """

    templates: list[str]
    names: dict[str, list[str]]


class Step(msgspec.Struct, frozen=True):
    """A template that greedy choice took, and the top-1 so far on the half it chose by and on the other half."""

    template: str
    chosen_on: float
    tested_on: float


class Claim(msgspec.Struct, frozen=True):
    """A change, and what it brings on images that had no say in its choice.

    Attributes:
        what: in words.
        difference: beside all names and templates.
        p_adjusted: of the exact test of McNemar, for all changes that were tried (Holm).
        beyond_noise: better, and ``p_adjusted`` within the chance of error that was allowed.
    """

    what: str
    change: Change
    difference: PairedDifference
    p_adjusted: float
    beyond_noise: bool


class PromptChoice(msgspec.Struct, frozen=True):
    """Names and templates chosen on one half of the images, tested on the other.

    Attributes:
        steps: of the greedy choice of templates, in order; the first of them that were best are claimed.
        all_tested_on: top-1 of all names and templates on the half that tests.
        claims: the chosen templates, and the chosen names; a choice of everything is no claim.
        tested_on: images of the half that tests.
        least_points: gain below which nothing could be claimed on so many images, were it never for the worse.
        recommended: what is beyond noise, together; None if nothing is.
        together: that, beside all names and templates, on the same half.
    """

    steps: list[Step]
    all_tested_on: float
    claims: list[Claim]
    tested_on: int
    least_points: float
    recommended: Change | None
    together: PairedDifference | None


def contributions(
    prompts: PromptRows,
    images: FloatArray,
    labels: IntArray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Contribution]:
    """Each template, then each name of a class that has several, alone and left out.

    Args:
        images: (N, D) unit embeddings.
        labels: (N,) index of each one's class.
        progress: called with (templates done, templates in all).
    """
    scored = _margins(images, labels, prompts.class_rows())
    count = len(prompts.templates)

    def contribution(what: str, label: str, alone: Hits, without: Hits | None) -> Contribution:
        left_out = None if without is None else paired_difference(scored.hits, without)
        return Contribution(what, label, float(alone.mean()), paired_difference(scored.hits, alone), left_out)

    found = []
    for index, template in enumerate(prompts.templates):
        alone = hits_of(images, labels, prompts.class_rows([index]))
        without = hits_of(images, labels, prompts.without_template(index)) if count > 1 else None
        found.append(contribution(template, "", alone, without))
        if progress:
            progress(index + 1, count)
    for row, item in enumerate(prompts.classes):
        for name in item.names if len(item.names) > 1 else ():
            others = [other for other in item.names if other != name]
            alone, without = (_hits_with(prompts, images, labels, scored, row, kept) for kept in ([name], others))
            found.append(contribution(name, item.label, alone, without))
    return found


def choose(
    prompts: PromptRows, images: FloatArray, labels: IntArray, *, seed: int, alpha: float
) -> PromptChoice | None:
    """Choose templates and names on one half of the images, and test both choices on the other.

    Args:
        seed: of the halves.
        alpha: chance of any false claim.

    Returns:
        None with too few images for two halves.
    """
    first, second = halves(labels, seed)
    if not len(first) or not len(second):
        return None
    own, own_labels, others, their_labels = images[first], labels[first], images[second], labels[second]
    reference = hits_of(others, their_labels, prompts.class_rows())

    # On the first half.
    every = list(prompts.templates)
    order = _greedy(prompts, own, own_labels)
    steps = [
        Step(
            every[index],
            float(hits_of(own, own_labels, prompts.class_rows(order[: count + 1])).mean()),
            float(hits_of(others, their_labels, prompts.class_rows(order[: count + 1])).mean()),
        )
        for count, index in enumerate(order)
    ]
    best = int(np.argmax([step.chosen_on for step in steps])) + 1  # the fewest of those that score highest
    kept = [every[index] for index in sorted(order[:best])]
    tried = []
    if len(kept) < len(every):
        tried.append((f"only {len(kept)} of {len(every)} templates", Change(kept, {})))
    if names := _likely_names(prompts, own, own_labels):
        listed = "; ".join(f"{label}: {', '.join(few)}" for label, few in names.items())
        tried.append((f"fewer names for {len(names)} class{'es' * (len(names) > 1)} ({listed})", Change(every, names)))

    # On the second.
    def on_others(change: Change) -> PairedDifference:
        return paired_difference(reference, hits_of(others, their_labels, changed_rows(prompts, change)))

    differences = [on_others(change) for _, change in tried]
    adjusted = holm([mcnemar_p(difference) for difference in differences])
    claims = [
        Claim(what, change, difference, p, difference.points > 0 and p <= alpha)
        for (what, change), difference, p in zip(tried, differences, adjusted, strict=True)
    ]
    shown = [claim.change for claim in claims if claim.beyond_noise]
    recommended = None
    if shown:
        names = {label: few for change in shown for label, few in change.names.items()}
        recommended = Change(min((change.templates for change in shown), key=len), names)
    return PromptChoice(
        steps=steps,
        all_tested_on=float(reference.mean()),
        claims=claims,
        tested_on=len(second),
        least_points=100 * fewest_to_claim(len(claims), alpha) / len(second),
        recommended=recommended,
        together=on_others(recommended) if recommended else None,
    )


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


def changed_rows(prompts: PromptRows, change: Change) -> FloatArray:
    """Rows (C, D) of a table after a change."""
    templates = [prompts.templates.index(template) for template in change.templates]
    return prompts.class_rows(templates, names=change.names)


def fewest_to_claim(tests: int, alpha: float) -> int:
    """How many images have to change for the better, and none for the worse, before one of ``tests`` can be claimed."""
    return math.ceil(math.log2(2 * max(tests, 1) / alpha))


def _greedy(prompts: PromptRows, images: FloatArray, labels: IntArray) -> list[int]:
    """Up to ten templates in the order in which each adds most hits to those before it; of equals the first given."""
    if len(images) > _MOST_IMAGES:
        few = np.linspace(0, len(images) - 1, _MOST_IMAGES).astype(np.int64)
        images, labels = images[few], labels[few]
    chosen: list[int] = []
    rest = list(range(len(prompts.templates)))
    while rest and len(chosen) < MOST_TEMPLATES:
        hits = [int(hits_of(images, labels, prompts.class_rows([*chosen, index])).sum()) for index in rest]
        chosen.append(rest.pop(int(np.argmax(hits))))
    return chosen


def _likely_names(prompts: PromptRows, images: FloatArray, labels: IntArray) -> dict[str, list[str]]:
    """For each class its best names, one of them or all but one, where they are likely better than all."""
    scored = _margins(images, labels, prompts.class_rows())
    better = {}
    for row, item in enumerate(prompts.classes):
        if len(item.names) < 2:
            continue
        parts = [[name] for name in item.names]
        if len(item.names) > 2:
            parts += [[other for other in item.names if other != name] for name in item.names]
        hits = [_hits_with(prompts, images, labels, scored, row, kept) for kept in parts]
        best = int(np.argmax([found.sum() for found in hits]))
        gain = paired_difference(scored.hits, hits[best])
        if gain.points > 0 and mcnemar_p(gain) <= _LIKELY:
            better[item.label] = parts[best]
    return better


class _Margins(NamedTuple):
    """Of N images, all (N,): cosine with the own class, the highest of another, which that is, the highest of the rest.

    The last is -1 where there are two classes.
    """

    own: FloatArray
    rival: FloatArray
    rival_class: IntArray
    second: FloatArray

    @property
    def hits(self) -> Hits:
        """(N,) which are labelled right; a tie is no hit."""
        return self.own > self.rival


def _margins(images: FloatArray, labels: IntArray, rows: FloatArray) -> _Margins:
    scores, at = images @ rows.T, np.arange(len(images))  # (N, C)
    own = scores[at, labels]
    scores[at, labels] = -1
    rival_class = scores.argmax(axis=1)
    rival = scores[at, rival_class]
    scores[at, rival_class] = -1
    return _Margins(own, rival, rival_class, scores.max(axis=1))


def _hits_with(
    prompts: PromptRows, images: FloatArray, labels: IntArray, scored: _Margins, row: int, names: list[str]
) -> Hits:
    """(N,) which images are labelled right if one class has these of its names only: of all cosines one changes."""
    mine = images @ prompts.class_row(row, names)  # (N,)
    others = np.where(scored.rival_class == row, scored.second, scored.rival)
    hits: Hits = np.where(labels == row, mine > scored.rival, scored.own > np.maximum(others, mine))
    return hits

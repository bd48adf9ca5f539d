"""Changes of prompts chosen on one half of labelled images in, those that are beyond noise on the other half out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.names import NameOption, kept_names, study_names
from edgeclip.evaluation.prompts.rows import IntArray, PromptRows, hits_of
from edgeclip.evaluation.prompts.templates import Subset
from edgeclip.evaluation.statistics.paired import PairedDifference, paired_difference
from edgeclip.evaluation.statistics.significance import fewest_to_claim, holm, mcnemar_p
from edgeclip.prompts import FloatArray

MOST_SINGLE = 3  # templates, and classes, that are tried by themselves: each more makes all of them harder to show
_LIKELY = 0.2  # p value, on the half that chooses, up to which a class's names are tried
_WORTH_TRYING = 2  # images that have to become right on the half that chooses


class Change(msgspec.Struct, frozen=True):
    """Names and templates that a table would be made of in place of all that were given.

    Attributes:
        templates: those kept.
        names: those kept, for each class that loses some.
    """

    templates: list[str]
    names: dict[str, list[str]]


class Claim(msgspec.Struct, frozen=True):
    """A change, and what it brought on images that had no say in its choice.

    Attributes:
        what: in words.
        difference: beside all names and templates.
        p: of the exact test of McNemar.
        p_adjusted: the same for all changes that were tried (Holm).
        beyond_noise: better, and ``p_adjusted`` within the chance of error that was allowed.
    """

    what: str
    change: Change
    difference: PairedDifference
    p: float
    p_adjusted: float
    beyond_noise: bool


class Verdict(msgspec.Struct, frozen=True):
    """All changes that were tried, and what is recommended.

    Attributes:
        tested_on: images of the half that had no say.
        least_points: gain below which no change could be claimed on so many images, were it never for the worse.
        recommended: everything that is beyond noise, together; None if nothing is.
        together: that, beside all names and templates, on the same half.
    """

    claims: list[Claim]
    tested_on: int
    least_points: float
    recommended: Change | None
    together: PairedDifference | None


class _Tried(NamedTuple):
    what: str
    change: Change


def try_changes(
    prompts: PromptRows,
    images: FloatArray,
    labels: IntArray,
    split: tuple[IntArray, IntArray],
    subset: Subset | None,
    *,
    alpha: float,
) -> Verdict:
    """Choose changes on one half and test each on the other.

    Args:
        split: the halves (``halves``), the one to choose on first.
        subset: of templates, chosen on the same half.
        alpha: chance of any false claim among all that are made.
    """
    choose, test = split
    of_templates = _harmful_templates(prompts, images[choose], labels[choose])
    if subset and len(subset.templates) < len(prompts.templates):
        kept = [template for template in prompts.templates if template in subset.templates]
        if all(item.change.templates != kept for item in of_templates):
            what = f"only {len(kept)} of {len(prompts.templates)} templates"
            of_templates.append(_Tried(what, Change(kept, {})))
    tried = of_templates + _better_names(prompts, images[choose], labels[choose])
    reference = hits_of(images[test], labels[test], prompts.class_rows())

    def compare(change: Change) -> PairedDifference:
        rows = changed_rows(prompts, change)
        return paired_difference(reference, hits_of(images[test], labels[test], rows))

    differences = [compare(item.change) for item in tried]
    p_values = [mcnemar_p(item.only_reference, item.only_candidate) for item in differences]
    claims = [
        Claim(item.what, item.change, difference, p, adjusted, difference.points > 0 and adjusted <= alpha)
        for item, difference, p, adjusted in zip(tried, differences, p_values, holm(p_values), strict=True)
    ]
    options = _together(prompts, claims)
    recommended = max(options, key=lambda change: compare(change).points, default=None)
    return Verdict(
        claims=claims,
        tested_on=len(test),
        least_points=100 * fewest_to_claim(len(claims), alpha) / len(test),
        recommended=recommended,
        together=compare(recommended) if recommended else None,
    )


def changed_rows(prompts: PromptRows, change: Change) -> FloatArray:
    """Rows (C, D) of a table after a change."""
    templates = [prompts.templates.index(template) for template in change.templates]
    return prompts.class_rows(templates, kept=kept_names(prompts, change.names) if change.names else None)


def _harmful_templates(prompts: PromptRows, images: FloatArray, labels: IntArray) -> list[_Tried]:
    """The few templates without which most images more are labelled right."""
    if len(prompts.templates) < 2:
        return []
    right = int(hits_of(images, labels, prompts.class_rows()).sum())
    gains = np.array(
        [
            int(hits_of(images, labels, prompts.without_template(index)).sum()) - right
            for index in range(len(prompts.templates))
        ]
    )
    worst = [int(index) for index in np.argsort(-gains, kind="stable")[:MOST_SINGLE] if gains[index] >= _WORTH_TRYING]
    return [
        _Tried(f"without the template “{prompts.templates[index]}”", _without(prompts, {prompts.templates[index]}))
        for index in worst
    ]


def _without(prompts: PromptRows, left_out: set[str]) -> Change:
    return Change([template for template in prompts.templates if template not in left_out], {})


def _better_names(prompts: PromptRows, images: FloatArray, labels: IntArray) -> list[_Tried]:
    """For each class its best names, if they are better than all: those of all such classes together, then singly."""
    better = {
        item.label: item.winner
        for item in study_names(prompts, images, labels)
        if item.winner and item.winner.net >= _WORTH_TRYING and _likely(item.winner.difference)
    }
    templates = list(prompts.templates)
    tried: list[_Tried] = []
    if len(better) > 1:
        what = f"fewer names for {len(better)} classes: " + ", ".join(
            f"{label} ({option.what})" for label, option in better.items()
        )
        tried.append(_Tried(what, Change(templates, {label: option.names for label, option in better.items()})))
    for label, option in sorted(better.items(), key=lambda item: -item[1].net)[:MOST_SINGLE]:
        tried.append(_Tried(_in_words(label, option), Change(templates, {label: option.names})))
    return tried


def _likely(difference: PairedDifference) -> bool:
    """Whether a gain is likely enough to be tried; what is not would blur the choices that are tried with it."""
    return mcnemar_p(difference.only_reference, difference.only_candidate) <= _LIKELY


def _in_words(label: str, option: NameOption) -> str:
    how, _, name = option.what.partition(" ")
    return f"only the name “{name}” for {label}" if how == "only" else f"{label} without the name “{name}”"


def _together(prompts: PromptRows, claims: Sequence[Claim]) -> list[Change]:
    """Everything beyond noise at once: all names, and of templates either what no claim leaves out or the subset."""
    shown = [item.change for item in claims if item.beyond_noise]
    if not shown:
        return []
    names: dict[str, list[str]] = {}
    for change in reversed(shown):  # the joint choice comes first and has the last word; it holds the single ones
        names.update(change.names)
    fewer = [change.templates for change in shown if len(change.templates) < len(prompts.templates)]
    single = [kept for kept in fewer if len(kept) == len(prompts.templates) - 1]
    common = [template for template in prompts.templates if all(template in kept for kept in single)]
    choices = [common] if single or not fewer else []
    return [Change(kept, names) for kept in [*choices, *(kept for kept in fewer if kept not in single)] if kept]

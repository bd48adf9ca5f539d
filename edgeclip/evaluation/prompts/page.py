"""A prompt study and its images in, one HTML page with plots and examples out.

A prompt study and its labelled images in, example images of mistakes as HTML out.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.devices.machine.probe import summary
from edgeclip.evaluation.html_page import (
    Markup,
    Span,
    element,
    interval,
    join,
    lines,
    page,
    picture,
    scale,
    span_of,
    table,
)
from edgeclip.evaluation.prompts.agreement import Agreement
from edgeclip.evaluation.prompts.pairs import ALIKE, NAMES, TEXT_ONLY, Pair
from edgeclip.evaluation.prompts.report import NOTHING, hurting
from edgeclip.evaluation.prompts.run import Gallery, PromptReport
from edgeclip.evaluation.prompts.study import Study
from edgeclip.evaluation.statistics.paired import PairedDifference

_PAIRS = 6
_CLASSES = 6
_EACH = 4


class Examples:
    """Images of the pairs that are confused most and of the classes that are labelled worst; each is read once."""

    def __init__(self, study: Study, gallery: Gallery) -> None:
        self._gallery = gallery
        self._ways = [
            (truth, said)
            for pair in study.pairs.confused[:_PAIRS]
            for truth, said in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        wrong = [item for item in study.classes if item.images and item.right < item.images]
        self._worst = sorted(wrong, key=lambda item: (item.right / item.images, -item.images))[:_CLASSES]
        self._rows = {(truth, said): gallery.of(truth, said, most=_EACH) for truth, said in self._ways}
        self._rows |= {(item.label, ""): gallery.of(item.label, most=_EACH) for item in self._worst}
        self._images = gallery.read([row for rows in self._rows.values() for row in rows])

    def confused(self) -> Markup:
        """Images of one class of a pair that were labelled as the other, both ways."""
        shown = [(f"“{truth}” labelled “{said}”", (truth, said)) for truth, said in self._ways]
        return self._grid(shown)

    def worst(self) -> Markup | None:
        """Images that were labelled wrong, of the worst classes; None if there is none."""
        if not self._worst:
            return None
        return self._grid(
            [(f"“{item.label}”: {item.right} of {item.images} right", (item.label, "")) for item in self._worst]
        )

    def _grid(self, shown: list[tuple[str, tuple[str, str]]]) -> Markup:
        groups = [
            element("div", element("h3", title), element("div", self._pictures(self._rows[key]), class_="pictures"))
            for title, key in shown
            if self._rows[key]
        ]
        return element("div", *groups, class_="groups")

    def _pictures(self, rows: list[int]) -> Markup:
        seen = [row for row in rows if row in self._images]
        return join([picture(self._images[row], f"labelled {self._gallery.said_of(row)}") for row in seen])


_SHOWN = 8  # rows at either end of a long table; the rest is folded away
_VERDICTS = {
    NAMES: ("names closer than images", "warn"),
    ALIKE: ("images alike", "warn"),
    TEXT_ONLY: ("too few images", "quiet"),
}


def prompt_page(report: PromptReport, gallery: Gallery | None) -> Markup:
    """The whole page; without a gallery there are no examples."""
    study = report.study
    examples = Examples(study, gallery) if gallery else None
    sections = [_head(report), _suggestions(study)]
    if study.template_results:
        sections.append(_templates(study))
    if study.subset:
        sections.append(_subset(study))
    if study.names:
        sections.append(_names(study))
    sections.append(_pairs(study, examples))
    if examples and (worst := examples.worst()):
        sections.append(_section("Classes that are labelled worst", "Images that are labelled wrong.", worst))
    if study.agreement:
        sections.append(_agreement(study.agreement))
    sections.append(element("footer", f"{report.variant} of model {report.model_id} on {summary(report.machine)}"))
    return page(f"Prompt study: {report.data or report.unlabelled}", *sections)


def _section(title: str, said: str, *content: Markup) -> Markup:
    return element("section", element("h2", title), element("p", said, class_="quiet"), *content)


def _fact(name: str, value: object, more: str = "") -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", more)))


def _head(report: PromptReport) -> Markup:
    study = report.study
    facts = []
    if study.top1 is not None and study.ci95 is not None:
        low, high = study.ci95
        facts.append(_fact("top-1, all names and templates", f"{study.top1:.3f}", f" 95 % {low:.3f}–{high:.3f}"))
        facts.append(_fact("labelled images", f"{study.images:,}"))
    if study.agreement:
        facts.append(_fact("images without labels", f"{study.agreement.images:,}"))
    facts.append(_fact("classes", len(study.classes)))
    facts.append(_fact("templates", len(study.templates)))
    facts.append(_fact("model", report.model, f" {report.variant}"))
    if report.failed:
        facts.append(_fact("left out, damaged", report.failed))
    source = " and ".join(part for part in (report.data, report.unlabelled) if part)
    return element(
        "section",
        element("h1", "Prompt study"),
        element("p", source, class_="quiet"),
        element("dl", *facts, class_="facts"),
    )


def _suggestions(study: Study) -> Markup:
    body: list[Markup] = []
    if study.suggestions:
        items = [
            element(
                "li",
                item.action,
                element("small", item.evidence + ("" if item.on == "accuracy" else f" (rests on {item.on} only)")),
                class_="firm" if item.on == "accuracy" else "soft",
            )
            for item in study.suggestions
        ]
        body.append(element("ul", *items, class_="suggestions"))
    else:
        body.append(element("p", NOTHING, class_="none"))
    if study.verdict and study.verdict.together:
        body.append(element("p", f"All recommended changes of prompts together: {study.verdict.together}"))
    if study.verdict and study.verdict.claims:
        span = span_of([end for claim in study.verdict.claims for end in claim.difference.ci95])
        rows = [
            [
                claim.what,
                f"{claim.difference.points:+.2f}",
                interval(claim.difference.points, claim.difference.ci95, span),
                "< 0.001" if claim.p_adjusted < 0.001 else f"{claim.p_adjusted:.3f}",
                element("span", "beyond noise", class_="good") if claim.beyond_noise else "within noise",
            ]
            for claim in study.verdict.claims
        ]
        heads = ["change tried", "points", scale(span), "p, adjusted", ""]
        body += [
            element("h3", "Chosen on one half of the images, tested on the other"),
            table(heads, rows, numbers=(1, 3)),
        ]
    body += [element("p", note, class_="quiet") for note in study.notes]
    return element("section", element("h2", "Suggestions"), *body)


def _templates(study: Study) -> Markup:
    ordered = sorted(study.template_results, key=lambda item: -item.alone.points)
    alone = span_of([end for item in ordered for end in item.alone.ci95])
    out = span_of([end for item in ordered if item.left_out for end in item.left_out.ci95])
    heads = ["template", "alone", scale(alone), "left out", scale(out)]

    def row(index: int) -> list[object]:
        item = ordered[index]
        return [item.template, *_difference(item.alone, alone), *_difference(item.left_out, out)]

    said = (
        f"Points of top-1 beside all {len(ordered)} templates together, on all {study.images:,} images. Each interval "
        "is its own: of 40 templates without any effect, about two lie outside 0 by chance. Dropping a template helps "
        "where “left out” lies above 0."
    )
    return _section("Templates", said, *_folded(heads, [row(index) for index in range(len(ordered))], (1, 3)))


def _difference(difference: PairedDifference | None, span: Span, *, above: str = "better") -> list[object]:
    if difference is None:
        return ["–", ""]
    return [f"{difference.points:+.2f}", interval(difference.points, difference.ci95, span, above=above)]


def _folded(heads: Sequence[object], rows: Sequence[Sequence[object]], numbers: tuple[int, ...]) -> list[Markup]:
    """Both ends of a table, and all between them in a fold."""
    if len(rows) <= 2 * _SHOWN + 2:
        return [table(heads, rows, numbers=numbers)]
    middle = rows[_SHOWN:-_SHOWN]
    fold = element("details", element("summary", f"{len(middle)} between"), table(heads, middle, numbers=numbers))
    return [
        element("h3", "highest"),
        table(heads, rows[:_SHOWN], numbers=numbers),
        element("h3", "lowest"),
        table(heads, rows[-_SHOWN:], numbers=numbers),
        fold,
    ]


def _subset(study: Study) -> Markup:
    subset = study.subset
    assert subset is not None
    plot = lines(
        [
            ("on the half it chose by", [step.chosen_on for step in subset.path]),
            ("on the other half", [step.tested_on for step in subset.path]),
        ],
        level=("all, on the other half", subset.all_tested_on),
        ticks=[str(count + 1) for count in range(len(subset.path))],
    )
    said = (
        "Greedy choice: each step takes the template that labels most images right together with those before it. What "
        "it gains where it chooses is partly chance; the other half shows what is left."
    )
    count = len(subset.templates)
    result = (
        f"Best where it chose: {count} template{'s' * (count != 1)}. On the other half, beside all "
        f"{len(study.templates)}: {subset.difference}. Chosen with the halves exchanged: {len(subset.other_half)}, "
        f"{subset.chosen_twice} of them the same."
    )
    listed = element("p", "Taken in this order: " + "; ".join(step.template for step in subset.path), class_="quiet")
    return _section("The fewest templates that do best together", said, plot, element("p", result), listed)


def _names(study: Study) -> Markup:
    options = [(item, option) for item in study.names for option in item.options]
    span = span_of([end for _, option in options for end in option.difference.ci95])
    rows: list[list[object]] = []
    for item in sorted(study.names, key=lambda item: -(item.options[0].net if item.options else 0)):
        for option in item.options:
            won = item.winner == option
            sure = won and option.difference.ci95[0] > 0
            rows.append(
                [
                    item.label,
                    option.what,
                    f"+{option.own_won} −{option.own_lost} of {item.images}",
                    f"+{option.others_won} −{option.others_lost}",
                    *_difference(option.difference, span),
                    element("span", "winner", class_="good" if sure else "quiet") if won else "",
                ]
            )
    said = (
        "Each class with some of its names only, every other class as it is: its own images won and lost, those of "
        "others, and points of top-1 over all images beside all names. A class without a winner is best with all. "
        "A winner in green has its interval above 0; with many names, some do by chance."
    )
    heads = ["class", "names", "own images", "others", "points", scale(span), ""]
    harmful = hurting(study.names)
    hurt = [element("p", f"Names that hurt, each by its own interval: {harmful}")] if harmful else []
    return _section("Names", said, *hurt, *_folded(heads, rows, (4,)))


def _pairs(study: Study, examples: Examples | None) -> Markup:
    said = (
        "Text tells two classes apart where an image lies nearer to its own class's row than to the other's; their "
        "images do where it lies nearer to the mean of its class's other images. Where text tells fewer apart, the "
        "names are closer than the images; a verdict is given where that is beyond noise for all pairs at once."
    )
    nearest = study.pairs.nearest
    body = [element("h3", "closest names (chosen by text alone)"), _pair_table(nearest[:_SHOWN])]
    if rest := nearest[_SHOWN:]:
        body.append(element("details", element("summary", f"{len(rest)} more"), _pair_table(rest)))
    if study.pairs.confused:
        body.append(element("h3", "most confused (chosen for that, so the difference flatters the images)"))
        body.append(_pair_table(study.pairs.confused))
    if examples:
        body.append(examples.confused())
    return _section("Class names that are closer than their images", said, *body)


def _pair_table(pairs: list[Pair]) -> Markup:
    gaps = [end for pair in pairs if pair.gap for end in pair.gap.ci95]
    span = span_of(gaps)
    rows: list[list[object]] = []
    for pair in pairs:
        said, kind = _VERDICTS.get(pair.verdict, ("", "quiet"))
        seen = pair.text_right is not None and pair.images_right is not None
        rows.append(
            [
                f"{pair.first} / {pair.second}",
                f"{pair.text_cosine:.2f}",
                f"{pair.confusions[0]} + {pair.confusions[1]} of {sum(pair.images)}",
                f"{pair.text_right:.0%}" if seen else "–",
                f"{pair.images_right:.0%}" if seen else "–",
                *_difference(pair.gap, span, above="flag"),
                element("span", said, class_=kind),
            ]
        )
    heads = ["classes", "text cosine", "confusions", "text", "images", "points", scale(span), ""]
    return table(heads, rows, numbers=(1, 2, 3, 4, 5))


def _agreement(agreement: Agreement) -> Markup:
    said = (
        f"{agreement.images:,} images without labels. This is agreement with all names and templates together, not "
        "accuracy: what differs may be wrong, or the only part that is right."
    )
    ordered = sorted(agreement.templates, key=lambda item: item.agreement)
    rows: list[list[object]] = [
        [
            item.template,
            f"{item.agreement:.1%}",
            f"{item.ci95[0]:.1%}–{item.ci95[1]:.1%}",
            "–" if item.left_out is None else f"{item.left_out:.1%}",
            f"{item.margin:.3f}",
            element("span", "stands apart", class_="warn") if item.apart else "",
        ]
        for item in ordered
    ]
    heads: list[object] = ["template", "agrees alone", "95 %", "labels changed if left out", "margin", ""]
    body = [
        element(
            "p",
            f"Mean margin between the first two classes {agreement.margin:.3f} in cosine; mean entropy of the scores "
            f"{agreement.entropy:.2f} bits.",
        ),
        *_folded(heads, rows, (1, 3, 4)),
    ]
    if agreement.names:
        named: list[list[object]] = [
            [item.label, item.name, f"{item.alone:.1%}", f"{item.left_out:.1%}"] for item in agreement.names
        ]
        body.append(element("h3", "share of labels that change if a class has one name alone, or lacks it"))
        body.extend(_folded(["class", "name", "alone", "left out"], named, (2, 3)))
    if agreement.runners_up:
        close: list[list[object]] = [
            [f"{item.first} / {item.second}", f"{item.close} of {item.images}", f"{item.text_cosine:.2f}"]
            for item in agreement.runners_up
        ]
        body.append(
            element("h3", "two classes that come first and second, the second at more than half the first's score")
        )
        body.append(table(["classes", "images", "text cosine"], close, numbers=(2,)))
    if agreement.never:
        body.append(element("p", f"No image is labelled as: {', '.join(agreement.never)}", class_="quiet"))
    return _section("Without labels: agreement", said, *body)

"""A prompt study in; what a terminal shows of it, and one HTML page with intervals and images of the mistakes, out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.machine.probe import summary
from edgeclip.errors import SourceError
from edgeclip.evaluation.charts import line_chart
from edgeclip.evaluation.html_page import Span, picture_uri, render_page, span_of
from edgeclip.evaluation.prompts.choice import Contribution
from edgeclip.evaluation.prompts.confused_names import ALIKE, APART, NAMES, TEXT_ONLY
from edgeclip.evaluation.prompts.study import PromptReport, Studied, Study
from edgeclip.evaluation.statistics.paired import PairedDifference
from edgeclip.printable import counted

NOTHING = "Nothing here is beyond noise: keep names and templates as they are."
_ENDS = 3  # templates at either end of the terminal's table
_MOST = 8  # names, and pairs, in the terminal
_FOLDED = 8  # rows at either end of a long table of the page; what lies between is folded away
_EXAMPLES, _EACH = 6, 4  # pairs and classes with images on the page, and images of each
_Example = tuple[str, list[tuple[str, str]]]  # a title; pictures (data URIs) with their labels
_VERDICTS = {NAMES: "names closer than images", ALIKE: "images alike", TEXT_ONLY: "too few images", APART: ""}


def print_report(report: PromptReport, console: Console) -> None:
    """Print what was found, the suggestions last."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    study, choice = report.study, report.study.choice
    say(
        f"{report.data}: {counted(study.images, 'image')}, top-1 {study.top1:.3f} "
        f"(95 % {study.ci95[0]:.3f}–{study.ci95[1]:.3f})"
        f"; {counted(len(study.classes), 'class', 'classes')}, {counted(len(study.templates), 'template')}, "
        f"{counted(report.prompts, 'prompt')}" + (f"; {report.failed} damaged and left out" if report.failed else "")
    )
    templates, names = _in_order(study)
    shown = templates if len(templates) <= 2 * _ENDS + 1 else templates[:_ENDS] + templates[-_ENDS:]
    heads = ["template or name", "alone", "points beside all", "points if left out"]
    rows = [
        [_called(item), f"{item.top1:.3f}", _points(item.alone), _points(item.left_out)]
        for item in shown + names[:_MOST]
    ]
    console.print(_table(heads, rows))
    for claim in choice.claims if choice else []:
        say(f"{claim.what}, chosen on one half, beside all on the other: {claim.difference}")
    judged = [pair for pair in study.nearest if pair.verdict != APART]
    pairs = judged + [pair for pair in study.confused if pair not in judged]
    heads = ["classes", "text cosine", "confused", "text tells apart", "images tell apart", ""]
    rows = [
        [
            f"{pair.first} / {pair.second}",
            f"{pair.text_cosine:.2f}",
            f"{sum(pair.confusions)} of {sum(pair.images)}",
            *("–" if share is None else f"{share:.0%}" for share in (pair.text_right, pair.images_right)),
            "" if pair.verdict == APART else pair.verdict,
        ]
        for pair in pairs[:_MOST]
    ]
    console.print(_table(heads, rows))
    say("Suggestions", "bold")
    for item in study.suggestions:
        console.print(Text(f"• {item.action}\n  ").append(item.evidence, style="dim"), soft_wrap=True)
    if not study.suggestions:
        say(NOTHING)
    if choice and choice.together:
        say(f"All recommended changes of prompts together: {choice.together}")
    for note in [*study.notes, f"{report.variant} of model {report.model_id} on {summary(report.machine)}"]:
        say(note, "dim")


def prompt_page(studied: Studied) -> str:
    """The page as HTML.

    Raises:
        MissingExtraError: Jinja2 or matplotlib is not installed.
    """
    study, choice = studied.report.study, studied.report.study.choice
    plot = None
    if choice and len(choice.steps) > 1:
        series = [
            ("on the half it chose by", [step.chosen_on for step in choice.steps]),
            ("on the other half", [step.tested_on for step in choice.steps]),
        ]
        ticks = [str(count + 1) for count in range(len(choice.steps))]
        plot = line_chart(series, level=("all, on the other half", choice.all_tested_on), ticks=ticks)
    worst = sorted(
        (item for item in study.classes if item.right < item.images),
        key=lambda item: (item.right / item.images, -item.images),
    )[:_EXAMPLES]
    confused = [
        (f"“{own}” labelled “{other}”", own, other)
        for pair in study.confused[:_EXAMPLES]
        for own, other in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    wrong = [(f"“{item.label}”: {item.right} of {item.images} right", item.label, None) for item in worst]
    examples = _examples(studied, [*confused, *wrong])
    return render_page(
        "prompts.html.j2",
        report=studied.report,
        study=study,
        choice=choice,
        nothing=NOTHING,
        tables=[(title, items) for title, items in zip(("Templates", "Names"), _in_order(study), strict=True) if items],
        folded=_FOLDED,
        called=_called,
        plot=plot,
        verdicts=_VERDICTS,
        span_of=_span,
        confused=examples[: len(confused)],
        worst=examples[len(confused) :],
        machine=summary(studied.report.machine),
    )


def _examples(studied: Studied, wanted: Sequence[tuple[str, str, str | None]]) -> list[_Example]:
    """For each title, true class and label: the first images of the class labelled so, as any other class if None."""
    labels, truth, said = studied.prompts.labels, studied.truth, studied.said
    rows_of = [
        np.flatnonzero((truth == labels.index(own)) & (said != truth if other is None else said == labels.index(other)))
        for _, own, other in wanted
    ]
    rows = sorted({int(row) for rows in rows_of for row in rows[:_EACH]})
    pictures: dict[int, tuple[str, str]] = {}
    for row, item in zip(rows, studied.items.take(rows), strict=True):  # once: shards are read from front to back
        with suppress(SourceError):  # it has gone or changed since
            pictures[row] = picture_uri(item.read()), labels[int(said[row])]
    return [
        (title, [pictures[int(row)] for row in rows[:_EACH] if int(row) in pictures])
        for (title, _, _), rows in zip(wanted, rows_of, strict=True)
    ]


def _in_order(study: Study) -> tuple[list[Contribution], list[Contribution]]:
    """Templates, the best alone first; and names, those first without which most is won."""
    templates = [item for item in study.contributions if not item.label]
    names = [item for item in study.contributions if item.label]
    templates.sort(key=lambda item: -item.alone.points)
    names.sort(key=lambda item: -(item.left_out.points if item.left_out else 0))
    return templates, names


def _called(item: Contribution) -> str:
    return f"{item.what} ({item.label})" if item.label else item.what


def _span(differences: Sequence[PairedDifference | None]) -> Span:
    return span_of([end for item in differences if item for end in item.ci95])


def _points(difference: PairedDifference | None) -> str:
    if difference is None:
        return "–"
    low, high = difference.ci95
    return f"{difference.points:+.2f} [{low:+.2f}, {high:+.2f}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table

"""A prompt study in, what a terminal shows of it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.machine.probe import summary
from edgeclip.evaluation.prompts.agreement import Agreement
from edgeclip.evaluation.prompts.names import ClassNames
from edgeclip.evaluation.prompts.pairs import APART, Pair
from edgeclip.evaluation.prompts.run import PromptReport
from edgeclip.evaluation.prompts.study import Study
from edgeclip.evaluation.statistics.paired import PairedDifference

NOTHING = "Nothing here is beyond noise: keep names and templates as they are."
_ENDS = 3  # rows of a table at either end
_PAIRS = 8


def print_report(report: PromptReport, console: Console) -> None:
    """Print what was found, the suggestions last."""
    study = report.study
    _say(console, _what(report))
    if study.template_results:
        ordered = sorted(study.template_results, key=lambda item: -item.alone.points)
        console.print(
            _table(
                ["template", "alone, points", "left out, points"],
                [[item.template, _short(item.alone), _short(item.left_out)] for item in _ends(ordered)],
            )
        )
    if study.subset:
        _say(
            console,
            f"{len(study.subset.templates)} of {len(study.templates)} templates, chosen on one half, beside all on "
            f"the other: {study.subset.difference}",
        )
    if study.names:
        if harmful := hurting(study.names):
            _say(console, f"names that hurt, each by its own interval: {harmful}")
        console.print(_table(["class", "best names", "own images", "others", "points"], _names(study.names)))
    if study.images:
        console.print(_pairs(study))
    if study.agreement:
        _print_agreement(study.agreement, console)
    _say(console, "Suggestions", style="bold")
    for item in study.suggestions:
        rests = "" if item.on == "accuracy" else f" (rests on {item.on} only)"
        console.print(Text(f"• {item.action}\n  ").append(f"{item.evidence}{rests}", style="dim"), soft_wrap=True)
    if not study.suggestions:
        _say(console, NOTHING)
    if study.verdict and study.verdict.together:
        _say(console, f"All recommended changes of prompts together: {study.verdict.together}")
    for note in study.notes:
        _say(console, note, style="dim")
    _say(console, f"{report.variant} of model {report.model_id} on {summary(report.machine)}", style="dim")


def _say(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _what(report: PromptReport) -> str:
    study = report.study
    parts = []
    if study.top1 is not None and study.ci95 is not None:
        low, high = study.ci95
        parts.append(f"{report.data}: {study.images:,} images, top-1 {study.top1:.3f} (95 % {low:.3f}–{high:.3f})")
    if study.agreement:
        parts.append(f"{report.unlabelled}: {study.agreement.images:,} images without labels")
    parts.append(f"{len(study.classes)} classes, {len(study.templates)} templates, {report.prompts:,} prompts")
    if report.failed:
        parts.append(f"{report.failed} damaged and left out")
    return "; ".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _short(difference: PairedDifference | None) -> str:
    if difference is None:
        return "–"
    low, high = difference.ci95
    return f"{difference.points:+.2f} ({low:+.2f} to {high:+.2f})"


def _ends(rows: list[Any]) -> list[Any]:
    return rows if len(rows) <= 2 * _ENDS + 1 else rows[:_ENDS] + rows[-_ENDS:]


def hurting(names: list[ClassNames]) -> str:
    """The names without which more images are labelled right, for people; empty if there are none."""
    return ", ".join(f"{name} ({item.label})" for item in names for name in item.harmful)


def _names(names: list[ClassNames]) -> list[list[str]]:
    """Classes with a winner, the surest first; at most as many as pairs are shown."""
    rows: list[list[str]] = []
    for item in sorted(names, key=lambda item: -(item.winner.net if item.winner else 0))[:_PAIRS]:
        best = item.winner
        if best is None:
            rows.append([item.label, "all together", "", "", ""])
        else:
            own, others = (
                f"+{best.own_won} −{best.own_lost} of {item.images}",
                f"+{best.others_won} −{best.others_lost}",
            )
            rows.append([item.label, best.what, own, others, _short(best.difference)])
    return rows


def _pairs(study: Study) -> Table:
    shown: dict[tuple[str, str], Pair] = {}
    for pair in [item for item in study.pairs.nearest if item.verdict != APART] + study.pairs.confused:
        shown.setdefault((pair.first, pair.second), pair)
    rows = [
        [
            f"{pair.first} / {pair.second}",
            f"{pair.text_cosine:.2f}",
            f"{sum(pair.confusions)} of {sum(pair.images)}",
            "–" if pair.text_right is None else f"{pair.text_right:.0%}",
            "–" if pair.images_right is None else f"{pair.images_right:.0%}",
            "" if pair.verdict == APART else pair.verdict,
        ]
        for pair in list(shown.values())[:_PAIRS]
    ]
    return _table(["classes", "text cosine", "confused", "text tells apart", "images tell apart", ""], rows)


def _print_agreement(agreement: Agreement, console: Console) -> None:
    _say(console, "Without labels, agreement with all prompts together. It is not accuracy.", style="bold")
    rows = [
        [
            item.template,
            f"{item.agreement:.1%} ({item.ci95[0]:.1%}–{item.ci95[1]:.1%})",
            "–" if item.left_out is None else f"{item.left_out:.1%}",
            "stands apart" if item.apart else "",
        ]
        for item in _ends(sorted(agreement.templates, key=lambda item: item.agreement))
    ]
    console.print(_table(["template", "agrees alone", "labels changed if left out", ""], rows))
    _say(
        console,
        f"mean margin {agreement.margin:.3f} in cosine, mean entropy {agreement.entropy:.2f} bits",
    )
    if agreement.never:
        listed = ", ".join(agreement.never[:_PAIRS]) + (", …" if len(agreement.never) > _PAIRS else "")
        _say(console, f"no image is labelled as {listed}")

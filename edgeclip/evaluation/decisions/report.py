"""Fitted decisions in; what a terminal shows of them, and JSON, out.

Fitted decisions in; a page of reliability, precision by acceptance, and every class's promise, out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeclip.calibration.decisions.fit import Bin, FitReport, Reported
from edgeclip.decisions import ClassDecision
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.evaluation.decisions.calibrate import Calibrated
from edgeclip.evaluation.html_page import Markup, element, page, table

_SIDE, _LEFT, _BOTTOM, _TOP = 280, 40, 34, 10
PROMISES = {"own": "by itself", "together": "with others", "none": "none"}


def decision_page(found: Calibrated, *, bundle: str, target: float, confidence: float) -> Markup:
    """One HTML page that needs nothing else.

    Args:
        found: with at least one report.
        bundle: its name.
        target, confidence: what was asked for.
    """
    heading = element(
        "section",
        element("h1", f"Decisions of table {found.table.name}, {bundle}"),
        element(
            "p",
            f"Precision {target:g} was asked for, each promise to hold with confidence {confidence:g}. All figures are "
            "of labelled images that the probabilities in question were not fitted on (25 folds).",
            class_="quiet",
        ),
        *(element("p", note, class_="warn") for note in found.notes),
    )
    return page(f"Decisions: {found.table.name}", heading, *(_variant(each, target) for each in found.reports))


def _variant(report: FitReport, target: float) -> Markup:
    figures = report.figures
    shown = [
        ("images", f"{report.images} ({report.known} of a class)"),
        ("right of these", _share(figures.get("top1"))),
        ("precision", _share(figures.get("precision"))),
        ("recall", _share(figures.get("recall"))),
        ("abstention", _share(figures.get("abstention"))),
        (
            "calibration error: score, temperature, after",
            " → ".join(f"{figures[name]:.3f}" for name in ("ece_before", "ece_temperature", "ece_after")),
        ),
    ]
    if "auroc_after" in figures:
        shown.append(
            ("AUROC known or not: cosine, after", f"{figures['auroc_cosine']:.3f} → {figures['auroc_after']:.3f}")
        )
    facts = element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in shown))
    plots = element(
        "div",
        element(
            "div",
            element("h3", "Reliability: share right by what was said"),
            reliability_plot(report.before, report.after),
        ),
        element(
            "div", element("h3", "Precision by share of images reported"), curve_plot(report.curve, target, figures)
        ),
        class_="groups",
    )
    notes = element("ul", *(element("li", note, class_="soft") for note in report.notes), class_="suggestions")
    return element(
        "section",
        element("h2", report.variant),
        Markup(facts.replace("<dl>", '<dl class="facts">', 1)),
        plots,
        notes,
        element("details", element("summary", f"{len(report.classes)} classes"), class_table(report.classes)),
    )


def class_table(classes: dict[str, ClassDecision]) -> Markup:
    """Every class: threshold, promise, and what it would have reported."""
    rows = [
        (
            label,
            each.images,
            f"{each.threshold:.3f}",
            PROMISES[each.promise],
            each.accepted,
            f"{each.right / each.accepted:.2f}" if each.accepted else "–",
        )
        for label, each in classes.items()
    ]
    heads = ("class", "images", "threshold", "promised", "reported", "right of these")
    return table(heads, rows, numbers=(1, 2, 4, 5))


def reliability_plot(before: Sequence[Bin], after: Sequence[Bin]) -> Markup:
    """Share right over what was said, dots sized by their number of images, for scores and probabilities."""
    parts = [_axes("score or probability", "share right")]
    parts.append(f'<line class="zero" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    most = max((each.n for each in (*before, *after)), default=1)
    for bins, kind in ((before, "first"), (after, "second")):
        points = " ".join(f"{_x(each.probability)},{_y(each.right)}" for each in bins)
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
        parts += [
            f'<circle class="{kind}" cx="{_x(each.probability)}" cy="{_y(each.right)}" '
            f'r="{2 + 5 * (each.n / most) ** 0.5:.1f}"><title>{each.n} images: said {each.probability:.2f}, '
            f"right {each.right:.2f}</title></circle>"
            for each in bins
        ]
    parts.append(f'<text class="first" x="{_x(0.04)}" y="{_y(0.94)}">score before</text>')
    parts.append(f'<text class="second" x="{_x(0.04)}" y="{_y(0.87)}">probability after</text>')
    return _plot(parts)


def curve_plot(curve: Sequence[Reported], target: float, figures: dict[str, float]) -> Markup:
    """Precision over the share that is reported, by falling probability; the target; and where thresholds lie."""
    parts = [_axes("share of images reported", "precision")]
    parts.append(f'<line class="zero" x1="{_x(0)}" y1="{_y(target)}" x2="{_x(1)}" y2="{_y(target)}"/>')
    parts.append(f'<text x="{_x(1)}" y="{_y(target) - 4}" text-anchor="end">target {target:g}</text>')
    points = " ".join(f"{_x(each.share)},{_y(each.precision)}" for each in curve)
    parts.append(f'<polyline class="second" points="{points}"/>')
    if "precision" in figures:
        x, y = _x(1 - figures["abstention"]), _y(figures["precision"])
        parts.append(f'<circle class="flag" cx="{x}" cy="{y}" r="5"><title>at the thresholds</title></circle>')
        parts.append(f'<text x="{x + 9}" y="{y + 14}">at the thresholds</text>')
    return _plot(parts)


def _plot(parts: Sequence[str]) -> Markup:
    width, height = _LEFT + _SIDE + 12, _TOP + _SIDE + _BOTTOM
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(parts)}</svg>'
    )


def _axes(across: str, up: str) -> str:
    parts = []
    for mark in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="axis" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(mark)}" y2="{_y(mark)}"/>')
        parts.append(f'<line class="axis" y1="{_y(0)}" y2="{_y(1)}" x1="{_x(mark)}" x2="{_x(mark)}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{_y(mark) + 4}" text-anchor="end">{mark:g}</text>')
        parts.append(f'<text x="{_x(mark)}" y="{_y(0) + 14}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{_x(0.5)}" y="{_y(0) + 29}" text-anchor="middle">{across}</text>')
    middle = _y(0.5)
    parts.append(f'<text x="10" y="{middle}" text-anchor="middle" transform="rotate(-90 10 {middle})">{up}</text>')
    return "".join(parts)


def _x(value: float) -> float:
    return round(_LEFT + _SIDE * value, 1)


def _y(value: float) -> float:
    return round(_TOP + _SIDE * (1 - value), 1)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


_MOST = 12


def print_calibrated(found: Calibrated, console: Console) -> None:
    """Print figures, the classes and what cannot be promised, of each variant."""
    for report in found.reports:
        _print_report(report, console)
    if not found.reports:
        facts = Table("variant", "frames", "described by background", "threshold", box=None, padding=(0, 2))
        for each in found.table.decisions:
            if not each.facts.calibrated:
                figures = each.facts.figures
                facts.add_row(
                    each.facts.variant,
                    f"{figures['frames']:.0f}",
                    f"{figures['background_share']:.1%}",
                    f"{figures['threshold']:.4f}",
                )
        console.print(facts, highlight=False)
    if found.background:
        console.print(f"background: {', '.join(found.background)}", highlight=False, markup=False)
    for note in found.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def as_json(found: Calibrated) -> dict[str, Any]:
    """The same and more, for machines."""
    return {
        "table": found.table.name,
        "rows": found.table.rows_hash,
        "reports": found.reports,
        "decisions": [each.facts for each in found.table.decisions],
        "damaged": found.damaged,
        "background": found.background,
        "notes": found.notes,
        "machine": describe_machine(),
    }


def _print_report(report: FitReport, console: Console) -> None:
    figures = report.figures
    console.print(
        f"{report.variant}: {report.images} images, {report.known} of a class, top-1 of these {figures['top1']:.3f}",
        style="bold",
        highlight=False,
    )
    precision = f"{figures['precision']:.3f}" if "precision" in figures else "– (nothing is reported)"
    console.print(
        f"  at the thresholds: precision {precision}, recall {figures['recall']:.3f}, "
        f"abstention {figures['abstention']:.3f}",
        highlight=False,
    )
    console.print(
        f"  calibration error: {figures['ece_before']:.3f} as scored, {figures['ece_temperature']:.3f} with a "
        f"temperature, {figures['ece_after']:.3f} as calibrated",
        highlight=False,
    )
    if "auroc_after" in figures:
        console.print(
            f"  known from unknown (AUROC): {figures['auroc_cosine']:.3f} by the largest cosine, "
            f"{figures['auroc_after']:.3f} as calibrated",
            highlight=False,
        )
    classes = Table("class", "images", "threshold", "promised", "reported", "right", box=None, padding=(0, 2))
    shown = sorted(report.classes.items(), key=lambda item: -item[1].accepted)[:_MOST]
    for label, each in shown:
        classes.add_row(
            label,
            str(each.images),
            f"{each.threshold:.3f}",
            PROMISES[each.promise],
            str(each.accepted),
            str(each.right),
        )
    console.print(classes, highlight=False)
    if len(report.classes) > len(shown):
        console.print(f"  and {len(report.classes) - len(shown)} more (--report, --json)", highlight=False)
    for note in report.notes:
        console.print(f"  - {note}", highlight=False, markup=False)

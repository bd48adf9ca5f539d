"""Fitted decisions in; what a terminal shows of them, JSON, and a page with reliability and every promise, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeclip.calibration.decisions.fit import Bin, FitReport, Reported
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.evaluation.charts import COLOURS, inline_svg, new_figure, page_style
from edgeclip.evaluation.decisions.calibrate import Calibrated
from edgeclip.evaluation.html_page import render_page
from edgeclip.printable import counted

PROMISES = {"own": "by itself", "together": "with others", "none": "none"}
_MOST = 12  # classes that a terminal shows


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
        f"{report.variant}: {counted(report.images, 'image')}, {report.known} of a class, "
        f"top-1 of these {figures['top1']:.3f}",
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
        console.print(f"  and {len(report.classes) - len(shown)} more, in the page and the JSON", highlight=False)
    for note in report.notes:
        console.print(f"  - {note}", highlight=False, markup=False)


def decision_page(found: Calibrated, *, bundle: str, target: float, confidence: float) -> str:
    """One HTML page that needs nothing else.

    Args:
        found: with at least one report.
        bundle: its name.
        target, confidence: what was asked for.

    Raises:
        MissingExtraError: Jinja2 or matplotlib is not installed.
    """
    return render_page(
        "decisions.html.j2",
        found=found,
        bundle=bundle,
        target=target,
        confidence=confidence,
        promises=PROMISES,
        variants=[
            (each, reliability_plot(each.before, each.after), curve_plot(each.curve, target, each.figures))
            for each in found.reports
        ],
    )


def reliability_plot(before: Sequence[Bin], after: Sequence[Bin]) -> Any:
    """Share right over what was said, dots sized by their number of images, for scores and probabilities; ``<svg>``."""
    most = max((each.n for each in (*before, *after)), default=1)
    with page_style():
        figure, axes = _unit_square("score or probability", "share right")
        axes.plot([0, 1], [0, 1], ls="--", lw=1, color="0.5")
        for bins, colour, name in ((before, COLOURS[0], "score before"), (after, COLOURS[2], "probability after")):
            said, right = [each.probability for each in bins], [each.right for each in bins]
            axes.plot(said, right, color=colour, lw=1.5, label=name)
            axes.scatter(said, right, s=[8 + 70 * each.n / most for each in bins], color=colour, lw=0)
        axes.legend(loc="best")
        return inline_svg(figure)


def curve_plot(curve: Sequence[Reported], target: float, figures: dict[str, float]) -> Any:
    """Precision over the share reported, by falling probability; the target; where the thresholds lie; ``<svg>``."""
    with page_style():
        figure, axes = _unit_square("share of images reported", "precision")
        axes.axhline(target, ls="--", lw=1, color="0.5", label=f"target {target:g}")
        axes.plot([each.share for each in curve], [each.precision for each in curve], color=COLOURS[2], lw=1.5)
        if "precision" in figures:
            at = 1 - figures["abstention"], figures["precision"]
            axes.plot(*at, "o", ms=7, color=COLOURS[4], label="at the thresholds")
        axes.legend(loc="lower left")
        return inline_svg(figure)


def _unit_square(across: str, up: str) -> tuple[Any, Any]:
    figure = new_figure(4.4, 4.2)
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up, aspect="equal")
    return figure, axes

"""Fitted decisions in; what a terminal shows of them, and JSON, out."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from edgeclip.calibration.fit_decisions import FitReport
from edgeclip.devices.probe import describe_machine
from edgeclip.evaluation.calibrate import Calibrated
from edgeclip.evaluation.decision_page import PROMISES

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

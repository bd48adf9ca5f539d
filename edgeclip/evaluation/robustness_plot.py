"""A robustness report in, its files out; the picture shows accuracy under shift and what a variant loses beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.evaluation.robustness_report import RobustnessReport, report_lines
from edgeclip.evaluation.wise_report import Accuracy
from edgeclip.extras import require
from edgeclip.files import atomic_file, write_json, write_text

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
_WIDTH, _ROW = 5.4, 0.33  # inches


def plot_robustness(report: RobustnessReport, path: Path) -> None:
    """Draw a report; the suffix of ``path`` chooses the format.

    Left: top-1, clean, corrupted (mean over the severities with its 95 % interval, and a faint mark for each severity)
    and on shift sets. Right, where there are several variants: extra loss against the first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", purpose="draw a plot", extra="train")
    ordered = sorted(report.corruptions, key=lambda item: -item.mean[0].top1)
    rows: list[tuple[str, list[Accuracy]]] = [("clean", report.clean)]
    rows += [(item.name, item.mean) for item in ordered]
    rows += [("all corruptions", report.corrupted)] if ordered else []
    rows += [(Path(shift.name).name or shift.name, shift.top1) for shift in report.shifts]
    several = len(report.variants) > 1
    figure = figures.Figure(figsize=(_WIDTH * (2 if several else 1), 1.3 + _ROW * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2 if several else 1, sharey=True, squeeze=False)[0]
    for variant, name in enumerate(report.variants):
        shift = _beside(variant, len(report.variants))
        for row, (_, accuracies) in enumerate(rows):
            _point(panels[0], accuracies[variant].top1, accuracies[variant].ci95, row + shift, _COLOURS[variant % 6])
        for row, item in enumerate(ordered, start=1):
            found = [by_variant[variant].top1 for by_variant in item.by_severity]
            panels[0].plot(found, [row + shift] * len(found), "|", color=_COLOURS[variant % 6], alpha=0.5, ms=7)
        panels[0].plot([], [], "o", color=_COLOURS[variant % 6], ms=4, label=name)
    panels[0].set_yticks(range(len(rows)), [name for name, _ in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_xlim(left=0)
    severities = ", ".join(map(str, report.severities))
    panels[0].set_xlabel("top-1 (bars: 95 %" + (f"; ticks: severities {severities})" if ordered else ")"))
    panels[0].legend(fontsize=8, loc="upper left")
    if several:
        losses = [[], *(item.extra for item in ordered), *([report.extra] if ordered else [])]
        losses += [shift.extra for shift in report.shifts]
        for variant in range(1, len(report.variants)):
            shift = _beside(variant - 1, len(report.variants) - 1)
            for row, found_losses in enumerate(losses):
                if found_losses:
                    loss = found_losses[variant - 1]
                    _point(panels[1], loss.points, loss.ci95, row + shift, _COLOURS[variant % 6])
        panels[1].axvline(0, color="0.4", lw=0.8)
        others = ", ".join(report.variants[1:])
        panels[1].set_xlabel(f"points that {others} gains (+) or loses (-)\nagainst {report.variants[0]}, beyond clean")
    for panel in panels:
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{Path(report.data).name}: {report.n:,} images, {report.classes} classes", fontsize=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def save_report(report: RobustnessReport, folder: Path) -> list[Path]:
    """Write ``robustness.json``, ``.txt`` and ``.png`` into a folder; returns the paths."""
    numbers, words, picture = (folder / f"robustness.{kind}" for kind in ("json", "txt", "png"))
    write_json(numbers, report)
    write_text(words, "\n".join(report_lines(report)) + "\n")
    plot_robustness(report, picture)
    return [numbers, words, picture]


def _beside(index: int, count: int) -> float:
    """Where a variant's mark lies within its row."""
    return 0.0 if count == 1 else 0.36 * (index / (count - 1) - 0.5)


def _point(panel: Any, value: float, interval: tuple[float, float], at: float, colour: str) -> None:
    panel.hlines(at, *interval, color=colour, lw=1.2, alpha=0.7)
    panel.plot([value], [at], "o", color=colour, ms=4)

"""What a robustness run found, as data; its lines for people, its JSON and its picture out.

The picture shows accuracy under shift, and what a variant loses there beyond what it loses on clean images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip.devices.machine.probe import Description, summary
from edgeclip.documents import read_json
from edgeclip.errors import InputError
from edgeclip.evaluation.charts import COLOURS, new_figure, save_figure
from edgeclip.evaluation.statistics.effective_robustness import Effective
from edgeclip.evaluation.statistics.metrics import wilson_interval
from edgeclip.evaluation.statistics.paired import ExtraLoss, PairedDifference
from edgeclip.evaluation.wise import Accuracy
from edgeclip.files import write_json, write_text
from edgeclip.hits import Z95, Hits
from edgeclip.printable import counted


class CorruptionResult(msgspec.Struct, frozen=True):
    """One corruption. Lists of accuracies are in the order of the report's variants.

    Attributes:
        by_severity: for each of the report's severities, the variants' accuracies.
        mean: over the severities.
        extra: for each variant but the first, its extra loss against the first.
    """

    name: str
    by_severity: list[list[Accuracy]]
    mean: list[Accuracy]
    extra: list[ExtraLoss]


class ShiftResult(msgspec.Struct, frozen=True):
    """One set of other images.

    Attributes:
        images, classes, unreadable: scored, among how many, and left out because they cannot be decoded.
        images_id: digest of which images were scored.
        top1: by variant.
        clean_top1: by variant, on the clean images of the same classes, scored among these alone; None where the sets
            have other classes.
        difference: for each variant but the first, less the first, on this set.
        extra: the same less the difference on all clean images.
    """

    name: str
    images: int
    classes: int
    unreadable: int
    images_id: str
    top1: list[Accuracy]
    clean_top1: list[float] | None
    difference: list[PairedDifference]
    extra: list[ExtraLoss]


class EffectiveResult(msgspec.Struct, frozen=True):
    """Effective robustness of a variant on ``shift``; where it cannot be told, ``reason`` says why."""

    shift: str
    variant: str
    value: Effective | None = None
    reason: str = ""


class RobustnessReport(msgspec.Struct, frozen=True):
    """All of it. Lists of accuracies are in the order of ``variants``, lists of losses in that of ``variants[1:]``.

    Attributes:
        n, unreadable, classes: clean images that were scored, that cannot be decoded, and classes.
        images_id: digest of which images were scored; two reports are comparable if it is the same.
        suite: version of the corruptions' pixels.
        clean, corrupted: top-1 without corruption, and its mean over all corruptions and severities.
        clean_difference: less the first variant, on clean images.
        extra: loss under corruption beyond that on clean images, against the first variant.
    """

    model_id: str
    data: str
    n: int
    unreadable: int
    classes: int
    images_id: str
    variants: list[str]
    severities: list[int]
    seed: int
    suite: int
    templates: tuple[str, ...]
    clean: list[Accuracy]
    clean_difference: list[PairedDifference]
    corrupted: list[Accuracy]
    extra: list[ExtraLoss]
    corruptions: list[CorruptionResult]
    shifts: list[ShiftResult]
    machine: Description
    effective: list[EffectiveResult] = []


def accuracy_of(hits: Hits) -> Accuracy:
    """Top-1 of hits (N,), or its mean over K conditions of the same images (K, N), with a 95 % interval.

    One condition has Wilson's. For several, each image gives its mean and the images are what varies; two hits and two
    misses are added, as Agresti and Coull (1998) do for a proportion.
    """
    if hits.ndim == 1:
        return Accuracy(float(hits.mean()), wilson_interval(int(hits.sum()), len(hits)))
    rates = np.concatenate([hits.mean(axis=0), [0, 0, 1, 1]])  # (N + 4,)
    centre, half = float(rates.mean()), Z95 * float(rates.std()) / math.sqrt(len(rates))
    return Accuracy(float(hits.mean()), (max(0.0, centre - half), min(1.0, centre + half)))


def read_report(path: Path) -> RobustnessReport:
    """Read what ``--json`` wrote.

    Raises:
        InputError: absent, or not such a file.
    """
    try:
        report = read_json(path, RobustnessReport)
        shares = [[found.top1 for found in found_by_variant] for found_by_variant in _accuracies(report)]
        shares += [shift.clean_top1 for shift in report.shifts if shift.clean_top1 is not None]
        alike = all(len(each) == len(report.variants) for each in shares)
        if not report.variants or not alike or not all(0 <= share <= 1 for each in shares for share in each):
            raise InputError("expected an accuracy from 0 to 1 for each variant")
        return report
    except InputError as error:
        raise InputError(
            f"expected the JSON of an earlier robustness run at {path} ({error}): make it with edgeclip robustness "
            "--json"
        ) from error


def _accuracies(report: RobustnessReport) -> list[list[Accuracy]]:
    """Lists of which each has one accuracy a variant."""
    corrupted = [report.corrupted] if report.corruptions else []
    return [report.clean, *corrupted, *(shift.top1 for shift in report.shifts)]


def verdict(loss: ExtraLoss, *, variant: str, reference: str) -> str:
    """One sentence: whether a variant suffers more from corruption than the reference does."""
    low, high = loss.ci95
    if high < 0:
        return f"{variant} loses more than {reference} under corruption than it does on clean images: {loss}"
    if low > 0:
        return f"{variant} loses less than {reference} under corruption than it does on clean images: {loss}"
    return f"no difference that these images can show between what corruption costs {variant} and {reference}: {loss}"


def report_lines(report: RobustnessReport) -> list[str]:
    """The report as text."""
    lines = [
        f"{report.data}: {counted(report.n, 'image')} in {counted(report.classes, 'class', 'classes')}"
        + (f", {report.unreadable} could not be decoded" if report.unreadable else "")
        + f"; seed {report.seed}",
        "",
        *_table(report),
        "",
    ]
    for row, variant in enumerate(report.variants[1:]):
        lines.append(f"{variant} less {report.variants[0]} on clean images: {report.clean_difference[row]}")
        if report.corruptions:
            lines.append(verdict(report.extra[row], variant=variant, reference=report.variants[0]))
            intervals = [item.extra[row].ci95 for item in report.corruptions]
            beyond = sum(not low <= 0 <= high for low, high in intervals)
            lines.append(
                f"single corruptions whose interval leaves zero out: {beyond} of {len(intervals)}; "
                f"chance alone gives about {0.05 * len(intervals):.1f}"
            )
    lines += [line for shift in report.shifts for line in _shift_lines(shift, report.variants)]
    lines += [_effective_line(item) for item in report.effective]
    lines.append(f"model {report.model_id} on {summary(report.machine)}")
    return lines


def _table(report: RobustnessReport) -> list[str]:
    """Clean, corrupted, and each corruption from the worst to the best; then the first variant by severity."""
    first, *others = report.variants
    width = max(len(name) for name in ["corrupted, mean", *(item.name for item in report.corruptions)])
    beyond = [f"{name} less {first}, beyond clean, points" for name in others] if report.corruptions else []
    lines = [
        _row([f"{'top-1':<{width}}", *(f"{name:<21}" for name in report.variants), *beyond]),
        _row([f"{'clean':<{width}}", *map(_cell, report.clean)]),
    ]
    if report.corruptions:
        lines.append(_row([f"{'corrupted, mean':<{width}}", *map(_cell, report.corrupted), *map(_loss, report.extra)]))
        for item in sorted(report.corruptions, key=lambda item: item.mean[0].top1):
            lines.append(_row([f"{item.name:<{width}}", *map(_cell, item.mean), *map(_loss, item.extra)]))
        lines += ["", f"top-1 of {first} by severity"]
        lines.append(_row([" " * width, *(f"{severity:<5}" for severity in report.severities)]))
        for item in report.corruptions:
            cells = [f"{by_variant[0].top1:.3f}" for by_variant in item.by_severity]
            lines.append(_row([f"{item.name:<{width}}", *cells]))
    return lines


def _shift_lines(shift: ShiftResult, variants: Sequence[str]) -> list[str]:
    lines = [
        f"{shift.name}: {counted(shift.images, 'image')} in {counted(shift.classes, 'class', 'classes')}"
        + (f", {shift.unreadable} could not be decoded" if shift.unreadable else "")
    ]
    for row, variant in enumerate(variants):
        line = f"  {variant}: {_cell(shift.top1[row]).rstrip()}"
        if shift.clean_top1:
            line += f"; clean images of these classes {shift.clean_top1[row]:.3f}"
        if row:
            line += (
                f"; less {variants[0]} {shift.difference[row - 1]}; beyond that on clean images {shift.extra[row - 1]}"
            )
        lines.append(line)
    return lines


def _effective_line(item: EffectiveResult) -> str:
    start = f"effective robustness of {item.variant} on {item.shift}: "
    if item.value is None:
        return start + f"not told, {item.reason}"
    low, high = item.value.ci95
    return start + (
        f"{item.value.points:+.1f} points (95 % {low:+.1f} to {high:+.1f}; a line through {item.value.models} models "
        f"predicts {item.value.predicted:.3f})"
    )


def _cell(accuracy: Accuracy) -> str:
    return f"{accuracy.top1:.3f} ({accuracy.ci95[0]:.3f}–{accuracy.ci95[1]:.3f})  "


def _loss(loss: ExtraLoss) -> str:
    return f"{loss.points:+.2f} ({loss.ci95[0]:+.2f} to {loss.ci95[1]:+.2f})"


def _row(cells: Sequence[str]) -> str:
    return "  ".join(cells).rstrip()


def save_report(report: RobustnessReport, folder: Path) -> list[Path]:
    """Write ``robustness.json``, ``.txt`` and ``.png`` into a folder; returns the paths."""
    numbers, words, picture = (folder / f"robustness.{kind}" for kind in ("json", "txt", "png"))
    write_json(numbers, report)
    write_text(words, "\n".join(report_lines(report)) + "\n")
    plot_robustness(report, picture)
    return [numbers, words, picture]


_WIDTH, _ROW = 5.4, 0.33  # inches


def plot_robustness(report: RobustnessReport, path: Path) -> None:
    """Draw a report; the suffix of ``path`` chooses the format.

    Left: top-1, clean, corrupted (mean over the severities with its 95 % interval, and a faint mark for each severity)
    and on shift sets. Right, where there are several variants: extra loss against the first.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    ordered = sorted(report.corruptions, key=lambda item: -item.mean[0].top1)
    names = ["clean", *(item.name for item in ordered), *(["all corruptions"] if ordered else [])]
    names += [Path(shift.name).name or shift.name for shift in report.shifts]
    columns = 2 if len(report.variants) > 1 else 1
    figure = new_figure(_WIDTH * columns, 1.3 + _ROW * len(names))
    panels = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    _draw_accuracies(panels[0], report, ordered)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    if columns == 2:
        _draw_losses(panels[1], report, ordered)
    for panel in panels:
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"{Path(report.data).name}: {counted(report.n, 'image')}, {counted(report.classes, 'class', 'classes')}",
        fontsize=10,
    )
    save_figure(figure, path)


def _draw_accuracies(panel: Any, report: RobustnessReport, ordered: Sequence[CorruptionResult]) -> None:
    rows = [report.clean, *(item.mean for item in ordered), *([report.corrupted] if ordered else [])]
    rows += [shift.top1 for shift in report.shifts]
    for variant, (name, colour) in enumerate(zip(report.variants, cycle(COLOURS), strict=False)):
        beside = _beside(variant, len(report.variants))
        for row, accuracies in enumerate(rows):
            _point(panel, accuracies[variant].top1, accuracies[variant].ci95, row + beside, colour)
        for row, item in enumerate(ordered, start=1):
            found = [by_variant[variant].top1 for by_variant in item.by_severity]
            panel.plot(found, [row + beside] * len(found), "|", color=colour, alpha=0.5, ms=7)
        panel.plot([], [], "o", color=colour, ms=4, label=name)
    panel.set_xlim(left=0)
    severities = ", ".join(map(str, report.severities))
    panel.set_xlabel("top-1 (bars: 95 %" + (f"; ticks: severities {severities})" if ordered else ")"))
    panel.legend(fontsize=8, loc="upper left")


def _draw_losses(panel: Any, report: RobustnessReport, ordered: Sequence[CorruptionResult]) -> None:
    reference, *others = report.variants
    rows = [*(item.extra for item in ordered), *([report.extra] if ordered else [])]
    rows += [shift.extra for shift in report.shifts]
    for variant, colour in zip(range(len(others)), cycle(COLOURS[1:] + COLOURS[:1]), strict=False):
        for row, losses in enumerate(rows, start=1):  # the clean images have none
            loss = losses[variant]
            _point(panel, loss.points, loss.ci95, row + _beside(variant, len(others)), colour)
    panel.axvline(0, color="0.4", lw=0.8)
    panel.set_xlabel(f"points that {', '.join(others)} gains (+) or loses (-)\nagainst {reference}, beyond clean")


def _beside(index: int, count: int) -> float:
    """Where a variant's mark lies within its row."""
    return 0.0 if count == 1 else 0.36 * (index / (count - 1) - 0.5)


def _point(panel: Any, value: float, interval: tuple[float, float], at: float, colour: str) -> None:
    panel.hlines(at, *interval, color=colour, lw=1.2, alpha=0.7)
    panel.plot([value], [at], "o", color=colour, ms=4)

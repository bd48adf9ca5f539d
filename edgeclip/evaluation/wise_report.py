"""Accuracies of the models between two checkpoints in; a table, a picture and ``curve.json`` out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeclip.devices.probe import Description, summary
from edgeclip.files import write_json
from edgeclip.training.wise_ft import WisePoint, plot_wise

RULE = "the highest top-1 on --data, of equals the smallest alpha"


class Accuracy(msgspec.Struct, frozen=True):
    """Zero-shot top-1, or a mean of several, with its 95 % interval."""

    top1: float
    ci95: tuple[float, float]


class AlphaResult(msgspec.Struct, frozen=True):
    """One model on the way.

    Attributes:
        target: on the set like that of the fine-tuning.
        shifts: on each set unlike it, in the report's order.
        shift_mean: their mean, each set with the same weight; None where there is none.
    """

    alpha: float
    target: Accuracy
    shifts: list[Accuracy]
    shift_mean: Accuracy | None


class MeasuredSet(msgspec.Struct, frozen=True):
    """A folder that was measured on: images scored, classes, and files that could not be decoded."""

    name: str
    images: int
    classes: int
    unreadable: int


class WiseReport(msgspec.Struct, frozen=True):
    """The curve and what it was measured on; ``curve.json``.

    Attributes:
        shared: towers that are the same in both checkpoints.
        results: by alpha.
        best: alpha by :data:`RULE`, which looks at the target set alone.
    """

    zero_shot: str
    fine_tuned: str
    shared: list[str]
    target: MeasuredSet
    shifts: list[MeasuredSet]
    templates: tuple[str, ...]
    results: list[AlphaResult]
    best: float
    rule: str
    machine: Description

    def figures_at(self, alpha: float) -> dict[str, float]:
        """What a checkpoint says of itself: accuracies at an alpha, nothing if that one was not measured."""
        found: dict[str, float] = {}
        for result in self.results:
            if result.alpha == alpha:
                found["top1"] = result.target.top1
                if result.shift_mean:
                    found["shift_top1"] = result.shift_mean.top1
        return found


def mean_of(accuracies: Sequence[Accuracy]) -> Accuracy | None:
    """Mean of accuracies on different images; None of none.

    Its interval is put together from theirs (MOVER, Zou and Donner 2008): distances from the mean add as squares.
    """
    if not accuracies:
        return None
    count = len(accuracies)
    mean = sum(item.top1 for item in accuracies) / count
    below = math.sqrt(sum((item.top1 - item.ci95[0]) ** 2 for item in accuracies)) / count
    above = math.sqrt(sum((item.ci95[1] - item.top1) ** 2 for item in accuracies)) / count
    return Accuracy(mean, (mean - below, mean + above))


def wise_lines(report: WiseReport) -> list[str]:
    """The curve as a table, for people."""
    sets = [report.target, *report.shifts]
    lines = [
        f"{item.name}: {item.images:,} images in {item.classes} classes"
        + (f", {item.unreadable} could not be decoded" if item.unreadable else "")
        + (" (target)" if item is report.target else " (shift)")
        for item in sets
    ]
    widths = [max(len(item.name), 5) for item in report.shifts]
    head = "alpha  target  95 % interval"
    if report.shifts:
        head += "  mean under shift  95 % interval  " + "  ".join(
            f"{item.name:<{width}}" for item, width in zip(report.shifts, widths, strict=True)
        )
    lines.append(head.rstrip())
    for result in report.results:
        line = f"{result.alpha:<5g}  {result.target.top1:.3f}   {_interval(result.target)}  "
        if result.shift_mean:
            line += f"  {result.shift_mean.top1:.3f}             {_interval(result.shift_mean)}    " + "  ".join(
                f"{item.top1:<{width}.3f}" for item, width in zip(result.shifts, widths, strict=True)
            )
        lines.append(line.rstrip())
    shared = " and ".join(report.shared) or "neither"
    lines.append(f"best alpha {report.best:g}: {report.rule}")
    lines.append(f"towers that both checkpoints share: {shared}; on {summary(report.machine)}")
    return lines


def save_wise(report: WiseReport, folder: Path) -> list[Path]:
    """Write ``curve.json``, and with shift sets ``curve.png``, into a folder; returns the paths."""
    numbers, picture = folder / "curve.json", folder / "curve.png"
    write_json(numbers, report)
    if not report.shifts:
        return [numbers]
    points = [
        WisePoint(
            result.alpha,
            result.target.top1,
            result.shift_mean.top1,
            accuracy_ci95=result.target.ci95,
            robustness_ci95=result.shift_mean.ci95,
        )
        for result in report.results
        if result.shift_mean
    ]
    shifts = ", ".join(item.name for item in report.shifts)
    mean = f"mean of {shifts}" if len(report.shifts) > 1 else shifts
    plot_wise(points, picture, accuracy=report.target.name, robustness=mean)
    return [numbers, picture]


def _interval(accuracy: Accuracy) -> str:
    return f"{accuracy.ci95[0]:.3f}–{accuracy.ci95[1]:.3f}"

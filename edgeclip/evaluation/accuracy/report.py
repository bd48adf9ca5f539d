"""What ``eval`` measured in, tables for people out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edgeclip.devices.machine.probe import summary
from edgeclip.engine_list import engine_entry, engine_packages
from edgeclip.evaluation.accuracy.retrieval import RetrievalResult
from edgeclip.evaluation.accuracy.zeroshot import ZeroShotResult
from edgeclip.evaluation.statistics.metrics import ClassAccuracy
from edgeclip.printable import counted

_SHOWN = 5
_FAILURES = 20


@dataclass(frozen=True)
class EvalReport:
    """Results by variant: of a labelled set, of a captioned set, or of both; the first variant's first."""

    accuracies: Sequence[ZeroShotResult]
    retrievals: Sequence[RetrievalResult]

    def as_json(self) -> dict[str, Any]:
        """The first variant's result, its retrieval under ``retrieval``; those of further variants under ``others``."""
        first, *others = [
            (msgspec.to_builtins(accuracy) if accuracy else {}) | ({"retrieval": found} if found else {})
            for accuracy, found in zip_longest(self.accuracies, self.retrievals)
        ]
        return {**first, "others": others} if others else dict(first)


def print_report(report: EvalReport, console: Console) -> None:
    """Print accuracies and recalls with intervals, what goes wrong most, and what it was measured on."""
    if report.accuracies:
        _print_accuracies(report.accuracies, console)
    if report.accuracies and report.retrievals:
        console.print()
    if report.retrievals:
        _print_retrievals(report.retrievals, console)


def _print_accuracies(results: Sequence[ZeroShotResult], console: Console) -> None:
    first = results[0]
    low, high = first.ci95
    _say(
        f"{first.data}: top-1 {first.top1:.3f} (95 % {low:.3f}–{high:.3f}), top-5 {first.top5:.3f}, "
        f"{counted(first.n, 'image')}, {counted(first.classes, 'class', 'classes')}{_failed(first.failed)}",
        console,
    )
    table = _table("variant", "top-1", "95 %", "top-5", "95 %", "balanced", "95 %")
    for each in results:
        numbers = ((each.top1, each.ci95), (each.top5, each.top5_ci95), (each.balanced_accuracy, each.balanced_ci95))
        table.add_row(each.variant, *_cells(numbers))
    console.print(table)
    for each in results:
        if each.difference:
            _say(f"{each.variant} beside {each.against}: {each.difference}", console)
    _print_classes(first, console)
    _print_failures(first.failures, console)
    _say(_measured_on(results), console, style="dim")


def _print_retrievals(results: Sequence[RetrievalResult], console: Console) -> None:
    first = results[0]
    _say(
        f"{first.data}: {counted(first.captions, 'caption')}, {counted(first.images, 'image')}{_failed(first.failed)}",
        console,
    )
    table = _table("variant", "", "R@1", "95 %", "R@5", "95 %", "R@10", "95 %")
    for each in results:
        for way, found in (("text → image", each.text_to_image), ("image → text", each.image_to_text)):
            numbers = ((found.r1, found.r1_ci95), (found.r5, found.r5_ci95), (found.r10, found.r10_ci95))
            table.add_row(each.variant, way, *_cells(numbers))
    console.print(table)
    _print_failures(first.failures, console)
    _say(_measured_on(results), console, style="dim")


def weakest(classes: Sequence[ClassAccuracy], most: int = _SHOWN) -> list[ClassAccuracy]:
    """The classes with images that do worst; of equals, those with the most images first."""
    seen = [item for item in classes if item.n]
    return sorted(seen, key=lambda item: (item.hits / item.n, -item.n))[:most]


def _print_classes(result: ZeroShotResult, console: Console) -> None:
    table = _table("weakest classes", "right", "95 %", "of")
    for item in weakest(result.per_class):
        if item.accuracy is not None and item.ci95 is not None:
            table.add_row(item.label, f"{item.accuracy:.3f}", _interval(item.ci95), str(item.n))
    console.print(table)
    if result.confusions:
        table = _table("confused most often", "images", "of its class")
        for pair in result.confusions[:_SHOWN]:
            table.add_row(f"{pair.truth} taken for {pair.predicted}", str(pair.count), f"{pair.share:.0%}")
        console.print(table)


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(numbers: Sequence[tuple[float, tuple[float, float]]]) -> list[str]:
    return [cell for value, ci95 in numbers for cell in (f"{value:.3f}", _interval(ci95))]


def _interval(ci95: tuple[float, float]) -> str:
    return f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def _print_failures(failures: Sequence[str], console: Console) -> None:
    for failure in failures[:_FAILURES]:
        _say(f"could not be read: {failure}", console, style="yellow")
    if len(failures) > _FAILURES:
        _say(f"and {len(failures) - _FAILURES:,} more, in the JSON", console, style="yellow")


def _failed(count: int) -> str:
    return f", {counted(count, 'image')} could not be read" if count else ""


def _measured_on(results: Sequence[ZeroShotResult | RetrievalResult]) -> str:
    first, variants = results[0], ", ".join(result.variant for result in results)
    others = set(engine_packages()).difference(engine_entry(first.engine).packages)
    own = {part: value for part, value in first.machine.items() if part not in others}
    return f"{variants} of model {first.model_id} by {first.engine} on {summary(own)}"


def _say(text: str, console: Console, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

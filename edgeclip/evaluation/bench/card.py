"""Results of a benchmark in; tables on the screen, and how two of them stand to each other, out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.machine.probe import summary
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.records import BenchResult, BenchSetting, Measured
from edgeclip.evaluation.statistics.rounds import Ratio, compare_rounds

_WIDE = 120  # columns of a terminal that all of a table fit in


def print_result(result: BenchResult, console: Console) -> None:
    """Print every setting's times, what could not run, and what the machine was doing."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for model, name in result.bundles.items():
        measured = [each for each in result.measured if each.setting.model == model]
        if not measured:
            continue
        height, width = measured[0].setting.size
        say(f"{name} at {width}×{height}, model {model}", style="bold")
        console.print(_table(measured, wide=console.width >= _WIDE), highlight=False)
    for setting, why in result.refused:
        say(f"not measured: {setting}: {why}", style="dim")
    if unstable := [str(each.setting) for each in result.measured if not each.stable]:
        say(f"never became stable while warming up: {'; '.join(unstable)}", style="yellow")
    say(f"on {summary(result.machine)}; {result.conditions}", style="dim")


def _table(measured: list[Measured], *, wide: bool) -> Table:
    """A row a setting; a narrow terminal gets the columns that decide."""
    columns = {name: cell for name, (cell, always) in _COLUMNS.items() if wide or always}
    table = Table(*columns, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for each in measured:
        table.add_row(*(Text(cell(each)) for cell in columns.values()))
    return table


def _engine(each: Measured) -> str:
    threads = each.setting.threads
    return each.setting.engine if threads is None else f"{each.setting.engine} ×{threads}"


# Title → what stands there, and whether it does so in a narrow terminal too. Times are milliseconds a batch.
_COLUMNS: dict[str, tuple[Callable[[Measured], str], bool]] = {
    "variant": (lambda each: each.setting.variant, True),
    "engine": (_engine, True),
    "stage": (lambda each: each.setting.stage, True),
    "batch": (lambda each: str(each.setting.batch), True),
    "p50 ms": (lambda each: f"{each.p50.mean:.2f}", True),
    "±": (lambda each: f"{each.p50.high - each.p50.mean:.2f}", True),
    "p90": (lambda each: f"{each.percentile_ms(90):.2f}", False),
    "p99": (lambda each: f"{each.percentile_ms(99):.2f}", True),
    "mean": (lambda each: f"{each.times_ms.mean():.2f}", False),
    "jitter": (lambda each: f"{each.jitter_ms:.2f}", False),
    "images/s": (lambda each: f"{each.images_per_s:.0f}", True),
    "MB": (lambda each: "–" if each.memory_mb is None else f"{each.memory_mb:.0f}", True),
    "J an image": (lambda each: "–" if each.energy_per_image_j is None else f"{each.energy_per_image_j[0]:.3f}", False),
}


def compare(first: BenchResult, second: BenchResult) -> list[tuple[BenchSetting, Ratio]]:
    """Every setting that both have: how long it takes in the second, in times of the first.

    Raises:
        InputError: they have none in common.
    """
    before = {each.setting: each for each in first.measured}
    both = [
        (each.setting, compare_rounds(before[each.setting].medians_ms, each.medians_ms, paired=False))
        for each in second.measured
        if each.setting in before
    ]
    if not both:
        raise InputError("expected results with a setting in common, got none: same model, variant, engine, batch")
    return both


def print_comparison(first: BenchResult, second: BenchResult, console: Console) -> None:
    """Print how the second stands to the first, setting by setting, and whether the machines differ."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for setting, ratio in compare(first, second):
        say(f"{setting}: {ratio}", style="bold" if ratio.differs else None)
    if first.machine != second.machine:
        keys = sorted({*first.machine, *second.machine})
        changed = [key for key in keys if first.machine.get(key) != second.machine.get(key)]
        say(f"the machines differ in {', '.join(changed)}", style="yellow")
    for name, result in (("first", first), ("second", second)):
        say(f"{name}: {summary(result.machine)}; {result.conditions}", style="dim")

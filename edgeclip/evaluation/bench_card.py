"""Results of a benchmark in; tables on the screen, and how two of them stand to each other, out."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.probe import summary
from edgeclip.errors import InputError
from edgeclip.evaluation.bench_records import BenchResult, Measured, Setting
from edgeclip.evaluation.bench_stats import Ratio, compare_rounds


def print_result(result: BenchResult, console: Console) -> None:
    """Print every setting's times, what could not run, and what the machine was doing."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for model, name in result.bundles.items():
        measured = [each for each in result.measured if each.setting.model == model]
        if not measured:
            continue
        height, width = measured[0].setting.size
        say(f"{name} at {width}×{height}, model {model}", style="bold")
        console.print(_table(measured), highlight=False)
    for setting, why in result.refused:
        say(f"not measured: {setting}: {why}", style="dim")
    if unstable := [str(each.setting) for each in result.measured if not each.stable]:
        say(f"never became stable while warming up: {'; '.join(unstable)}", style="yellow")
    say(f"on {summary(result.machine)}; {result.conditions}", style="dim")


def _table(measured: list[Measured]) -> Table:
    table = Table(
        *(
            "variant",
            "engine",
            "stage",
            "batch",
            "p50 ms (95 %)",
            "p90",
            "p99",
            "mean",
            "jitter",
            "images/s",
            "MB",
            "J",
        ),
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    for each in measured:
        setting = each.setting
        threads = "" if setting.threads is None else f" ×{setting.threads}"
        energy = each.energy_per_image_j
        table.add_row(
            *map(
                Text,
                (
                    setting.variant,
                    setting.engine + threads,
                    setting.stage,
                    str(setting.batch),
                    str(each.p50),
                    f"{each.percentile_ms(90):.2f}",
                    f"{each.percentile_ms(99):.2f}",
                    f"{each.times_ms.mean():.2f}",
                    f"{each.jitter_ms:.2f}",
                    f"{each.images_per_s:.0f}",
                    "–" if each.memory_mb is None else f"{each.memory_mb:.0f}",
                    "–" if energy is None else f"{energy:.3f}",
                ),
            )
        )
    return table


def compare(first: BenchResult, second: BenchResult) -> list[tuple[Setting, Ratio]]:
    """Every setting that both have: how long it takes in the second, in times of the first.

    Raises:
        InputError: they have none in common.
    """
    before = {each.setting: each for each in first.measured}
    both = [
        (each.setting, compare_rounds(_medians(before[each.setting]), _medians(each), paired=False))
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
        changed = sorted(
            key for key in {*first.machine, *second.machine} if first.machine.get(key) != second.machine.get(key)
        )
        say(f"the machines differ in {', '.join(changed)}", style="yellow")
    for name, result in (("first", first), ("second", second)):
        say(f"{name}: {summary(result.machine)}; {result.conditions}", style="dim")


def _medians(measured: Measured) -> list[float]:
    return [sorted(times)[len(times) // 2] for times in measured.rounds_ms]

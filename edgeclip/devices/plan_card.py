"""A plan in; its table and sentences on the screen, or its JSON, out."""

from __future__ import annotations

from functools import partial

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.plan_records import Plan, VariantPlan
from edgeclip.devices.speed import Range

_NOTE = (
    "Speeds are ranges from published peaks; memory is an upper bound, in which the shares of the system and of the "
    "engine's libraries are assumed: nothing was measured on the device."
)


def print_plan(plan: Plan, console: Console) -> None:
    """Print what to expect of each variant, the verdict, the commands, the notes."""
    cost = plan.cost
    facts = Table.grid(padding=(0, 2))
    facts.add_row("device", plan.title + (f", JetPack {plan.release}" if plan.release else ""))
    facts.add_row(
        "encoder",
        f"{cost.macs / 1e9:.2f} G multiply–adds an image of {cost.image_size[1]}×{cost.image_size[0]}, "
        f"{cost.weights / 1e6:.1f} M weights",
    )
    free = "not known" if plan.free_bytes is None else f"{_gib(plan.free_bytes)} GiB"
    facts.add_row("memory", f"{free} for the model")
    console.print(facts, highlight=False)
    table = Table(
        *("variant", "GiB", "to build", "batch", "ms a batch", "images/s", "will it do"),
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    for each in plan.variants:
        style = "bold green" if each.name == plan.recommended else None if each.usable else "dim"
        table.add_row(*map(Text, _row(each)), style=style)
    console.print(table, highlight=False)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"\n{plan.verdict}", style="bold")
    for command in plan.recipe:
        say(f"  {command}")
    say()
    reasons = Table.grid(padding=(0, 2))
    for each in plan.variants:
        reasons.add_row(each.name, Text(_why(each)))
    for note in (*plan.notes, _NOTE):
        reasons.add_row("note", Text(note))
    console.print(reasons, style="dim", highlight=False)


def plan_json(plan: Plan) -> str:
    """The plan as JSON; bytes, milliseconds, images a second."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode()


def _row(each: VariantPlan) -> tuple[str, ...]:
    if each.memory is None:
        return (each.name, *"–––––", "no")
    speed = each.estimate
    return (
        each.name,
        _gib(each.memory.running),
        _gib(each.memory.building),
        str(speed.batch) if speed else "–",
        _range(speed.latency_ms) if speed else "not known",
        _range(speed.images_per_s) if speed else "–",
        "no memory" if each.fits is False else {"no": "too slow", None: "–"}.get(each.reach, str(each.reach)),
    )


def _why(each: VariantPlan) -> str:
    if each.refused:
        return f"cannot run: {each.refused}"
    bound = f"; bound by {each.estimate.bound_by}" if each.estimate else ""
    return f"{'pays' if each.wise else 'does not pay'}: {each.why}{bound}"


def _range(value: Range) -> str:
    return f"{_short(value.low)}–{_short(value.high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"

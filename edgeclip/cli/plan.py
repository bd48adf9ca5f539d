"""The verb ``plan``: a model, a device and a demand in; what to expect there, on the screen or as JSON, out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.bundle import STARTER, Bundle
from edgeclip.cli.common import console, echo_json, notices
from edgeclip.extras import require

if TYPE_CHECKING:
    from edgeclip.devices.plan.cost import GraphCost
    from edgeclip.devices.plan.records import ModeFigures, Plan, VariantPlan
    from edgeclip.devices.plan.speed import Range


def plan(
    model: Annotated[
        str, typer.Argument(help="Bundle folder or .tar, starter, open_clip name, hf:NAME, or a checkpoint.")
    ],
    device: Annotated[
        str | None,
        typer.Option(help="Device, e.g. orin-nano-8gb: edgeclip devices lists them. \\[this machine]"),
    ] = None,
    cameras: Annotated[int, typer.Option(help="Streams labelled at once.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Frames labelled of each camera a second.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images at once. \\[one of each camera, up to 8]")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Power mode of a Jetson, e.g. MODE_30W. \\[the factory default; the present one of this machine]"
        ),
    ] = None,
    jetpack: Annotated[str | None, typer.Option(help="JetPack release. \\[the newest of the device]")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB free for the model. \\[as sold, less the system]")] = None,
    cores: Annotated[int | None, typer.Option(help="Cores of a CPU device.")] = None,
    ghz: Annotated[float | None, typer.Option(help="Clock of a CPU device's cores, GHz.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine whose speed to tell, or pytorch. \\[tensorrt on a GPU, openvino on a CPU]"),
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="File of edgeclip bench --json, of this device or another, to calibrate by.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan for a device that need not be here: which variants run, memory, speed as a range, how to build."""
    from edgeclip.devices.catalogue.profile import load_profile
    from edgeclip.devices.machine.tree import Tree
    from edgeclip.devices.plan.plan import demand_here, profile_here
    from edgeclip.devices.plan.plan import plan as make_plan
    from edgeclip.devices.plan.records import Demand

    demand = Demand(
        cameras=cameras,
        fps=fps,
        batch=batch,
        jetpack=jetpack,
        memory_gib=memory,
        cores=cores,
        ghz=ghz,
        mode=mode,
        engine=engine,
    )
    calibration = None
    if measured is not None:
        from edgeclip.evaluation.bench.calibrate import calibration_of
        from edgeclip.evaluation.bench.records import load_result

        calibration = calibration_of(load_result(measured), engine)
        demand = replace(demand, engine=calibration.engine)
    if device is None:
        here = Tree()
        profile = profile_here(here)
        demand = demand_here(demand, profile, here)
    else:
        profile = load_profile(device)
    made = make_plan(cost_of(model), profile, demand, calibration=calibration)
    if as_json:
        echo_json(plan_json(made))
    else:
        print_plan(made, console)


def cost_of(model: str) -> GraphCost:
    """What one image costs a model, whether it is a bundle or a name."""
    from edgeclip.export.cost import cost_of_bundle, cost_of_model

    if model == STARTER or Path(model).suffix in {".edgeclip", ".tar"} or (Path(model) / "manifest.json").is_file():
        return cost_of_bundle(Bundle.open(model))
    require("torch", purpose="build a model to count its products")
    require("onnxscript", purpose="export a model")
    with notices.status("loading the model") as status:
        return cost_of_model(model, progress=status.update)


_NOTE = (
    "Speeds are ranges from published peaks, of images that lie in the device's memory; four of five published "
    "latencies lay within theirs. Memory is an upper bound, in which the shares of the system and of the engine's "
    "libraries are assumed."
)


def print_plan(plan: Plan, console: Console) -> None:
    """Print what to expect of each variant, the verdict, the commands, the notes."""
    cost = plan.cost
    facts = Table.grid(padding=(0, 2))
    facts.add_row("device", plan.title + (f", JetPack {plan.release}" if plan.release else ""))
    if plan.mode:
        facts.add_row("power mode", _mode(plan.mode, None))
    for figures in plan.beside:
        facts.add_row("beside", _mode(figures, plan.recommended))
    facts.add_row(
        "encoder",
        f"{cost.macs / 1e9:.2f} G multiply–adds an image of {cost.image_size[1]}×{cost.image_size[0]}, "
        f"{cost.weights / 1e6:.1f} M weights",
    )
    facts.add_row("engine", plan.engine)
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


def _mode(figures: ModeFigures, variant: str | None) -> str:
    """``MODE_30W, the factory default: fp16 10 TFLOPS, int8 20 TOPS, memory 205 GB/s``; what a variant does there."""
    told = [
        f"{precision} {figures.peak_tflops[precision]:.3g} {unit}"
        for precision, unit in (("fp16", "TFLOPS"), ("int8", "TOPS"))
        if precision in figures.peak_tflops
    ] or ["peaks not known"]
    if figures.bandwidth_gb_s is not None:
        told.append(f"memory {figures.bandwidth_gb_s:.4g} GB/s")
    if variant in figures.images_per_s:
        told.append(f"{variant} at {_range(figures.images_per_s[variant])} images/s")
    return f"{', '.join(filter(None, (figures.name, figures.why)))}: {', '.join(told)}"


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

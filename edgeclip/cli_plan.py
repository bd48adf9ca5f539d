"""The command that plans: a model, a device and a demand in; what to expect there out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclip.bundle import STARTER, Bundle
from edgeclip.cli_common import console, notices
from edgeclip.devices.cost import GraphCost
from edgeclip.extras import require


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
    jetpack: Annotated[str | None, typer.Option(help="JetPack release. \\[the newest of the device]")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB free for the model. \\[as sold, less the system]")] = None,
    cores: Annotated[int | None, typer.Option(help="Cores of a CPU device.")] = None,
    ghz: Annotated[float | None, typer.Option(help="Clock of a CPU device's cores, GHz.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan for a device that need not be here: which variants run, memory, speed as a range, how to build."""
    from edgeclip.devices.plan import plan as make_plan
    from edgeclip.devices.plan_card import plan_json, print_plan
    from edgeclip.devices.plan_here import demand_here, profile_here
    from edgeclip.devices.plan_records import Demand
    from edgeclip.devices.profile import load_profile
    from edgeclip.devices.tree import Tree

    demand = Demand(cameras=cameras, fps=fps, batch=batch, jetpack=jetpack, memory_gib=memory, cores=cores, ghz=ghz)
    if device is None:
        here = Tree()
        profile = profile_here(here)
        demand = demand_here(demand, profile, here)
    else:
        profile = load_profile(device)
    made = make_plan(cost_of(model), profile, demand)
    if as_json:
        typer.echo(plan_json(made))
    else:
        print_plan(made, console)


def cost_of(model: str) -> GraphCost:
    """What one image costs a model, whether it is a bundle or a name."""
    from edgeclip.export.cost_of import cost_of_bundle, cost_of_model

    if model == STARTER or Path(model).suffix in {".edgeclip", ".tar"} or (Path(model) / "manifest.json").is_file():
        return cost_of_bundle(Bundle.open(model))
    require("torch", purpose="build a model to count its products")
    require("onnxscript", purpose="export a model")
    with notices.status("loading the model") as status:
        return cost_of_model(model, progress=status.update)

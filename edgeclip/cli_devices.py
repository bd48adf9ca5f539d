"""``edgeclip devices``: what is known of devices, all of them or one."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from edgeclip.cli_common import console

app = typer.Typer(help="What is known of devices: memory, peaks, precisions, power modes, faults.")

_JSON_HELP = "Print the same as JSON."


@app.callback(invoke_without_command=True)
def devices(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False) -> None:
    """List all devices that edgeclip has a profile of."""
    if context.invoked_subcommand:
        return
    from edgeclip.devices.profile import load_profiles
    from edgeclip.devices.show import print_devices

    if as_json:
        _print_json(msgspec.to_builtins(load_profiles()))
    else:
        print_devices(load_profiles(), console)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name or alias of a device, e.g. orin-nano.")],
    mode: Annotated[str | None, typer.Option(help="Peaks and bandwidth in this power mode, e.g. MAXN_SUPER.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Print everything that is known of one device, with sources and the faults of its JetPack releases."""
    from edgeclip.devices.profile import load_profile
    from edgeclip.devices.show import as_values, print_profile

    profile = load_profile(name)
    if mode is not None:
        profile = profile.at(mode)
    if as_json:
        _print_json(as_values(profile))
    else:
        print_profile(profile, console)


def _print_json(value: object) -> None:
    # Not through the console: it would wrap at the terminal's width.
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))

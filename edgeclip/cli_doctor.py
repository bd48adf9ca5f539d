"""The command that looks at a machine: what it is, what it can use, what to mend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclip.cli_common import console, notices

if TYPE_CHECKING:
    from edgeclip.devices.doctor import Report


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, and nothing else.")] = False,
    root: Annotated[
        Path, typer.Option(help="Look at another machine: a tar made there with --record, or a copy of its files.")
    ] = Path("/"),
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tar", help="Keep what was read, for support: system files alone, nothing personal."),
    ] = None,
) -> None:
    """Say what this machine is, which engines load, and what to mend with which command.

    Exit code 0; 1 if something keeps edgeclip from running here at all; 2 if the options cannot be used.
    """
    from edgeclip.devices.doctor import examine

    with notices.status("trying libraries"):
        report = examine(root, record=record)
    if json_output:
        _print_json(report)
    else:
        from edgeclip.doctor_card import print_report

        print_report(report, console)
    if record:
        notices.print(f"recorded: {record} (tar -tf lists it)", highlight=False, soft_wrap=True)
    if report.stops:
        raise typer.Exit(1)


def _print_json(report: Report) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))

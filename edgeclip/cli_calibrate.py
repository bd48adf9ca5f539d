"""The commands that calibrate: which images ranges are measured on, and what scores mean."""

from __future__ import annotations

import typer

from edgeclip import cli_calibrate_decisions

app = typer.Typer(help="Calibrate: images for INT8 ranges, and decisions that mean something.", no_args_is_help=True)
app.command("decisions")(cli_calibrate_decisions.decisions)

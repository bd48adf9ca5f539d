"""The commands that fit a bundle to its site: images to measure ranges on, whether they cover it, what scores mean."""

from __future__ import annotations

import typer

from edgeclip import cli_calibrate_decisions, cli_calibrate_images

app = typer.Typer(
    help="Fit a bundle to its site: calibration images, drift, decisions that mean something.", no_args_is_help=True
)
app.command("images")(cli_calibrate_images.images)
app.command("drift")(cli_calibrate_images.drift)
app.command("decisions")(cli_calibrate_decisions.decisions)

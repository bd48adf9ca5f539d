"""The commands that prepare a bundle for one site: images to measure ranges on, thresholds to decide by."""

from __future__ import annotations

import typer

from edgeclip import cli_calibrate_images

app = typer.Typer(help="What a bundle is fitted to a site with: calibration images, drift.", no_args_is_help=True)
app.command("images")(cli_calibrate_images.images)
app.command("drift")(cli_calibrate_images.drift)

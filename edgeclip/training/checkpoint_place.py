"""A checkpoint's name in, its folder out. Needs no torch: a device looks here too."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgeclip.bundle import STARTER

CONFIG, WEIGHTS = "checkpoint.json", "weights.safetensors"


def checkpoint_folder(name: str) -> Path:
    """Where a checkpoint lies: the folder itself, or ``checkpoint`` in that of a run; ``starter`` is shipped."""
    if name == STARTER:
        return Path(str(resources.files("edgeclip") / "assets" / STARTER))
    of_run = Path(name) / "checkpoint"
    return of_run if (of_run / CONFIG).is_file() else Path(name)

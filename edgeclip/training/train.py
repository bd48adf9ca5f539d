"""A recipe in, a checkpoint out: which trainer runs which task."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from edgeclip.errors import InputError
from edgeclip.training.recipe import Recipe
from edgeclip.training.starter_recipe import StarterRecipe


def train_recipe(
    recipe: Recipe | StarterRecipe, target: Path, *, console: Console, overwrite: bool = False, resume: bool = False
) -> None:
    """Train as a recipe says and write the checkpoint folder ``target``.

    Args:
        overwrite: replace an existing checkpoint.
        resume: go on from the last state saved beside ``target``; from the start if there is none.

    Raises:
        InputError: ``target`` exists and neither ``overwrite`` nor ``resume`` is given; nothing to resume from.
        TrainingError: no usable data, or a loss that is not finite (with the step).
    """
    if isinstance(recipe, StarterRecipe):
        from edgeclip.training.starter import train_starter

        if resume:
            raise InputError("expected no --resume with task starter, which keeps no states: run it again")
        train_starter(recipe, target, console=console, overwrite=overwrite)
        return
    from edgeclip.training.trainer import train

    train(recipe, target, console=console, overwrite=overwrite, resume=resume)
